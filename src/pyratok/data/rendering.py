"""Clips of a world as files, with a manifest of what they show.

```
FOLDER/clips/0-17x64-000000.mp4 ...   SEED-SIZE-NUMBER
FOLDER/manifest.jsonl           path, caption, noun, colour, way
```
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pyratok.data.datasets import to_signed
from pyratok.data.video_io import save_video
from pyratok.data.world import World
from pyratok.files import alone_in, write_atomically

CRF = 8
"""Of the files: nothing is seen of it in tokens, and twenty thousand clips are some 200 MB."""


@dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """``clips`` of ``frames x size x size`` at ``fps``; another ``seed`` gives others."""

    clips: int = 1000
    frames: int = 17
    size: int = 64
    fps: float = 12.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.frames < 3 or self.size < 16 or self.clips < 0 or self.seed < 0 or not 0 < self.fps < float("inf"):
            raise ValueError(
                "clips have 3 or more frames of 16 or more pixels, a positive rate, and 0 or more as number and seed; "
                f"got {self}"
            )


def render_clips(world: World, config: RenderConfig, on_clip: Callable[[int], None] = lambda done: None) -> int:
    """Render those clips into the folder of their world that are not there yet, and write the manifest of all.

    Returns how many were made. A file is whole or not there; the manifest comes last.
    """
    folder, rows, made = world.folder, [], 0
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        for number in range(config.clips):
            path = folder / "clips" / f"{config.seed}-{config.frames}x{config.size}-{number:06d}.mp4"
            clip, shown = world.clip(config.seed, number, config.frames, config.size)
            if not path.exists():
                video = to_signed(torch.from_numpy(clip.video).movedim(-1, 0)[None])
                save_video(video, path, fps=config.fps, crf=CRF)
                made += 1
            rows.append({"path": f"clips/{path.name}", "caption": clip.caption, **shown._asdict()})
            on_clip(number + 1)
        write_atomically(folder / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return made
