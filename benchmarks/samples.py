"""A contact sheet of what a prior makes of the first prompts of ``pyratok evaluate world``, none picked out:
``python benchmarks/samples.py WORLD --out docs/images/samples.png``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyratok import PyraTok
from pyratok.data.video_io import to_uint8
from pyratok.data.world import World
from pyratok.eval.benchmarks.world import WorldProtocol, prompted
from pyratok.eval.world_truth import Detector
from pyratok.files import write_atomically
from pyratok.report.lettering import HEIGHT, lettering
from pyratok.report.png import encode_png
from pyratok.tasks.generation.clips import generate_clip
from pyratok.tasks.generation.files import find_prior, load_prior

Pixels = NDArray[np.uint8]
SHOWN, SCALE, GAP = 5, 2, 8
"""Frames of a clip, side by side; pixels of the sheet for one of theirs, and between the two clips of a row."""
Colour = int | tuple[int, int, int]
PAPER, INK, WRONG = 255, 30, (190, 30, 30)


def tile(frames: Pixels, *lines: tuple[str, Colour]) -> Pixels:
    """Some frames of a clip, side by side, over lines of text."""
    some = frames[np.linspace(0, len(frames) - 1, SHOWN).round().astype(int)]
    strip = np.concatenate(list(some), axis=1).repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    room = np.full((len(lines) * (HEIGHT + 6) + GAP, strip.shape[1], 3), PAPER, np.uint8)
    for number, (text, colour) in enumerate(lines):
        ink = lettering(text)[:, : strip.shape[1]]
        room[5 + number * (HEIGHT + 6) :][: ink.shape[0], : ink.shape[1]][ink] = colour
    return np.concatenate([strip, room])


def sheet(world: World, model: PyraTok, prior_folder: Path, protocol: WorldProtocol, count: int) -> Pixels:
    """The first ``count`` prompts of the benchmark, with its seeds and settings."""
    prior, detector, tiles = load_prior(prior_folder, model.model_id), Detector(world, protocol.size), list[Pixels]()
    for index in range(count):
        truth, shown = prompted(world, protocol, index)
        tokens = generate_clip(model, prior, truth.caption, seed=protocol.seed + index, **protocol.sampling)
        frames = to_uint8(model.decode(tokens))
        sight = detector.look(frames)
        seen = f"{sight.colour} {sight.noun}, {sight.way}" if sight.noun else "nothing"
        right = (sight.noun, sight.colour, sight.way) == tuple(shown)
        tiles.append(tile(frames, (truth.caption, INK), (f"seen: {seen}", INK if right else WRONG)))
    tiles += [np.full_like(tiles[0], PAPER)] * (len(tiles) % 2)
    gap = np.full((tiles[0].shape[0], GAP, 3), PAPER, np.uint8)
    rows = [np.concatenate([left, gap, right], axis=1) for left, right in zip(tiles[::2], tiles[1::2], strict=True)]
    return np.concatenate(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("world", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prior", help="ar, scale, masked or a folder")
    parser.add_argument("--guidance", type=float, default=WorldProtocol.guidance)
    parser.add_argument("--count", type=int, default=24)
    options = parser.parse_args()
    protocol = WorldProtocol(guidance=options.guidance)
    folder, model = find_prior(options.prior), PyraTok.from_pretrained()
    picture = sheet(World(options.world), model, folder, protocol, options.count)
    write_atomically(options.out, encode_png(picture))


if __name__ == "__main__":
    main()
