"""How much of the vocabulary is in use from 240p to 4320p, at one number of tokens for every resolution.

The paper's figure 29 shows use rising with resolution. Use also rises with the number of tokens seen, and larger
frames have more, so that here every resolution gives equally many: crops of 17x224x224 at places drawn at random from
the pictures scaled to that many rows. Photographs move as under a panning camera. A crop of a picture that had to be
enlarged is counted as such: enlarging adds pixels, not detail.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import SAMPLE, parser, publish
from torch import Tensor

from pyratok import PyraTok, load_video
from pyratok.quantization.usage import CodebookUsage, LevelUsage

HEIGHTS = (240, 360, 480, 720, 1080, 1440, 2160, 4320)
FRAMES, CROP = 17, 224
PAN = 0.01  # of the short side, at most, from one frame to the next
# PyraTok (arXiv 2601.16210), fig. 29: percent of the words in use.
PAPER = {240: 55.23, 360: 59.57, 480: 67.82, 720: 73.45, 1080: 79.16, 1440: 85.38, 2160: 91.44, 4320: 97.12}
MEDIA = {".mp4", ".mkv", ".mov", ".webm", ".jpg", ".jpeg", ".png", ".webp"}


def files(media: list[Path]) -> list[Path]:
    """The files named, and those in the folders named, in a fixed random order."""
    found = [path for entry in media for path in ([entry] if entry.is_file() else sorted(entry.rglob("*")))]
    found = [path for path in found if path.suffix.lower() in MEDIA]
    if not found:
        raise SystemExit(f"no video and no picture in {', '.join(map(str, media))}")
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    return [found[i] for i in order.tolist()]


def cut(source: Tensor, height: int, frames: int, crop: int, generator: torch.Generator) -> Tensor:
    """A random crop ``[1, 3, frames, crop, crop]`` of ``source`` ``[1, 3, T, H, W]`` scaled to ``height`` rows.

    Rows are those of the short side, as resolutions are named. Only the part that is needed is scaled.
    """
    short = min(source.shape[3:])
    side = max(1, min(short, round(crop * short / height)))
    reach = PAN * short * (frames - 1) if source.shape[2] == 1 else 0
    places = []
    for extent in source.shape[3:]:
        start, drift = torch.rand(2, generator=generator).tolist()
        start *= extent - side
        stop = min(max(start + reach * (2 * drift - 1), 0), extent - side)
        places.append(torch.linspace(start, stop, frames).round().int().tolist())
    pictures = [
        source[0, :, min(t, source.shape[2] - 1), y : y + side, x : x + side]
        for t, (y, x) in enumerate(zip(*places, strict=True))
    ]
    scaled = F.interpolate(torch.stack(pictures), size=(crop, crop), mode="bicubic", antialias=True)
    return scaled.clamp(-1, 1).transpose(0, 1)[None]


def facts(usage: LevelUsage) -> dict[str, Any]:
    return {
        "tokens": usage.tokens,
        "percent": round(100 * (usage.share or 0.0), 2),
        "perplexity": round(usage.perplexity or 0.0, 1),
        "dead_bits": len(usage.dead_bits),
    }


def sources(paths: list[Path], frames: int) -> Iterator[Tensor]:
    return (load_video(path, frames=frames).plain() for path in cycle(paths))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--media", type=Path, nargs="+", default=[SAMPLE], help="videos, pictures or folders of them")
    options.add_argument("--tokens", type=int, default=200_000, help="tokens of every level at every resolution")
    options = options.parse_args()
    frames, crop, heights = (5, 32, (240, 480)) if options.quick else (FRAMES, CROP, HEIGHTS)
    model = PyraTok.from_pretrained()
    per_crop = min(math.prod(ids.shape) for ids in model.encode(torch.zeros(1, 3, frames, crop, crop)).levels)
    crops = 2 if options.quick else math.ceil(options.tokens / per_crop)
    generator = torch.Generator().manual_seed(0)
    usage = {height: CodebookUsage(model.num_levels, model.num_bits) for height in heights}
    enlarged = dict.fromkeys(heights, 0)
    paths = files(options.media)
    for _, source in zip(range(crops), sources(paths, frames), strict=False):
        for height in heights:
            usage[height].update(model.encode(cut(source, height, frames, crop, generator)).levels)
            enlarged[height] += height > min(source.shape[3:])
    rows = {}
    for height in heights:
        summary = usage[height].summary()
        rows[str(height)] = {
            **facts(summary.pooled),
            "levels": [facts(level) for level in summary.levels],
            "enlarged_percent": round(100 * enlarged[height] / crops, 1),
            "paper_percent": PAPER[height],
        }
    result = {
        "model": str(model.model_id),
        "files": len(paths),
        "crops": crops,
        "crop": (frames, crop, crop),
        "results": rows,
    }
    publish("resolutions", result, options)


if __name__ == "__main__":
    main()
