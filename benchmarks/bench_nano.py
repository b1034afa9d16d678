"""Speed, latency and memory of pyratok-nano at 256x256, beside diffusers' frame-by-frame loop on the same weights.

Encode is video to ids, decode is ids to video, both with everything around them, whole and as streams in pieces of 1,
2 and 4 latent steps. Latency is that of a live stream: frames come one at a time, and it is the time from the last
frame that a latent step needs until its tokens are there. diffusers has no token path, so that the ratio compares the
VAE alone: its features up to the latent, and its decoder.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import (
    frame_blocks,
    in_fresh_process,
    interleaved,
    parser,
    percentile,
    publish,
    random_tokens,
    ratio,
    rounded,
    sample,
    token_parts,
)
from peers import as_diffusers
from torch import Tensor

from pyratok import PyraTok
from pyratok.model.base import VideoTokenizer
from pyratok.types import TokenPyramid

DTYPES = ("float32", "bfloat16")
PIECES = (1, 2, 4)
WARM_UP = 3  # latent steps that do not count for the latency


def encode_stream(model: VideoTokenizer, video: Tensor, steps: int) -> None:
    with model.stream() as stream:
        for frames in frame_blocks(video, model.latent_stride, steps):
            stream.push(frames)
        stream.flush()


def decode_stream(model: VideoTokenizer, parts: list[TokenPyramid]) -> None:
    with model.decode_stream() as stream:
        for part in parts:
            stream.push(part)


def compare(dtype: str, video: Tensor, rounds: int) -> dict[str, Any]:
    """Seconds of everything in one type, frames per second, and ratios to diffusers."""
    model = PyraTok.from_pretrained(dtype=getattr(torch, dtype))
    reference = as_diffusers(model.vae)
    tokens = model.encode(video)
    x = video.to(getattr(torch, dtype))
    latent = torch.randn(1, model.vae.config.z_dim, *tokens.geometry.grid(-1)).to(x.dtype)
    candidates: dict[str, Callable[[], Any]] = {
        "encode": lambda: model.encode(video),
        "decode": lambda: model.decode(tokens),
        "vae_encode": lambda: model.vae.encode(x),
        "diffusers_encode": lambda: reference._encode(x),
        "vae_decode": lambda: model.vae.decode(latent),
        "diffusers_decode": lambda: reference._decode(latent),
    }
    for steps in PIECES:
        parts = token_parts(tokens, steps)
        candidates[f"encode_stream_{steps}"] = lambda n=steps: encode_stream(model, video, n)
        candidates[f"decode_stream_{steps}"] = lambda p=parts: decode_stream(model, p)
    with torch.no_grad():
        seconds = interleaved(candidates, rounds)
    coders = [name for name in candidates if name.partition("_")[0] in ("encode", "decode")]
    return {
        "seconds": rounded(seconds),
        "frames_per_second": {name: round(video.shape[2] / seconds[name], 1) for name in coders},
        "vae_times_diffusers": {
            way: ratio(seconds[f"diffusers_{way}"], seconds[f"vae_{way}"]) for way in ("encode", "decode")
        },
    }


def latency(dtype: str, video: Tensor) -> dict[str, Any]:
    """Milliseconds of the pushes that complete a latent step, frame by frame, and of decoding each step's tokens."""
    model = PyraTok.from_pretrained(dtype=getattr(torch, dtype))
    waits: dict[str, list[float]] = {"encode": [], "decode": []}
    with model.stream() as encoder, model.decode_stream() as decoder:
        for frame in video.unbind(2):
            start = time.perf_counter()
            part = encoder.push(frame[:, :, None])
            ready = time.perf_counter()
            if part is not None:
                decoder.push(part)
                waits["encode"].append(1000 * (ready - start))
                waits["decode"].append(1000 * (time.perf_counter() - ready))
    return {
        way: {
            "steps": len(counted := values[WARM_UP:]),
            "p50_ms": round(statistics.median(counted), 2),
            "p95_ms": round(percentile(counted, 95), 2),
        }
        for way, values in waits.items()
    }


def one_pass(dtype: str, way: str, frames: int, size: int) -> Callable[[], None]:
    """For :func:`in_fresh_process`: encode or decode one clip."""
    model = PyraTok.from_pretrained(dtype=getattr(torch, dtype))
    video, tokens = sample(frames, size), random_tokens(model, frames, size, size)

    def work() -> None:
        model.encode(video) if way == "encode" else model.decode(tokens)

    return work


def main() -> None:
    options = parser(__doc__).parse_args()
    frames, size, rounds, streamed = (9, 32, 1, 21) if options.quick else (33, 256, 5, 161)
    video, live = sample(frames, size), sample(streamed, size)
    result = {
        "clip": (frames, size, size),
        "results": {dtype: compare(dtype, video, rounds) for dtype in DTYPES},
        "latency": {dtype: latency(dtype, live) for dtype in DTYPES},
        "peak_mib": {
            dtype: {
                way: in_fresh_process(one_pass, dtype=dtype, way=way, frames=frames, size=size)["peak_mib"]
                for way in ("encode", "decode")
            }
            for dtype in DTYPES
        },
    }
    publish("nano", result, options)


if __name__ == "__main__":
    main()
