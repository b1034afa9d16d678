"""Clips of a world as files, with a manifest of what they show.

```
FOLDER/clips/1f2e3d4c-0-17x64-12-000000.mp4 ...   WORLD-SEED-SIZE-RATE-NUMBER
FOLDER/manifest.jsonl           path, caption, noun, colour, way
```
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pyratok.config import to_dict
from pyratok.data.datasets import to_signed
from pyratok.data.scenes import render
from pyratok.data.video_io import save_video
from pyratok.data.world import World
from pyratok.files import alone_in, write_atomically

MANIFEST = "manifest.jsonl"
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

    Returns how many were made. A file is whole or not there; the manifest comes last, and keeps what it had of other
    seeds and sizes.
    """
    folder, made = world.folder, 0
    told = hashlib.sha256(json.dumps(to_dict(world.config)).encode()).hexdigest()[:8]
    kind = f"{told}-{config.seed}-{config.frames}x{config.size}-{config.fps:g}"
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        rows = _rows(folder / MANIFEST, told)
        for number in range(config.clips):
            path = folder / "clips" / f"{kind}-{number:06d}.mp4"
            scene, shown = world.numbered(config.seed, number, config.frames)
            if not path.exists():
                clip = render(scene, config.frames, config.size)
                video = to_signed(torch.from_numpy(clip.video).movedim(-1, 0)[None])
                save_video(video, path, fps=config.fps, crf=CRF)
                made += 1
            rows[f"clips/{path.name}"] = {"caption": scene.caption, **shown._asdict()}
            on_clip(number + 1)
        lines = (json.dumps({"path": path} | row) + "\n" for path, row in rows.items())
        write_atomically(folder / MANIFEST, "".join(lines))
    return made


def _rows(manifest: Path, world: str) -> dict[str, dict[str, str]]:
    """What was rendered of this world before, with other settings perhaps, by path."""
    if not manifest.is_file():
        return {}
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    return {path: row for row in rows if (path := row.pop("path")).startswith(f"clips/{world}-")}
