"""A world of four drawn things before two drawn places."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pyratok.data.manifests import gather
from pyratok.data.world import World, WorldConfig, make_world

NOUNS = ("moon", "cross", "tent", "ring")
CONFIG = WorldConfig(
    nouns=NOUNS,
    places=("a photograph of sand", "a photograph of a pond"),
    colours=("red", "green", "blue"),
    held_out=0.25,
)


def world_media(folder: Path) -> Path:
    """Things of clearly different outlines, captioned, and two photographs."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[:64, :64] / 32 - 1
    outlines = {
        "moon": x**2 + y**2 < 0.8,
        "cross": np.minimum(abs(x), abs(y)) < 0.3,
        "tent": abs(x) < (y + 1) / 2,
        "ring": abs(np.hypot(x, y) - 0.75) < 0.2,
    }
    for noun, inside in outlines.items():
        shade = (120 + 100 * np.sin(6 * y + 3 * x)).astype(np.uint8)
        picture = np.dstack([shade, shade, shade, inside.astype(np.uint8) * 255])
        cv2.imwrite(str(folder / f"{noun}.png"), picture)
        (folder / f"{noun}.txt").write_text(noun)
    rng = np.random.default_rng(0)
    for name, caption, colour in (("a", CONFIG.places[0], (120, 180, 200)), ("b", CONFIG.places[1], (160, 120, 90))):
        coarse = rng.integers(-30, 31, (6, 8, 3))
        photo = np.clip(np.array(colour) + coarse, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{name}.jpg"), cv2.resize(photo, (200, 150), interpolation=cv2.INTER_CUBIC))
        (folder / f"{name}.txt").write_text(caption)
    return folder


def tiny_world(folder: Path, config: WorldConfig = CONFIG) -> World:
    return make_world(folder, gather([world_media(folder / "media")]), config)
