"""A small world of which everything is known: one coloured thing goes one way before one place, and a caption says so.

```
FOLDER/world.json             nouns, colours, ways, captions of the places, share of combinations that are held out
FOLDER/sprites/red frog.png   every noun in every colour, RGBA
FOLDER/places/00.png          what is behind them, one picture per caption
```

Text to video is asked for combinations of noun, colour and way that no training clip has, so that it is made and not
remembered; each word of them is met in training. What can be seen, its colour and its way follow from the pixels alone
(:mod:`pyratok.eval.world_truth`).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyratok.config import from_dict, to_dict
from pyratok.data.manifests import Media, gather
from pyratok.data.opencv import opencv
from pyratok.data.phrases import Deed, deed_phrase, is_plural
from pyratok.data.scenes import CaptionedClip, Motion, Pose, Scene, SceneObject, read_sprite, render
from pyratok.data.sources import photo_pyramid
from pyratok.data.words import split_nouns
from pyratok.files import write_atomically

WORLD = "world.json"
SIDE = 128
"""Pixels of a place, and of the longer side of a thing; clips are smaller."""
TINTS = {
    "red": (225, 40, 45),
    "orange": (245, 140, 30),
    "yellow": (245, 220, 50),
    "green": (50, 170, 70),
    "blue": (50, 95, 220),
    "purple": (150, 70, 190),
    "pink": (245, 130, 190),
    "white": (250, 250, 250),
}
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Where a thing goes, as steps in x and y."""
SHADE = 0.35
"""How bright the darkest part of a thing is, of its tint."""


