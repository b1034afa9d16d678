"""Rendered clips for language: named objects act over photographs, footage or plain ground, and captions say so."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyratok.data.captioned import MAX_OBJECTS, CaptionedFootage, names_sides
from pyratok.data.frame_store import FrameStore
from pyratok.data.manifests import Entry, Media
from pyratok.data.phrases import VERBS, Deed, describe
from pyratok.data.scenes import (
    MIN_ACTION_FRAMES,
    CaptionedClip,
    Plain,
    Pose,
    Scene,
    SceneObject,
    perform,
    read_sprite,
    render,
)
from pyratok.data.sources import ClipSource, Footage, PhotoPaths, draw, photo_pyramid
from pyratok.data.words import NounIndex, split_nouns, without_nouns

_PLACES = 4
"""An object goes to the one of this many random places that is farthest from the others."""


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """What scenes are made of.

    ``nouns``: "seen" (all that training may show), "unseen", or the nouns themselves. ``objects``: fewest and most in
    a clip. ``sizes``: range of an object's longer side, in parts of the frame's; where objects ``share_room``, over the
    root of their number. ``photos``, ``footage``, ``plain``: weights of the backgrounds; kinds that are not there are
    left out. ``setting``: share of captions that tell the background too.
    """

    nouns: str | tuple[str, ...] = "seen"
    objects: tuple[int, int] = (1, MAX_OBJECTS)
    sizes: tuple[float, float] = (0.25, 0.8)
    share_room: bool = False
    verbs: tuple[str, ...] = VERBS
    photos: float = 0.7
    footage: float = 0.2
    plain: float = 0.1
    photo_zoom: tuple[float, float] = (1.0, 5.0)
    setting: float = 0.2

    def __post_init__(self) -> None:
        if isinstance(self.nouns, str) and self.nouns not in ("seen", "unseen"):
            raise ValueError(f"nouns are 'seen', 'unseen' or a tuple of nouns, got {self.nouns!r}")
        if not 1 <= self.objects[0] <= self.objects[1] <= MAX_OBJECTS:
            raise ValueError(f"a clip has 1 to {MAX_OBJECTS} objects, fewest first, got {self.objects}")
        if not 0 < self.sizes[0] <= self.sizes[1] <= 1:
            raise ValueError(f"sizes are parts of the frame's side in (0, 1], smallest first, got {self.sizes}")
        if not self.verbs or not set(self.verbs) <= set(VERBS):
            raise ValueError(f"unknown verbs {sorted(set(self.verbs) - set(VERBS))}; there are {', '.join(VERBS)}")
        if min(self.photos, self.footage, self.plain) < 0:
            raise ValueError("weights of backgrounds cannot be negative")


class CaptionedScenes:
    """Scenes drawn at random from sprites whose captions name an object.

    Nouns are drawn evenly, then one of the noun's sprites; two objects of a clip never name one another ("face",
    "angry face"). Photographs whose caption names an unseen noun are no background. Sprites that cannot be read are
    passed over with a warning. ValueError where there is no noun to show, or one that no sprite shows.
    """

    def __init__(
        self,
        sprites: Sequence[Entry],
        photos: Sequence[Entry] = (),
        footage: CaptionedFootage | None = None,
        config: SceneConfig | None = None,
    ) -> None:
        self.config = config or SceneConfig()
        self.seen, unseen = split_nouns(sprites)
        self.files = {**self.seen, **unseen}
        chosen = {"seen": self.seen, "unseen": unseen}
        wanted = self.config.nouns
        self.nouns = tuple(chosen[wanted] if isinstance(wanted, str) else wanted)
        if unknown := [noun for noun in self.nouns if noun not in self.files]:
            raise ValueError(f"no sprite shows {', '.join(unknown[:5])}; nouns come from the captions of the sprites")
        if not self.nouns:
            raise ValueError(f"no sprite with a caption shows a noun of kind {wanted!r}; add captioned sprites")
        hidden = NounIndex(unseen)
        self.photos = [photo for photo in photos if not hidden.named_in(photo.caption)]
        self.footage = footage
        weights = {
            "photos": self.config.photos if self.photos else 0.0,
            "footage": self.config.footage if footage else 0.0,
            "plain": self.config.plain,
        }
        # Somewhere the objects have to be, whatever the weights of what is not there.
        weights["plain"] = weights["plain"] if any(weights.values()) else 1.0
        self.backgrounds = {kind: weight / sum(weights.values()) for kind, weight in weights.items()}

    def sample_captioned(self, rng: np.random.Generator, frames: int, size: int) -> CaptionedClip:
        return render(self.scene(rng, frames), frames, size)

    def sample(self, rng: np.random.Generator, frames: int, size: int) -> np.ndarray:
        """The clip alone, uint8 ``[frames, size, size, 3]``."""
        return self.sample_captioned(rng, frames, size).video

    def scene(self, rng: np.random.Generator, frames: int, nouns: Sequence[str] = ()) -> Scene:
        """A random scene for clips of ``frames``; with exactly these ``nouns``, back to front, where they are given."""
        shown = [(noun, self._sprite(rng, noun)) for noun in nouns] or self._draw_sprites(rng)
        objects: list[SceneObject] = []
        centres: list[tuple[float, float]] = []
        crowd = len(shown) ** 0.5 if self.config.share_room else 1.0
        for noun, sprite in shown:
            verb = str(rng.choice(self.config.verbs)) if frames >= MIN_ACTION_FRAMES else "stays"
            rest = _place(rng, rng.uniform(*self.config.sizes) / crowd, centres)
            centres.append((rest.x, rest.y))
            objects.append(
                SceneObject(
                    noun=noun,
                    sprite=sprite,
                    verb=verb,
                    motion=perform(verb, rest, sprite, frames, rng),
                    first_picture=int(rng.integers(len(read_sprite(sprite)))),
                    seen=noun in self.seen,
                )
            )
        background, setting = self._background(rng)
        deeds = [Deed(item.noun, item.verb, *item.motion.interval) for item in objects]
        return Scene(
            background=background,
            background_seed=int(rng.integers(2**32)),
            objects=tuple(objects),
            caption=describe(rng, deeds, setting if rng.random() < self.config.setting else ""),
        )

    def _draw_sprites(self, rng: np.random.Generator) -> list[tuple[str, Path]]:
        count = int(rng.integers(self.config.objects[0], self.config.objects[1] + 1))
        shown: list[tuple[str, Path]] = []
        for _ in range(8 * count):  # a bound: a set of very few nouns may not hold as many that can be told apart
            noun, sprite = draw(self.nouns, lambda noun: (noun, self._sprite(rng, noun)), rng)
            if not any(_name_one_another(noun, other) for other, _ in shown):
                shown.append((noun, sprite))
            if len(shown) == count:
                break
        return shown

    def _sprite(self, rng: np.random.Generator, noun: str) -> Path:
        """One of the files of a noun, readable."""
        if noun not in self.files:
            raise ValueError(f"no sprite shows {noun!r}; nouns come from the captions of the sprites")
        path = self.files[noun][int(rng.integers(len(self.files[noun])))]
        read_sprite(path)
        return path

    def _background(self, rng: np.random.Generator) -> tuple[ClipSource, str]:
        """A source that shows one photograph, video or plain ground, and words for it."""
        kind = rng.choice(list(self.backgrounds), p=list(self.backgrounds.values()))
        if kind == "photos":
            photo = draw(self.photos, _readable_photo, rng)
            return PhotoPaths([photo.path], self.config.photo_zoom), _before(photo.caption)
        if kind == "footage" and self.footage is not None:
            source, captions = self.footage.footage, self.footage.captions
            path = source.draw(rng)
            words = f"while {captions[path]}" if captions[path] and not names_sides(captions[path]) else ""
            return Footage([path], source.store, source.zoom_range), words
        return Plain(), "on a plain background"


def captioned_sources(
    media: Media, store: FrameStore, config: SceneConfig, footage_zoom: tuple[float, float] = (1.0, 2.0)
) -> tuple[CaptionedScenes | None, CaptionedFootage | None]:
    """Scenes and footage for training from gathered media, None where there is nothing to make them of.

    No unseen noun is named: captions of footage that do are emptied, and scenes of them (``config.nouns``) refused.
    """
    seen, unseen = split_nouns(media.sprites)
    videos = without_nouns(media.videos, unseen)
    footage = CaptionedFootage(videos, store, footage_zoom) if videos else None
    scenes = CaptionedScenes(media.sprites, media.photos, footage, config) if seen else None
    if scenes is not None and (shown := sorted(unseen.keys() & set(scenes.nouns))):
        told = ", ".join(shown[:5])
        raise ValueError(f"training is to show no unseen noun, which zero-shot use is measured on; got {told} in nouns")
    return scenes, footage


def _place(rng: np.random.Generator, size: float, others: Sequence[tuple[float, float]]) -> Pose:
    margin = min(size / 2, 0.4)
    places = rng.uniform(margin, 1 - margin, (_PLACES, 2))
    distance = [min((np.hypot(x - a, y - b) for a, b in others), default=0.0) for x, y in places]
    x, y = places[int(np.argmax(distance))]
    return Pose(x=float(x), y=float(y), size=float(size), angle=float(rng.normal(0, 0.15)))


def _before(caption: str) -> str:
    return f"in front of {caption}" if caption else "in front of a photograph"


def _readable_photo(photo: Entry) -> Entry:
    photo_pyramid(photo.path)
    return photo


@functools.lru_cache(maxsize=65536)
def _name_one_another(noun: str, other: str) -> bool:
    return NounIndex([noun]).named_in(other) or NounIndex([other]).named_in(noun)
