"""What tiles change where a model mixes whole frames, as Wan 2.1's middle attention does.

A tokenizer of the shape of Wan 2.1, its weights drawn around a linear thumbnail coder, encodes and decodes a clip whole
and in four tiles with halos of several widths: bits that differ, how visible the borders are (1: as any other place),
and a picture of both. What a trained attention carries from afar is not known from such weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from common import parser, publish, sample
from records import RESULTS
from torch import Tensor

from pyratok import TokenPyramid
from pyratok.config import LaPQConfig, PyraTokConfig, WanVAEConfig
from pyratok.files import write_atomically
from pyratok.metrics.seams import seam_ratio
from pyratok.model.pyratok import PyraTok
from pyratok.report.png import encode_png
from pyratok.runtime.tiling import Layout, decode_tiled, encode_tiled
from pyratok.vae.wan_blocks import near_identity_

PICTURE = RESULTS.parents[1] / "docs" / "images" / "perf-seams.png"
SHOWN = (0, 64)
"""Halos, in pixels, of the tiles in the picture, beside the whole frame."""


def wan_shape(quick: bool) -> PyraTok:
    torch.manual_seed(0)
    vae = WanVAEConfig(base_dim=8, z_dim=4) if quick else WanVAEConfig()
    model = PyraTok(PyraTokConfig(name="wan-2.1-shape", vae=vae, lapq=LaPQConfig(width=16 if quick else 128)))
    near_identity_(model.vae)
    return model.eval()


def decoded(model: PyraTok, tokens: TokenPyramid, layout: Layout) -> Tensor:
    """float32 ``[1, 3, T, H, W]``."""
    g = tokens.geometry
    video = torch.empty(1, 3, g.frames, g.height, g.width)
    decode_tiled(model, tokens, video, layout)
    return video


def differing(one: TokenPyramid, other: TokenPyramid) -> list[float]:
    """Percent of the bits of each level."""
    apart = [(a ^ b).flatten() for a, b in zip(one.levels, other.levels, strict=True)]
    bits = torch.arange(one.num_bits)
    return [round(100 * float((ids[:, None] >> bits & 1).float().mean()), 3) for ids in apart]


def picture(videos: list[Tensor]) -> np.ndarray:
    """Last frames side by side, all stretched alike: the weights are those of no trained model."""
    whole = videos[0]
    mean, spread = (f(dim=(2, 3, 4), keepdim=True) for f in (whole.mean, whole.std))
    frames = [((video - mean) / spread * 48 + 128).clamp(0, 255)[0, :, -1].byte() for video in videos]
    return torch.cat(frames, dim=2).movedim(0, -1).numpy()


@torch.no_grad()
def measure(
    model: PyraTok, video: Tensor, tile: int, halos: tuple[int, ...]
) -> tuple[list[dict[str, Any]], np.ndarray]:
    tokens = model.encode(video)
    whole = decoded(model, tokens, Layout())
    rows, shown = list[dict[str, Any]](), [whole]
    for halo in halos:
        bits = differing(encode_tiled(model, video, Layout(tile=(tile, tile), halo=halo)), tokens)
        for feather in sorted({0, min(halo, 16)}):
            tiled = decoded(model, tokens, Layout(tile=(tile, tile), halo=halo, feather=feather))
            row = {
                "halo": halo,
                "feather": feather,
                "seam_ratio": round(seam_ratio(tiled, [tile], [tile], untiled=whole), 4),
                "relative_difference": float(f"{float((tiled - whole).std() / whole.std()):.2g}"),
                "differing_bits_percent": bits,
            }
            rows.append(row)
        if halo in SHOWN:
            shown.append(tiled)
    return rows, picture(shown)


def main() -> None:
    options = parser(__doc__).parse_args()
    frames, size, halos = (5, 64, (0, 32)) if options.quick else (9, 256, (0, 32, 64))
    model = wan_shape(options.quick)
    rows, drawn = measure(model, sample(frames, size), size // 2, halos)
    publish("seams", {"clip": (frames, size, size), "tile": size // 2, "results": rows}, options)
    if not options.quick and options.out is None:
        write_atomically(PICTURE, encode_png(drawn))


if __name__ == "__main__":
    main()
