"""Sprites, photographs and clips drawn by hand: material for training data without files of anyone's."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import torch

from pyratok.data.video_io import save_video


def drawing(kind: int, side: int = 40, colour: tuple[int, int, int] = (40, 60, 220)) -> np.ndarray:
    """A shape on transparent ground, with an empty border, as OpenCV stores it: blue, green, red, alpha."""
    canvas = np.zeros((side, side, 4), np.uint8)
    ink, c, r = (*colour, 255), side // 2, side // 2 - 4
    match kind % 4:
        case 0:
            cv2.circle(canvas, (c, c), r, ink, -1)
        case 1:
            angles = np.arange(10) * math.pi / 5
            radii = np.where(np.arange(10) % 2, r * 0.4, r)
            points = np.stack([c + radii * np.sin(angles), c - radii * np.cos(angles)], axis=1)
            cv2.fillPoly(canvas, [points.round().astype(np.int32)], ink)
        case 2:
            cv2.line(canvas, (4, 4), (side - 5, side - 5), ink, 7)
            cv2.line(canvas, (4, side - 5), (side - 5, 4), ink, 7)
        case 3:
            cv2.rectangle(canvas, (4, 4), (side - 5, side - 5), ink, -1)
    return canvas


def save_drawing(path: Path, kind: int = 3) -> Path:
    cv2.imwrite(str(path), drawing(kind, colour=(30 * kind % 256, 200, 250 - 20 * kind)))
    return path


def save_photo(path: Path, seed: int = 0) -> Path:
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(noise, (128, 96), interpolation=cv2.INTER_CUBIC))
    return path


def save_clip(path: Path, seed: int = 0) -> Path:
    blocks = torch.rand(3, 8, 6, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    save_video(blocks.repeat_interleave(8, 2).repeat_interleave(8, 3).unsqueeze(0), path, fps=12.0)
    return path
