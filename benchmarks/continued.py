"""Real videos beside what a prior makes of their beginning, as ``pyratok evaluate continuation`` measures it:
``python benchmarks/continued.py VIDEOS --out docs/images/continued.png``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from samples import GAP, INK, PAPER, Pixels, tile

from pyratok import PyraTok, load_video
from pyratok.data.video_io import to_uint8
from pyratok.eval.benchmarks.continuation import ContinuationProtocol, draw
from pyratok.eval.reconstruction import find_clips
from pyratok.files import write_atomically
from pyratok.report.png import encode_png
from pyratok.tasks.generation.files import FOOTAGE, find_prior, load_prior
from pyratok.tasks.generation.seam import join


def sheet(videos: Path, model: PyraTok, prior_folder: Path, protocol: ContinuationProtocol) -> Pixels:
    """A row for each video: what came, one clip of the prior, and the mean of several; first the last given frame."""
    prior, rows = load_prior(prior_folder, model.model_id), list[Pixels]()
    for path in find_clips(videos):
        video = load_video(path, size=protocol.size, crop=protocol.size, frames=protocol.frames)
        given = video.plain()[:, :, : protocol.given]
        drawn = draw(model, prior, video, protocol)
        shown = {
            "what came": video.plain(),
            "one": join(given, drawn[:1]),
            f"the mean of {protocol.samples}": join(given, drawn.mean(0, keepdim=True)),
        }
        name = path.stem.replace("_", " ")
        tiles = [tile(to_uint8(clip)[protocol.given - 1 :], (f"{name}: {text}", INK)) for text, clip in shown.items()]
        gap = np.full((tiles[0].shape[0], GAP, 3), PAPER, np.uint8)
        rows.append(np.concatenate([tiles[0], gap, tiles[1], gap, tiles[2]], axis=1))
    return np.concatenate(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prior", help="footage, ar, or a folder")
    options = parser.parse_args()
    folder, model = find_prior(options.prior, default=FOOTAGE), PyraTok.from_pretrained()
    write_atomically(options.out, encode_png(sheet(options.videos, model, folder, ContinuationProtocol())))


if __name__ == "__main__":
    main()
