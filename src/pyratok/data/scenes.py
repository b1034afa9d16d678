"""Clips with exact truth: cut-out objects act over a background, described in full before a pixel is drawn.

    Scene ── background ──────────────► frames ──┐
          └─ objects, back to front ─► sprites ──┴► render ─► CaptionedClip: video, caption, masks, intervals

Lengths are parts of the frame's side, so that a scene can be drawn at any size; times are frames.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pyratok.data.opencv import opencv
from pyratok.data.sources import ClipSource, paste, premultiplied, shrink

MIN_ACTION_FRAMES = 5
"""In shorter clips there is no time for anything to happen: objects stay."""

# Of an animation this many pictures are kept, evenly, and each is shown for two frames: hundreds of animations then
# fit in memory and need not be decoded for every clip.
MAX_PICTURES = 12
PICTURE_FRAMES = 2

_DIRECTIONS = {
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
    "up": (0, -1),
    "down": (0, 1),
}


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Centre ``x, y`` and longer side ``size`` in parts of the frame's side, ``angle`` in radians, ``opacity``."""

    x: float
    y: float
    size: float
    angle: float = 0.0
    opacity: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Motion:
    """From one pose to another, evenly, over the frames ``[start, stop)`` of ``interval``.

    Frame ``start - 1`` is the last one in the first pose, frame ``stop - 1`` the first one in the last pose: the
    interval holds the frames that differ from the one before. ``hops`` of ``hop_height`` come on top.
    """

    interval: tuple[int, int]
    first: Pose
    last: Pose
    hops: int = 0
    hop_height: float = 0.0

    def pose(self, frame: int) -> Pose:
        start, stop = self.interval
        progress = min(max((frame + 1 - start) / (stop - start), 0.0), 1.0)
        a, b = self.first, self.last
        hop = self.hop_height * abs(math.sin(math.pi * self.hops * progress))
        return Pose(
            x=a.x + (b.x - a.x) * progress,
            y=a.y + (b.y - a.y) * progress - hop,
            size=a.size + (b.size - a.size) * progress,
            angle=a.angle + (b.angle - a.angle) * progress,
            opacity=a.opacity + (b.opacity - a.opacity) * progress,
        )


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """A named sprite and what it does; ``first_picture`` is where its animation begins, if it has one."""

    noun: str
    sprite: Path
    verb: str
    motion: Motion
    first_picture: int = 0
    seen: bool = True


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All of a clip but its size: background with the seed it is drawn from, objects from back to front, caption."""

    background: ClipSource
    background_seed: int
    objects: tuple[SceneObject, ...]
    caption: str


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectTruth:
    """What is known of one object: ``masks`` bool ``[T, S, S]``, where more than half of what is seen is the object.

    ``interval``: frames ``[start, stop)`` of the action; ``seen``: may training name it?
    """

    noun: str
    verb: str
    interval: tuple[int, int]
    masks: np.ndarray
    seen: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class CaptionedClip:
    """``video`` uint8 ``[T, S, S, 3]``, a caption (empty where nothing is known), objects from back to front."""

    video: np.ndarray
    caption: str
    objects: tuple[ObjectTruth, ...] = ()


def render(scene: Scene, frames: int, size: int) -> CaptionedClip:
    """Draw a scene. Raises ValueError where an action does not lie within the ``frames``, or a file is unreadable."""
    for item in scene.objects:
        start, stop = item.motion.interval
        if not 0 <= start < stop <= frames:
            raise ValueError(f"{item.noun} {item.verb} in frames {start}:{stop} of a clip of {frames}")
    video = scene.background.sample(np.random.default_rng(scene.background_seed), frames, size)
    visible = np.zeros((len(scene.objects), frames, size, size), np.uint8)
    for index, item in enumerate(scene.objects):
        pictures = _scaled_pictures(item, size)
        for t in range(frames):
            pose = item.motion.pose(t)
            picture = pictures(t)
            if pose.opacity < 1:
                picture = (picture * pose.opacity).round().astype(np.uint8)
            alpha = paste(video[t], picture, _placement(pose, picture.shape[:2], size))
            covered = visible[:index, t] * (255 - alpha.astype(np.uint16)) + 127
            visible[:index, t] = covered // 255
            visible[index, t] = alpha
    objects = tuple(
        ObjectTruth(
            noun=item.noun,
            verb=item.verb,
            interval=item.motion.interval,
            masks=visible[index] > 127,
            seen=item.seen,
        )
        for index, item in enumerate(scene.objects)
    )
    return CaptionedClip(video=video, caption=scene.caption, objects=objects)


def perform(verb: str, rest: Pose, sprite: Path, frames: int, rng: np.random.Generator) -> Motion:
    """How an object does what ``verb`` (of :data:`pyratok.data.phrases.VERBS`) says, in a clip of ``frames``.

    ``rest`` is where and how large it is when it does nothing; moving along an axis overrides it there.
    """
    if verb == "stays":
        return Motion(interval=(0, frames), first=rest, last=rest)
    if frames < MIN_ACTION_FRAMES:
        raise ValueError(f"an object that {verb} needs {MIN_ACTION_FRAMES} frames, got {frames}")
    what, direction = verb.split()[0], verb.split()[-1]
    interval = _interval(what, frames, rng)
    first = last = rest
    hops, hop_height = 0, 0.0
    match what:
        case "enters":
            first = _outside(rest, direction, sprite)
        case "leaves":
            last = _outside(rest, direction, sprite)
        case "moves":
            first, last = _crossing(rest, direction, sprite, rng)
        case "grows":
            first = replace(rest, size=rest.size * rng.uniform(0.35, 0.6))
        case "shrinks":
            last = replace(rest, size=rest.size * rng.uniform(0.35, 0.6))
        case "turns":
            turn = rng.uniform(math.pi / 2, 2 * math.pi) * rng.choice([-1, 1])
            last = replace(rest, angle=rest.angle + turn)
        case "bounces":
            # At least four frames for each, so that the way up and down is seen.
            hops = int(rng.integers(1, max(1, (interval[1] - interval[0]) // 4) + 1))
            hop_height = rng.uniform(0.15, 0.3)
            first = last = replace(rest, y=max(rest.y, min(0.5 * rest.size + hop_height, 0.8)))
        case "appears":
            first = replace(rest, opacity=0.0)
        case "disappears":
            last = replace(rest, opacity=0.0)
        case _:
            raise ValueError(f"no object can do {verb!r}")
    return Motion(interval=interval, first=first, last=last, hops=hops, hop_height=hop_height)


class Plain:
    """A still background of one colour, or of two that run into each other."""

    def sample(self, rng: np.random.Generator, frames: int, size: int) -> np.ndarray:
        colours = rng.integers(0, 256, (2, 3)).astype(np.float64)
        if rng.random() < 0.5:
            colours[1] = colours[0]
        angle = rng.uniform(0, 2 * math.pi)
        y, x = np.mgrid[:size, :size] / size - 0.5
        ramp = (0.5 + (x * math.cos(angle) + y * math.sin(angle)) / math.sqrt(2))[..., None]
        picture = (colours[0] + (colours[1] - colours[0]) * ramp).round().astype(np.uint8)
        return np.repeat(picture[None], frames, axis=0)


@functools.lru_cache(maxsize=1024)
def read_sprite(path: Path) -> tuple[np.ndarray, ...]:
    """The pictures of a still or animated sprite as premultiplied RGBA uint8 ``[h, w, 4]``, cut to what is visible.

    Animations (WebP, APNG) need OpenCV 4.11; an older one gives the first picture. ValueError where there is nothing
    to be seen or read.
    """
    cv2 = opencv()

    read, pictures = cv2.imreadmulti(os.fspath(path), flags=cv2.IMREAD_UNCHANGED)
    if not read:
        pictures = [cv2.imread(os.fspath(path), cv2.IMREAD_UNCHANGED)]
    if any(picture is None or picture.ndim != 3 for picture in pictures):
        raise ValueError(f"{path}: not a readable colour image")
    kept = np.stack([premultiplied(p) for p in pictures[:: math.ceil(len(pictures) / MAX_PICTURES)]])
    rows, columns = (np.flatnonzero(kept[..., 3].any(axis=axes)) for axes in ((0, 2), (0, 1)))
    if not len(rows):
        raise ValueError(f"{path}: every pixel is transparent")
    return tuple(kept[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy())


def _scaled_pictures(item: SceneObject, size: int) -> Callable[[int], np.ndarray]:
    """Function from the frame to the picture shown, not larger than the object ever gets."""
    pictures = read_sprite(item.sprite)
    longest = size * max(item.motion.first.size, item.motion.last.size)
    scale = longest / max(pictures[0].shape[:2])

    @functools.cache
    def scaled(index: int) -> np.ndarray:
        return shrink(pictures[index], scale) if scale < 1 else pictures[index]

    return lambda frame: scaled((item.first_picture + frame // PICTURE_FRAMES) % len(pictures))


def _placement(pose: Pose, shape: tuple[int, ...], size: int) -> np.ndarray:
    """Matrix ``[2, 3]`` from pixels of a picture of ``shape`` (h, w) to pixels of the frame."""
    height, width = shape
    scale = size * pose.size / max(shape)
    cos, sin = scale * math.cos(pose.angle), scale * math.sin(pose.angle)
    linear = np.array([[cos, -sin], [sin, cos]])
    # OpenCV counts from the middle of the first pixel.
    target, middle = size * np.array([pose.x, pose.y]) - 0.5, (np.array([width, height]) - 1) / 2
    return np.column_stack([linear, target - linear @ middle])


def _half_extent(pose: Pose, sprite: Path) -> tuple[float, float]:
    """Half of the width and of the height that an object covers."""
    height, width = np.array(read_sprite(sprite)[0].shape[:2]) / max(read_sprite(sprite)[0].shape[:2])
    cos, sin = abs(math.cos(pose.angle)), abs(math.sin(pose.angle))
    return 0.5 * pose.size * (width * cos + height * sin), 0.5 * pose.size * (width * sin + height * cos)


def _outside(pose: Pose, side: str, sprite: Path) -> Pose:
    """The pose moved just beyond that side of the frame."""
    half_x, half_y = _half_extent(pose, sprite)
    dx, dy = _DIRECTIONS[side]
    if dx:
        return replace(pose, x=-half_x if dx < 0 else 1 + half_x)
    return replace(pose, y=-half_y if dy < 0 else 1 + half_y)


def _crossing(pose: Pose, direction: str, sprite: Path, rng: np.random.Generator) -> tuple[Pose, Pose]:
    """Two poses along an axis, both as far inside the frame as the object's size allows."""
    dx, dy = _DIRECTIONS[direction]
    margin = min(_half_extent(pose, sprite)[0 if dx else 1], 0.4)
    way = (1 - 2 * margin) * rng.uniform(0.6, 1.0)
    low = rng.uniform(margin, 1 - margin - way)
    ends = (low, low + way) if dx + dy > 0 else (low + way, low)
    first, last = (replace(pose, x=end) if dx else replace(pose, y=end) for end in ends)
    return first, last


def _interval(what: str, frames: int, rng: np.random.Generator) -> tuple[int, int]:
    """When it happens: frame 0 always shows what was before; coming early and going late keep the object in sight."""
    fades = what in ("appears", "disappears")
    shortest, longest = (2, max(2, frames // 4)) if fades else (max(3, frames // 3), frames - 1)
    length = int(rng.integers(shortest, longest + 1))
    earliest, latest = 1, frames - length
    if what in ("enters", "appears"):
        latest = min(latest, frames // 2)
    if what in ("leaves", "disappears"):
        earliest = min(latest, frames // 2)
    start = int(rng.integers(earliest, latest + 1))
    return start, start + length
