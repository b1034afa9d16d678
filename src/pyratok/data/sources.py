"""Where training clips come from: footage, camera paths over photographs, sprites in motion over photographs.

A source turns a random generator into one clip, uint8 ``[T, S, S, 3]``. It keeps no state between clips, so that
clip i of a run is a pure function of (seed, i) and a resumed run sees the clips an uninterrupted one would have seen.
"""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from pyratok.data.frame_store import FrameStore
from pyratok.data.manifests import report_broken
from pyratok.data.opencv import opencv
from pyratok.data.video_io import VideoError

ItemT = TypeVar("ItemT")
ImageT = TypeVar("ImageT")

# Longer photographs are read at this size: crops cover a few hundred pixels, and a camera's 50 megabytes each do not
# fit in memory by the hundred.
MAX_PHOTO_SIDE = 1600


class ClipSource(Protocol):
    def sample(self, rng: np.random.Generator, frames: int, size: int) -> np.ndarray:
        """One clip, uint8 ``[frames, size, size, 3]``."""
        ...


class Footage:
    """Random crops, in space and time, of real videos.

    A crop covers ``zoom * size`` source pixels, ``zoom`` log-uniform in ``zoom_range``, so that textures are seen
    at and below their native scale; frames are taken at steps of 1, sometimes 2; clips are mirrored half of the time.
    A video is drawn with the square root of its length, so that one long film does not drown the rest.

    Videos that cannot be read are left out with a warning; ValueError when they are more than half.
    """

    def __init__(self, videos: Sequence[Path], store: FrameStore, zoom_range: tuple[float, float] = (1.0, 2.0)) -> None:
        if not videos:
            raise ValueError("no videos to sample from")
        lengths: dict[Path, int] = {}
        broken: dict[Path, str] = {}
        for video in videos:
            try:
                lengths[video] = len(store.frames(video))
            except VideoError as error:
                broken[video] = str(error).removeprefix(f"{video}: ")
        report_broken("videos", len(videos), broken)
        self.videos, self.store, self.zoom_range = list(lengths), store, zoom_range
        roots = np.sqrt(np.array(list(lengths.values()), dtype=np.float64))
        self.weights = roots / roots.sum()

    def sample(self, rng: np.random.Generator, frames: int, size: int) -> np.ndarray:
        return self.crop(self.draw(rng), rng, frames, size)

    def draw(self, rng: np.random.Generator) -> Path:
        """A random video."""
        return self.videos[rng.choice(len(self.videos), p=self.weights)]

    def crop(
        self, video: Path, rng: np.random.Generator, frames: int, size: int, *, mirrored: bool = True
    ) -> np.ndarray:
        """A random clip of one video; ``mirrored`` says whether its mirror image will do as well."""
        cv2 = opencv()

        clip = self.store.frames(video)
        step = 2 if rng.random() < 0.15 and len(clip) > 2 * frames else 1
        first = int(rng.integers(max(1, len(clip) - step * (frames - 1))))
        times = np.minimum(first + step * np.arange(frames), len(clip) - 1)
        low, high = np.log(self.zoom_range)
        side = min(round(size * math.exp(rng.uniform(low, high))), *clip.shape[1:3])
        middle = clip[times[frames // 2]]
        top, left = textured_corner(middle, side, rng)
        crop = [clip[t, top : top + side, left : left + side] for t in times]
        if side != size:
            method = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
            crop = [cv2.resize(frame, (size, size), interpolation=method) for frame in crop]
        return mirror(np.stack(crop), rng) if mirrored else np.stack(crop)


class PhotoPaths:
    """A camera moves over a photograph: pan, zoom, rotation and shear, smooth in time, with real texture."""

    def __init__(self, photos: Sequence[Path], zoom_range: tuple[float, float] = (0.8, 4.0)) -> None:
        if not photos:
            raise ValueError("no photographs to sample from")
        self.photos, self.zoom_range = list(photos), zoom_range

    def sample(self, rng: np.random.Generator, frames: int, size: int) -> np.ndarray:
        cv2 = opencv()

        levels = draw(self.photos, photo_pyramid, rng)
        low, high = np.log(self.zoom_range)
        zoom = min(math.exp(rng.uniform(low, high)), min(levels[0].shape[:2]) / size)
        # The pyramid level just finer than the wanted scale keeps warping free of aliasing.
        level = min(int(max(0.0, math.log2(zoom))), len(levels) - 1)
        photo = levels[level]
        zoom /= 2**level
        height, width = photo.shape[:2]
        time = np.linspace(-0.5, 0.5, frames)
        still = rng.random() < 0.1
        reach = 0.0 if still else size * rng.choice([0.05, 0.2, 0.6]) * (frames - 1) / 16
        direction = rng.uniform(0, 2 * math.pi)
        strength = 0.0 if still else rng.uniform(0, 0.03)
        wobble = strength * np.sin(2 * math.pi * (time * rng.uniform(0.5, 2) + rng.random()))
        scale = zoom * np.exp((0.0 if still else rng.normal(0, 0.12)) * time + wobble)
        angle = rng.uniform(-0.2, 0.2) + (0.0 if still else rng.normal(0, 0.12)) * time
        shear = (0.0 if still else rng.normal(0, 0.05)) * time
        side = round(size * zoom)
        top, left = textured_corner(photo, min(side, height, width), rng)
        x = left + side / 2 + reach * zoom * math.cos(direction) * time
        y = top + side / 2 + reach * zoom * math.sin(direction) * time
        clip = np.empty((frames, size, size, 3), np.uint8)
        half = (size - 1) / 2
        for t in range(frames):
            cos, sin = scale[t] * math.cos(angle[t]), scale[t] * math.sin(angle[t])
            linear = np.array([[cos, -sin + shear[t] * cos], [sin, cos + shear[t] * sin]])
            offset = np.array([x[t], y[t]]) - linear @ np.array([half, half])
            matrix = np.column_stack([linear, offset])
            cv2.warpAffine(
                photo,
                matrix,
                (size, size),
                dst=clip[t],
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REFLECT_101,
            )
        return mirror(clip, rng)


class Sprites:
    """One to three cut-out objects move over another source: hard edges, occlusion, independent motion."""

    def __init__(self, sprites: Sequence[Path], background: ClipSource) -> None:
        if not sprites:
            raise ValueError("no sprites to sample from")
        self.sprites, self.background = list(sprites), background

    def sample(self, rng: np.random.Generator, frames: int, size: int) -> np.ndarray:
        clip = self.background.sample(rng, frames, size)
        for _ in range(int(rng.integers(1, 4))):
            sprite = draw(self.sprites, read_rgba, rng)
            scale = size * rng.uniform(0.25, 0.8) / max(sprite.shape[:2])
            if scale < 1:
                sprite = shrink(sprite, scale)
            height, width = sprite.shape[:2]
            start, stop = rng.uniform(0, size, (2, 2))
            path = start + (stop - start) * rng.uniform(0, 1) * np.linspace(0, 1, frames)[:, None]
            spin = rng.normal(0, 0.3) * np.linspace(0, 1, frames)
            for t in range(frames):
                cos, sin = math.cos(spin[t]), math.sin(spin[t])
                linear = np.array([[cos, -sin], [sin, cos]])
                matrix = np.column_stack([linear, path[t] - linear @ np.array([width / 2, height / 2])])
                paste(clip[t], sprite, matrix)
        return clip


def paste(frame: np.ndarray, sprite: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Lay a sprite, premultiplied RGBA uint8 ``[h, w, 4]``, over ``frame``, uint8 ``[S, S, 3]``, in place.

    ``matrix`` ``[2, 3]`` brings sprite coordinates (x, y) to those of the frame. Returns the sprite's alpha there,
    uint8 ``[S, S]``.
    """
    cv2 = opencv()

    warped = cv2.warpAffine(sprite, matrix, frame.shape[1::-1], flags=cv2.INTER_LINEAR)
    alpha = warped[..., 3:].astype(np.uint16)
    # Colours are premultiplied when read, so that edges carry no fringe of the hidden background.
    frame[:] = np.minimum(warped[..., :3] + (frame * (255 - alpha) + 127) // 255, 255).astype(np.uint8)
    return np.asarray(warped[..., 3])


def textured_corner(image: np.ndarray, side: int, rng: np.random.Generator, tries: int = 3) -> tuple[int, int]:
    """Corner of a ``side x side`` crop: the one with the most contrast of a few random ones, flat sky being easy."""
    corners = [tuple(int(rng.integers(n - side + 1)) for n in image.shape[:2]) for _ in range(tries)]
    if rng.random() < 0.25:
        top, left = corners[0]
    else:
        top, left = max(corners, key=lambda c: image[c[0] : c[0] + side : 4, c[1] : c[1] + side : 4, 1].std())
    return top, left


def draw(items: Sequence[ItemT], read: Callable[[ItemT], ImageT], rng: np.random.Generator) -> ImageT:
    """A random image; one that cannot be read is passed over with a warning, ValueError where none can be."""

    def places() -> Iterator[int]:
        yield int(rng.integers(len(items)))
        yield from map(int, rng.permutation(len(items)))

    for place in places():
        try:
            return read(items[place])
        except ValueError as error:
            warnings.warn(f"passed over: {error}", stacklevel=2)
    raise ValueError(f"none of {len(items)} images can be read, the last of them {items[place]}")


def shrink(image: np.ndarray, scale: float) -> np.ndarray:
    """Area-averaged image with sides of ``scale`` times the old ones, at least a pixel."""
    cv2 = opencv()

    fy, fx = (max(scale, 1 / side) for side in image.shape[:2])
    return cv2.resize(image, None, fx=fx, fy=fy, interpolation=cv2.INTER_AREA)


def mirror(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The clip or, half of the time, its mirror image."""
    return np.ascontiguousarray(clip[:, :, ::-1]) if rng.random() < 0.5 else clip


@functools.lru_cache(maxsize=256)
def photo_pyramid(path: Path) -> tuple[np.ndarray, ...]:
    """A photograph as RGB uint8 at scales 1, 1/2, 1/4, ... down to 64 pixels; scale 1 is ``MAX_PHOTO_SIDE`` at most."""
    cv2 = opencv()

    photo = cv2.cvtColor(_read_image(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    if max(photo.shape) > MAX_PHOTO_SIDE:
        photo = shrink(photo, MAX_PHOTO_SIDE / max(photo.shape))
    levels = [photo]
    while min(levels[-1].shape[:2]) >= 128:
        levels.append(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    return tuple(levels)


@functools.lru_cache(maxsize=4096)
def read_rgba(path: Path) -> np.ndarray:
    """An image with alpha as premultiplied RGBA uint8."""
    image = _read_image(path, opencv().IMREAD_UNCHANGED)
    if image.ndim != 3:
        raise ValueError(f"{path}: not a colour image")
    return premultiplied(image)


def _read_image(path: Path, mode: int) -> np.ndarray:
    """As OpenCV reads it; ValueError where it does not."""
    cv2 = opencv()

    try:
        image: np.ndarray | None = cv2.imread(os.fspath(path), mode)
    except cv2.error as error:  # too large
        raise ValueError(f"{path}: not a readable image ({error.err})") from None
    if image is None:
        raise ValueError(f"{path}: not a readable image")
    return image


def premultiplied(image: np.ndarray) -> np.ndarray:
    """RGBA uint8 with colours multiplied by alpha, of an image as OpenCV reads it: BGR(A), 8 or 16 bits."""
    if image.dtype == np.uint16:
        image = (image // 257).astype(np.uint8)
    alpha = image[..., 3:] if image.shape[2] == 4 else np.full_like(image[..., :1], 255)
    rgb = image[..., 2::-1].astype(np.uint16) * alpha // 255
    return np.concatenate([rgb.astype(np.uint8), alpha], axis=2)
