"""1080p and 8K through pyratok-nano within a budget of memory, and 4K in several of them.

Each pass has a process of its own. Pictures are drawn as they are asked for, a crop at a time, and decoded ones are
made 8-bit and dropped: what is measured is the tokenizer and its plan, not a file. The larger size is run between two
runs of the smaller one.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from common import in_fresh_process, parser, publish, random_tokens
from torch import Tensor

from pyratok import PyraTok
from pyratok.data.video_io import to_uint8
from pyratok.runtime.frames import FrameSource
from pyratok.runtime.memory import parse_bytes
from pyratok.runtime.planner import MemoryBudgetError, Plan, plan
from pyratok.runtime.tiling import decode_tiled, encode_tiled

WAYS = ("encode", "decode")
SIZES = {"1080p": (1080, 1920), "8K": (4320, 7680)}
PLANNED = (2160, 3840)
BUDGETS = ("1GiB", "2GiB", "4GiB", "8GiB")
SIDE = 512  # of the picture that repeats


def drawn(frames: int, height: int, width: int) -> FrameSource:
    """A moving texture of any size, from a small picture that is repeated."""
    return FrameSource(frames=frames, height=height, width=width, read=_moving_crop)


def _moving_crop(frames: slice, rows: slice, columns: slice) -> np.ndarray:
    """RGB uint8 ``[t, h, w, 3]``; from frame to frame the picture moves by 2 rows and 3 columns."""
    crops = []
    for frame in range(frames.start, frames.stop):
        down = np.arange(rows.start, rows.stop) + 2 * frame
        across = np.arange(columns.start, columns.stop) + 3 * frame
        crops.append(_texture()[down[:, None] % SIDE, across % SIDE])
    return np.stack(crops)


@cache
def _texture() -> np.ndarray:
    """RGB uint8 ``[SIDE, SIDE, 3]`` without seams, as much detail at every scale as photographs have (1 / f)."""
    noise = np.random.default_rng(0).standard_normal((SIDE, SIDE, 3))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE)))
    frequency[0, 0] = np.inf
    picture = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) / frequency[..., None], axes=(0, 1)).real
    return np.clip(128 + 48 * picture / picture.std(), 0, 255).astype(np.uint8)


def one_pass(
    way: str, frames: int, height: int, width: int, memory: str, dtype: str
) -> Callable[[], dict[str, Any] | None]:
    """For :func:`in_fresh_process`: plan and run one direction; says ``refused`` where no plan fits."""
    model = PyraTok.from_pretrained(dtype=getattr(torch, dtype))
    clip = (frames, height, width)
    if way == "encode":
        source = drawn(*clip)
        _texture()
    else:
        tokens = random_tokens(model, *clip)
    try:
        chosen = plan(model, clip, memory, way)
    except MemoryBudgetError as error:
        refusal = str(error)
        return lambda: {"refused": refusal}

    def work() -> dict[str, Any]:
        if way == "encode":
            encode_tiled(model, source, chosen.layout)
        else:
            decode_tiled(model, tokens, _drop, chosen.layout)
        return {"refused": None, "predicted_mib": round(chosen.peak / 2**20, 1), "plan": describe(chosen)}

    return work


def _drop(pixels: Tensor, *_: slice) -> None:
    to_uint8(pixels)


def describe(chosen: Plan) -> str:
    tile, steps = chosen.layout.tile, chosen.layout.chunk_steps
    how = "whole frames" if tile is None else f"{chosen.tiles[0]} x {chosen.tiles[1]} tiles of {tile[0]}x{tile[1]}"
    when = "all steps at once" if steps is None else f"{steps} latent step{'s' * (steps > 1)} at a time"
    return f"{how}, {when}, {chosen.work:.2f}x the pixels"


def by_size(sizes: dict[str, tuple[int, int]], frames: int, memory: str, dtype: str) -> dict[str, dict[str, Any]]:
    """Per size and way what the pass told, its time the median of its runs."""
    small, large = sizes
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {name: defaultdict(list) for name in sizes}
    for way in WAYS:
        for name in (small, large, small):
            height, width = sizes[name]
            found = in_fresh_process(
                one_pass, way=way, frames=frames, height=height, width=width, memory=memory, dtype=dtype
            )
            if found["refused"]:
                raise SystemExit(found["refused"])
            runs[name][way].append(found)
    results: dict[str, dict[str, Any]] = {name: {} for name in sizes}
    for name, (height, width) in sizes.items():
        for way, found in runs[name].items():
            seconds = statistics.median(run["seconds"] for run in found)
            cost = round(seconds / (frames * height * width / 1e6), 4)
            results[name][way] = {**found[-1], "seconds": round(seconds, 3), "seconds_per_megapixel_frame": cost}
    return results


def by_budget(clip: tuple[int, int, int], budgets: tuple[str, ...], dtype: str) -> list[dict[str, Any]]:
    """Predicted and measured peak of one clip in every budget, both ways."""
    frames, height, width = clip
    rows = []
    for budget in budgets:
        for way in WAYS:
            found = in_fresh_process(
                one_pass, way=way, frames=frames, height=height, width=width, memory=budget, dtype=dtype
            )
            rows.append({"budget_gib": parse_bytes(budget) / 2**30, "way": way, **found})
    return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--memory", default="5GiB", help="budget of the two sizes")
    options.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    options = options.parse_args()
    frames, sizes, planned, budgets = 17, SIZES, PLANNED, BUDGETS
    if options.quick:
        frames, sizes, planned, budgets = 5, {"small": (32, 48), "large": (64, 96)}, (64, 96), ("1MiB", "2GiB")
    results = by_size(sizes, frames, options.memory, options.dtype)
    small, large = (results[name] for name in sizes)
    result = {
        "frames": frames,
        "dtype": options.dtype,
        "memory": options.memory,
        "sizes": sizes,
        "results": results,
        "per_pixel_ratio": {
            way: round(large[way]["seconds_per_megapixel_frame"] / small[way]["seconds_per_megapixel_frame"], 3)
            for way in WAYS
        },
        "planner_clip": (frames, *planned),
        "planner": by_budget((frames, *planned), budgets, options.dtype),
    }
    publish("large", result, options)


if __name__ == "__main__":
    main()