class Combination(NamedTuple):
    """What a clip shows, but for the place."""

    noun: str
    colour: str
    way: str


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """``places``: a caption each. ``held_out``: share of the combinations that training never shows. ``sizes``: range
    of a thing's longer side in parts of the frame's."""

    nouns: tuple[str, ...]
    places: tuple[str, ...]
    colours: tuple[str, ...] = ("red", "yellow", "green", "blue", "purple", "white")
    ways: tuple[str, ...] = tuple(WAYS)
    held_out: float = 0.2
    sizes: tuple[float, float] = (0.25, 0.33)

    def __post_init__(self) -> None:
        for name, known in (("colours", TINTS), ("ways", WAYS)):
            if not getattr(self, name) or not set(getattr(self, name)) <= known.keys():
                raise ValueError(f"{name} are one or more of {', '.join(known)}, got {list(getattr(self, name))}")
        if not self.nouns or not self.places:
            raise ValueError("a world needs a noun and a place, one or more of each")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is a share in [0, 1), got {self.held_out}")
        if not 0 < self.sizes[0] <= self.sizes[1] <= 1 / 3:  # more would hide the place most of the time
            raise ValueError(f"sizes are parts of the frame's side in (0, 1/3], smallest first, got {self.sizes}")
        if len(set(self.nouns)) < len(self.nouns) or len(set(self.places)) < len(self.places):
            raise ValueError("a noun or a place is named twice")
        shown = [set(values) for values in zip(*self.combinations(held_out=False), strict=True)]
        for name, met in zip(("nouns", "colours", "ways"), shown or [set[str]()] * 3, strict=True):
            if absent := set(getattr(self, name)) - met:
                raise ValueError(f"no training clip would show {', '.join(sorted(absent))}; lower held_out")

    def combinations(self, *, held_out: bool) -> list[Combination]:
        """All that are held out, or all that are not, in a fixed order."""
        every = itertools.starmap(Combination, itertools.product(self.nouns, self.colours, self.ways))
        return [combination for combination in every if self.is_held_out(combination) == held_out]

    def is_held_out(self, combination: Combination) -> bool:
        digest = hashlib.sha256(" ".join(combination).encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.held_out * 2**64


class World:
    """A world on disk, ready to be drawn. Raises ValueError for a folder that is none, or not a whole one."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self.config = from_dict(WorldConfig, json.loads((self.folder / WORLD).read_text()))
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder}: not a world of pyratok render ({error})") from None
        for noun, colour in itertools.product(self.config.nouns, self.config.colours):
            read_sprite(self.sprite(noun, colour))
        for number in range(len(self.config.places)):
            photo_pyramid(self.place(number))

    def sprite(self, noun: str, colour: str) -> Path:
        return self.folder / "sprites" / f"{colour} {noun}.png"

    def place(self, number: int) -> Path:
        return self.folder / "places" / f"{number:02d}.png"

    def draw(self, rng: np.random.Generator, *, held_out: bool = False) -> Combination:
        """Any combination of the one kind. Raises ValueError where there is none."""
        if not (found := self._combinations(held_out)):
            raise ValueError(f"{self.folder}: no combination is held out; make the world with a larger held_out")
        return found[int(rng.integers(len(found)))]

    @functools.cache  # noqa: B019 - a world lives as long as its process
    def _combinations(self, held_out: bool) -> list[Combination]:
        return self.config.combinations(held_out=held_out)

    def caption(self, rng: np.random.Generator, shown: Combination, place: int) -> str:
        """Worded in one of many ways: "a red frog slides to the left in front of a coral reef"."""
        deed = Deed(f"{shown.colour} {shown.noun}", f"moves {shown.way}", 0, 1)
        return f"{deed_phrase(rng, deed)} in front of {place_phrase(self.config.places[place])}"

    def scene(self, rng: np.random.Generator, shown: Combination, frames: int) -> Scene:
        """The thing crosses the whole frame in the course of the clip, which has two ``frames`` at least."""
        place, size = int(rng.integers(len(self.config.places))), float(rng.uniform(*self.config.sizes))
        dx, dy = WAYS[shown.way]
        rest = Pose(x=rng.uniform(size / 2, 1 - size / 2), y=rng.uniform(size / 2, 1 - size / 2), size=size)
        ends = [0.5 - sign * (0.5 - size / 2) for sign in (1, -1)]
        if dx + dy < 0:
            ends.reverse()
        first, last = (replace(rest, x=end) if dx else replace(rest, y=end) for end in ends)
        motion = Motion(interval=(1, frames), first=first, last=last)
        sprite = self.sprite(shown.noun, shown.colour)
        item = SceneObject(noun=f"{shown.colour} {shown.noun}", sprite=sprite, verb=f"moves {shown.way}", motion=motion)
        return Scene(
            background=Still(self.place(place)),
            background_seed=0,
            objects=(item,),
            caption=self.caption(rng, shown, place),
        )

    def numbered(self, seed: int, number: int, frames: int, *, held_out: bool = False) -> tuple[Scene, Combination]:
        """The ``number``-th scene of all that ``seed`` gives, and what it shows."""
        rng = np.random.default_rng((seed, number, held_out))
        shown = self.draw(rng, held_out=held_out)
        return self.scene(rng, shown, frames), shown

    def clip(
        self, seed: int, number: int, frames: int, size: int, *, held_out: bool = False
    ) -> tuple[CaptionedClip, Combination]:
        """As :meth:`numbered`, drawn."""
        scene, shown = self.numbered(seed, number, frames, held_out=held_out)
        return render(scene, frames, size), shown


class Still:
    """One picture, square, for as long as a clip lasts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def sample(self, rng: np.random.Generator, frames: int, size: int) -> np.ndarray:
        cv2 = opencv()
        picture = cv2.resize(photo_pyramid(self.path)[0], (size, size), interpolation=cv2.INTER_AREA)
        return np.repeat(picture[None], frames, axis=0)


def make_world(folder: Path, media: Media, config: WorldConfig) -> World:
    """Write a world of the sprites and photographs of ``media`` into ``folder``; its description comes last.

    Raises ValueError for nouns of the ``config`` that no sprite shows, and places of which there is no photograph.
    """
    files, photos = split_nouns(media.sprites)[0], {photo.caption: photo.path for photo in media.photos}
    for what, wanted, known in (("sprite shows", config.nouns, files), ("photograph is", config.places, photos)):
        if unknown := [name for name in wanted if name not in known]:
            raise ValueError(f"no {what} {', '.join(unknown[:5])}, or it is not one that training may name")
    cv2 = opencv()
    for part in ("sprites", "places"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for noun, colour in itertools.product(config.nouns, config.colours):
        picture = tinted(read_sprite(files[noun][0])[0], TINTS[colour])
        write_atomically(folder / "sprites" / f"{colour} {noun}.png", _png(picture[..., [2, 1, 0, 3]]))
    for number, caption in enumerate(config.places):
        photo = photo_pyramid(photos[caption])[0]
        side = min(photo.shape[:2])
        top, left = ((length - side) // 2 for length in photo.shape[:2])
        square = cv2.resize(photo[top : top + side, left : left + side], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        write_atomically(folder / "places" / f"{number:02d}.png", _png(square[..., ::-1]))
    write_atomically(folder / WORLD, json.dumps(to_dict(config), indent=1) + "\n")
    return World(folder)


def open_or_make(
    folder: Path,
    roots: Sequence[str | os.PathLike[str]],
    *,
    things: int = 16,
    places: int = 8,
    nouns: Sequence[str] = (),
    named_places: Sequence[str] = (),
    held_out: float = 0.2,
) -> World:
    """The world in ``folder``, or a new one there. Raises ValueError where the one there is not what is asked for."""
    if (folder / WORLD).exists():
        world = World(folder)
        config = world.config
        asked = {"things": len(nouns) or things, "places": len(named_places) or places, "held_out": held_out}
        there = {"things": len(config.nouns), "places": len(config.places), "held_out": config.held_out}
        differs = any(
            names and tuple(names) != had for names, had in ((nouns, config.nouns), (named_places, config.places))
        )
        if asked != there or differs:
            raise ValueError(
                f"{folder} holds another world: {there}, nouns {', '.join(config.nouns)}, places "
                f"{'; '.join(config.places)}; choose another --out"
            )
        return world
    media = gather(roots)
    return make_world(folder, media, choose(media, things, places, nouns, named_places, held_out))


def choose(
    media: Media,
    things: int,
    places: int,
    nouns: Sequence[str] = (),
    named_places: Sequence[str] = (),
    held_out: float = 0.2,
) -> WorldConfig:
    """``nouns``, or as many ``things`` of one word whose drawing fills its frame well, and the photographs captioned
    ``named_places``, or as many with a caption of their own.

    Which of those there are follows from their names alone. Raises ValueError where there are too few.
    """
    sprites = {} if nouns else split_nouns(media.sprites)[0]
    plain = list(nouns) or [noun for noun, files in sprites.items() if _is_plain(noun, files[0])]
    captions = [photo.caption for photo in media.photos if photo.caption]
    known = [caption for caption in dict.fromkeys(captions) if captions.count(caption) == 1]
    known = list(named_places) or known
    for what, wanted, there in (
        ("things", len(nouns) or things, plain),
        ("places", len(named_places) or places, known),
    ):
        if len(there) < wanted:
            raise ValueError(
                f"{wanted} {what} are wanted, and only {len(there)} are there; give more data, or ask fewer"
            )
    return WorldConfig(
        nouns=tuple(nouns) or _by_digest(plain)[:things],
        places=tuple(named_places) or _by_digest(known)[:places],
        held_out=held_out,
    )


def place_phrase(caption: str) -> str:
    """A place as a sentence names it: "a horse" for "a photograph of a horse", "the dune" for "a photograph: dune"."""
    photograph, colon, shown = caption.partition(": ")
    if colon and photograph == "a photograph":
        return f"the {shown}"
    return caption.removeprefix("a photograph of ")


def tinted(picture: np.ndarray, tint: Sequence[int]) -> np.ndarray:
    """A premultiplied RGBA picture, not larger than :data:`SIDE`, in shades of one colour, RGBA uint8, not
    premultiplied."""
    cv2 = opencv()
    scale = SIDE / max(picture.shape[:2])
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    alpha = picture[..., 3].astype(np.float32)
    light = picture[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / np.maximum(alpha, 1.0)
    opaque = light[alpha > 127]
    low, high = np.percentile(opaque, (5, 95)) if opaque.size else (0.0, 1.0)
    shade = SHADE + (1 - SHADE) * np.clip((light - low) / max(high - low, 1e-3), 0, 1)
    colour = (shade[..., None] * np.array(tint, np.float32)).round().clip(0, 255)
    return np.dstack([colour, alpha]).astype(np.uint8)


def _is_plain(noun: str, path: Path) -> bool:
    """Can it be told by its outline, in any colour?"""
    if " " in noun or "-" in noun or is_plural(noun) or noun in TINTS:
        return False
    try:
        pictures = read_sprite(path)
    except ValueError:
        return False
    alpha = pictures[0][..., 3]
    squareness = min(alpha.shape) / max(alpha.shape)
    return len(pictures) == 1 and squareness > 0.6 and 0.35 < float((alpha > 127).mean()) < 0.85


def _by_digest(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: hashlib.sha1(name.encode()).hexdigest()))


def _png(picture: np.ndarray) -> bytes:
    """``picture`` in OpenCV's order of colours."""
    written, content = opencv().imencode(".png", np.ascontiguousarray(picture))
    assert written
    return bytes(content)
