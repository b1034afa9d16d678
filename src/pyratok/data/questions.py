"""Questions with four options about rendered clips: exact truth in words, one option of which is true.

A question is asked only where its answer is clear-cut: of an object that can be seen, on one side of the frame for as
long as it is there, of one colour for the most part, acting well before the others. Whatever is in between is not
asked about, so that the one true option is true to everybody.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np

from pyratok.data.opencv import opencv
from pyratok.data.phrases import is_plural, with_article
from pyratok.data.scenes import CaptionedClip, ObjectTruth, Scene, read_sprite, render
from pyratok.data.sources import Footage, PhotoPaths
from pyratok.data.synthetic import CaptionedScenes
from pyratok.data.words import ARTICLES, PREPOSITIONS, NounIndex

Kind = Literal["what", "where", "colour", "direction", "count", "order"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NUM_OPTIONS = 4

PLACES = ("on the left", "on the right", "at the top", "at the bottom", "in the centre")
WAYS = ("to the left", "to the right", "upwards", "downwards")
NUMBERS = ("one", "two", "three", "four")

MIN_AREA = 0.01
"""Share of a frame that an object covers where it counts as seen."""
CENTRE, SIDE = 0.12, 0.18
"""Offsets from the middle, in parts of the frame's side: up to the one is the middle, from the other on a side."""
LEAD_FRAMES = 4
"""How much earlier than all others the first action begins."""
COLOUR_SHARE, RIVAL_SHARE, DECOY_SHARE = 0.55, 0.25, 0.1
"""Shares of an object's pixels: the colour asked for has the first at least, any other the second at most, and one
that is offered as a wrong answer less than the third."""

_SCENES_TRIED = 200
_FEWEST_NOUNS = 3

# Hue in degrees, saturation and value in [0, 1]: boxes with room between them, where people disagree.
_COLOURS = {
    "black": ((-15, 345), (0.0, 1.0), (0.0, 0.2)),
    "white": ((-15, 345), (0.0, 0.12), (0.85, 1.0)),
    "grey": ((-15, 345), (0.0, 0.12), (0.3, 0.75)),
    "red": ((-15, 11), (0.5, 1.0), (0.4, 1.0)),
    "brown": ((12, 45), (0.35, 1.0), (0.21, 0.6)),
    "orange": ((18, 42), (0.6, 1.0), (0.75, 1.0)),
    "yellow": ((48, 66), (0.4, 1.0), (0.7, 1.0)),
    "green": ((80, 160), (0.3, 1.0), (0.21, 1.0)),
    "blue": ((195, 255), (0.35, 1.0), (0.25, 1.0)),
    "purple": ((265, 295), (0.3, 1.0), (0.25, 1.0)),
    "pink": ((300, 344), (0.25, 1.0), (0.6, 1.0)),
}
COLOURS = tuple(_COLOURS)

_DIRECTIONS = {
    **{f"moves {way}": WAYS[i] for i, way in enumerate(("left", "right", "up", "down"))},
    **{f"leaves to the {side}": WAYS[i] for i, side in enumerate(("left", "right", "top", "bottom"))},
    **{f"enters from the {side}": WAYS[i] for i, side in enumerate(("right", "left", "bottom", "top"))},
}

# A question and the sentence that an option makes of it; {is}, {does}, {s} and {es} agree with what is spoken of.
_WORDINGS: dict[Kind, tuple[tuple[str, str], ...]] = {
    "what": (
        ("What can be seen in this clip?", "a clip with {option}"),
        ("What does the video show?", "a video of {option}"),
        ("Which of these is in the picture?", "there {is} {option}"),
    ),
    "where": (
        ("Where {is} the {noun}?", "the {noun} {is} {option}"),
        ("In which part of the picture {is} the {noun}?", "the {noun} {is} {option}"),
        ("Where in the frame can the {noun} be seen?", "the {noun} can be seen {option}"),
    ),
    "colour": (
        ("What colour {is} most of the {noun}?", "most of the {noun} {is} {option}"),
        ("Which colour {does} the {noun} mostly have?", "the {noun} {is} mostly {option}"),
        ("What is the main colour of the {noun}?", "the main colour of the {noun} is {option}"),
    ),
    "direction": (
        ("Which way {does} the {noun} move?", "the {noun} move{s} {option}"),
        ("Which way {is} the {noun} moving?", "the {noun} {is} moving {option}"),
        ("In which direction {does} the {noun} go?", "the {noun} go{es} {option}"),
    ),
    "count": (
        ("How many objects are in front of the background?", "there {is} {option} {objects}"),
        ("How many objects have been put over the background?", "a clip with {option} {objects}"),
        ("How many cut-out objects does the clip have?", "{option} {objects} can be seen"),
    ),
    "order": (
        ("Which object acts first?", "{option} act{s} first"),
        ("What is the first to do something?", "{option} {is} the first to do something"),
        ("Which of these starts before the others?", "{option} start{s} before the others"),
    ),
}


def _pattern(wording: str) -> re.Pattern[str]:
    fields = {"{noun}": "(?P<noun>.+)", "{is}": "(?:is|are)", "{does}": "(?:does|do)"}
    return re.compile("".join(fields.get(part, re.escape(part)) for part in re.split(r"({\w+})", wording)))


_STATEMENTS = tuple((_pattern(asked), told) for wordings in _WORDINGS.values() for asked, told in wordings)


@dataclass(frozen=True, kw_only=True)
class Question:
    """``options[answer]`` is the true one of :data:`NUM_OPTIONS`, all different."""

    text: str
    options: tuple[str, ...]
    answer: int
    kind: Kind

    def __post_init__(self) -> None:
        if len(set(self.options)) != NUM_OPTIONS or len(self.options) != NUM_OPTIONS:
            raise ValueError(f"a question has {NUM_OPTIONS} different options, got {self.options}")
        if not 0 <= self.answer < NUM_OPTIONS:
            raise ValueError(f"the answer is one of the options 0 to {NUM_OPTIONS - 1}, got {self.answer}")

    @property
    def statements(self) -> tuple[str, ...]:
        """What each option asserts, as a sentence."""
        return tuple(statement(self.text, option) for option in self.options)


class QuestionedClip(NamedTuple):
    clip: CaptionedClip
    question: Question


def statement(question: str, option: str) -> str:
    """One sentence that asserts the option: "the frog moves to the left".

    Of a question worded otherwise than here it is the question with the option behind it.
    """
    for pattern, told in _STATEMENTS:
        if asked := pattern.fullmatch(question):
            noun = asked.groupdict().get("noun", "")
            several = option != "one" if "{objects}" in told else _is_several(noun or option)
            return told.format(noun=noun, option=option, **_agreement(several))
    return f"{question.strip()} {option.strip()}"


def ask_about(
    clip: CaptionedClip,
    kind: Kind,
    rng: np.random.Generator,
    nouns: Sequence[str] = (),
    setting: str = "",
    true: str | None = None,
) -> Question | None:
    """A question of one kind, or None where the clip has no clear-cut answer to one; with ``true``, no other answer.

    ``nouns``: names of other objects, which wrong options of "what" and "order" are taken from; none that shares a word
    with an object of the clip or is named in ``setting``, which says what is behind them. Everything random, wording
    and order of the options included, is drawn by ``rng``.
    """

    def others(count: int) -> list[str]:
        return _others(rng, nouns, [truth.noun for truth in clip.objects], setting, count)

    facts = [fact for fact in _FACTS[kind](clip, others) if true in (None, fact.true)]
    if not facts:
        return None
    fact = facts[int(rng.integers(len(facts)))]
    wrong = [fact.wrong[i] for i in rng.permutation(len(fact.wrong))[: NUM_OPTIONS - 1]]
    asked, _ = _WORDINGS[kind][int(rng.integers(len(_WORDINGS[kind])))]
    options = [(fact.true, *wrong)[i] for i in rng.permutation(NUM_OPTIONS)]
    return Question(
        text=asked.format(noun=fact.noun, **_agreement(_is_several(fact.noun))),
        options=tuple(options),
        answer=options.index(fact.true),
        kind=kind,
    )


class QuestionedScenes:
    """Rendered scenes with a question each, all ``kinds`` equally often.

    Places, colours and numbers are true equally often too, as far as the scenes allow: objects are put there, drawn by
    their colour, or as many. Whoever knows only what is usual is to get no further than chance (a third for "count",
    of whose four numbers one is never true).

    As a source of captioned clips (:class:`~pyratok.data.captioned.CaptionedSource`) it captions each with the
    statement of the true option: what a model that answers by likelihood learns from.
    """

    def __init__(self, scenes: CaptionedScenes, kinds: Sequence[Kind] = KINDS) -> None:
        if not kinds or not set(kinds) <= set(KINDS):
            raise ValueError(f"kinds of questions are one or more of {', '.join(KINDS)}, got {list(kinds)}")
        self.scenes, self.kinds = scenes, tuple(kinds)
        self._captions = {photo.path: photo.caption for photo in scenes.photos}
        if scenes.footage is not None:
            self._captions.update(scenes.footage.captions)

    @property
    def nouns(self) -> tuple[str, ...]:
        return self.scenes.nouns

    def sample_questioned(self, rng: np.random.Generator, frames: int, size: int) -> QuestionedClip:
        """A clip ``[frames, size, size, 3]`` and a question about it, a function of the generator's state.

        Raises ValueError where scene after scene gives no answer to a question of the kind that was drawn.
        """
        clip, question, _ = self._draw(rng, frames, size)
        return QuestionedClip(clip, question)

    def sample_several(
        self, rng: np.random.Generator, frames: int, size: int, most: int
    ) -> tuple[CaptionedClip, tuple[Question, ...]]:
        """As :meth:`sample_questioned`, with up to ``most`` questions, each of another kind.

        The answers of those after the first are as usual as they are.
        """
        clip, question, behind = self._draw(rng, frames, size)
        others = [self.kinds[i] for i in rng.permutation(len(self.kinds)) if self.kinds[i] != question.kind]
        asked = (ask_about(clip, kind, rng, self.nouns, behind) for kind in others)
        more = itertools.islice((found for found in asked if found is not None), most - 1)
        return clip, (question, *more)

    def _draw(self, rng: np.random.Generator, frames: int, size: int) -> tuple[CaptionedClip, Question, str]:
        """A clip, a question about it, and what is behind the objects."""
        kind = self.kinds[int(rng.integers(len(self.kinds)))]
        answers = self._answers(kind)
        true = answers[int(rng.integers(len(answers)))] if answers else None
        for tried in range(_SCENES_TRIED):
            if tried == _SCENES_TRIED // 2:
                true = None  # an answer that these scenes hardly ever give
            scene = self._scene(rng, frames, kind, true)
            clip, behind = render(scene, frames, size), self._behind(scene)
            if question := ask_about(clip, kind, rng, self.nouns, behind, true):
                return clip, question, behind
        raise ValueError(
            f"none of {_SCENES_TRIED} scenes of {frames} frames has an answer to a question of the kind {kind!r}; give "
            "SceneConfig more nouns, objects or verbs, or leave that kind out"
        )

    def sample_captioned(self, rng: np.random.Generator, frames: int, size: int) -> CaptionedClip:
        clip, question = self.sample_questioned(rng, frames, size)
        return replace(clip, caption=question.statements[question.answer])

    def _answers(self, kind: Kind) -> Sequence[str]:
        """What is to be true equally often; nothing where the scenes see to that themselves."""
        fewest, most = self.scenes.config.objects
        return {"where": PLACES, "colour": tuple(self._by_colour), "count": NUMBERS[fewest - 1 : most]}.get(kind, ())

    def _scene(self, rng: np.random.Generator, frames: int, kind: Kind, true: str | None) -> Scene:
        """A scene in which it may well be ``true``; whether it is, the pixels tell."""
        if kind == "colour" and true is not None:
            coloured = self._by_colour[true]
            noun = coloured[int(rng.integers(len(coloured)))]
            fewest, most = self.scenes.config.objects
            nouns = [noun, *_others(rng, self.nouns, [noun], "", int(rng.integers(fewest, most + 1)) - 1)]
            return self.scenes.scene(rng, frames, [nouns[i] for i in rng.permutation(len(nouns))])
        scene = self.scenes.scene(rng, frames)
        return _put(scene, true, rng) if kind == "where" and true is not None else scene

    @functools.cached_property
    def _by_colour(self) -> dict[str, list[str]]:
        """Nouns whose first sprite is clearly of each colour; a colour of few nouns, which would give it away, is not
        there."""
        found: dict[str, list[str]] = {}
        for noun in self.nouns:
            try:
                picture = read_sprite(self.scenes.files[noun][0])[0]
            except ValueError:
                continue  # passed over, with a warning, wherever it is drawn
            if (clear := _clear_colour(picture[picture[..., 3] == 255, :3])) and not _names_a_colour(noun):
                found.setdefault(clear[0], []).append(noun)
        return {colour: nouns for colour, nouns in sorted(found.items()) if len(nouns) >= _FEWEST_NOUNS}

    def _behind(self, scene: Scene) -> str:
        match scene.background:
            case PhotoPaths(photos=[path]) | Footage(videos=[path]):
                return self._captions.get(path, "")
        return ""


class _Fact(NamedTuple):
    """Something true of an object, of the clip where ``noun`` is empty, and three or more things that are not."""

    noun: str
    true: str
    wrong: Sequence[str]


_Others = Callable[[int], list[str]]


def _what(clip: CaptionedClip, others: _Others) -> list[_Fact]:
    wrong = [with_article(noun) for noun in others(NUM_OPTIONS - 1)]
    shown = [truth.noun for truth in _told_apart(clip) if _seen_half_of_the_time(truth)]
    return [_Fact("", with_article(noun), wrong) for noun in shown if len(wrong) == NUM_OPTIONS - 1]


def _where(clip: CaptionedClip, others: _Others) -> list[_Fact]:
    found = ((truth, _place(truth)) for truth in _told_apart(clip) if _seen_half_of_the_time(truth))
    return [_Fact(truth.noun, place, _without(PLACES, place)) for truth, place in found if place]


def _colour(clip: CaptionedClip, others: _Others) -> list[_Fact]:
    facts = []
    for truth in _told_apart(clip):
        shown = _opaque(truth)
        clear = _clear_colour(clip.video[shown][truth.masks[shown]])
        if clear and _seen(truth).any() and not _names_a_colour(truth.noun):
            facts.append(_Fact(truth.noun, *clear))
    return facts


def _direction(clip: CaptionedClip, others: _Others) -> list[_Fact]:
    moving = [truth for truth in _told_apart(clip) if truth.verb in _DIRECTIONS]
    ways = [(truth, _DIRECTIONS[truth.verb]) for truth in moving if _seen(truth)[slice(*truth.interval)].sum() >= 3]
    return [_Fact(truth.noun, way, _without(WAYS, way)) for truth, way in ways]


def _count(clip: CaptionedClip, others: _Others) -> list[_Fact]:
    clear = all(_seen_half_of_the_time(truth) and not is_plural(truth.noun) for truth in clip.objects)
    if not clear or not 1 <= len(clip.objects) <= len(NUMBERS):
        return []
    number = NUMBERS[len(clip.objects) - 1]
    return [_Fact("", number, _without(NUMBERS, number))]


def _order(clip: CaptionedClip, others: _Others) -> list[_Fact]:
    acting = sorted((truth for truth in clip.objects if truth.verb != "stays"), key=lambda truth: truth.interval[0])
    apart = len(_told_apart(clip)) == len(clip.objects) and all(map(_seen_half_of_the_time, clip.objects))
    if not apart or len(acting) < 2 or acting[1].interval[0] - acting[0].interval[0] < LEAD_FRAMES:
        return []
    later = [truth.noun for truth in clip.objects if truth is not acting[0]]
    wrong = [*later, *others(NUM_OPTIONS - 1 - len(later))]
    options = [f"the {noun}" for noun in wrong]
    return [_Fact("", f"the {acting[0].noun}", options)] if len(options) >= NUM_OPTIONS - 1 else []


_FACTS: dict[Kind, Callable[[CaptionedClip, _Others], list[_Fact]]] = {
    "what": _what,
    "where": _where,
    "colour": _colour,
    "direction": _direction,
    "count": _count,
    "order": _order,
}


def colour_shares(pixels: np.ndarray) -> dict[str, float]:
    """Share in [0, 1] of RGB pixels, uint8 ``[n, 3]``, that clearly have each of :data:`COLOURS`; the rest has none."""
    if not len(pixels):
        return dict.fromkeys(COLOURS, 0.0)
    cv2 = opencv()

    hue, saturation, value = cv2.cvtColor(pixels[None].astype(np.float32) / 255, cv2.COLOR_RGB2HSV)[0].T
    hue = (hue + 15) % 360 - 15  # red is one range then

    def share(name: str) -> float:
        ranges = zip((hue, saturation, value), _COLOURS[name], strict=True)
        return float(np.logical_and.reduce([(low <= v) & (v <= high) for v, (low, high) in ranges]).mean())

    return {name: share(name) for name in COLOURS}


def _clear_colour(pixels: np.ndarray) -> tuple[str, list[str]] | None:
    """The colour that prevails among pixels ``[n, 3]``, and those that hardly occur; None where there is no such."""
    shares = colour_shares(pixels)
    first, second = sorted(shares, key=lambda name: -shares[name])[:2]
    if shares[first] < COLOUR_SHARE or shares[second] > RIVAL_SHARE:
        return None
    return first, [name for name in COLOURS if shares[name] < DECOY_SHARE]


def _names_a_colour(noun: str) -> bool:
    """Then a question for the colour would answer itself."""
    return not {*COLOURS, "gray", "golden", "silver"}.isdisjoint(noun.split())


def _put(scene: Scene, place: str, rng: np.random.Generator) -> Scene:
    """The scene with an object that keeps its place, if there is one, at one of :data:`PLACES`."""
    motions = [item.motion for item in scene.objects]
    still = [i for i, m in enumerate(motions) if (m.first.x, m.first.y, m.hops) == (m.last.x, m.last.y, 0)]
    if not still:
        return scene
    index = still[int(rng.integers(len(still)))]
    along, across = rng.uniform(SIDE + 0.04, 0.34), rng.uniform(-0.08, 0.08, 2)
    dx, dy = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}.get(place.split()[-1], (0, 0))
    x, y = (float(0.5 + (d * along if d else a)) for d, a in zip((dx, dy), across, strict=True))
    first, last = (replace(pose, x=x, y=y) for pose in (motions[index].first, motions[index].last))
    objects = list(scene.objects)
    objects[index] = replace(objects[index], motion=replace(motions[index], first=first, last=last))
    return replace(scene, objects=tuple(objects))


def _told_apart(clip: CaptionedClip) -> list[ObjectTruth]:
    """Objects that no other one of the clip shares its name with."""
    nouns = [truth.noun for truth in clip.objects]
    return [truth for truth in clip.objects if nouns.count(truth.noun) == 1]


def _seen(truth: ObjectTruth) -> np.ndarray:
    """Frames in which there is something to be seen of it: bool ``[T]``."""
    return np.asarray(truth.masks.mean(axis=(1, 2)) >= MIN_AREA)


def _seen_half_of_the_time(truth: ObjectTruth) -> bool:
    return bool(_seen(truth).mean() >= 0.5)


def _opaque(truth: ObjectTruth) -> slice:
    """Frames in which nothing shines through it."""
    start, stop = truth.interval
    return {"appears": slice(stop - 1, None), "disappears": slice(None, start)}.get(truth.verb, slice(None))


def _place(truth: ObjectTruth) -> str | None:
    """One of :data:`PLACES`, where the object is there in every frame that shows it."""
    masks = truth.masks[_seen(truth)]
    size = masks.shape[1]
    axis = (np.arange(size) + 0.5) / size - 0.5
    areas = masks.sum(axis=(1, 2))
    x, y = (masks.sum(axis=i) @ axis / areas for i in (1, 2))
    along, across, places = (x, y, PLACES[:2]) if abs(x[0]) > abs(y[0]) else (y, x, PLACES[2:4])
    if (abs(across) > CENTRE).any():
        return None
    if (abs(along) <= CENTRE).all():
        return PLACES[4]
    if (along <= -SIDE).all():
        return places[0]
    return places[1] if (along >= SIDE).all() else None


def _others(
    rng: np.random.Generator, nouns: Sequence[str], shown: Sequence[str], setting: str, count: int
) -> list[str]:
    """``count`` nouns, fewer where there are no more, that share no word with one another, ``shown`` or ``setting``."""
    chosen: list[str] = []
    for i in rng.permutation(len(nouns)):
        if len(chosen) >= count:
            break
        taken = {word for noun in (*shown, *chosen) for word in noun.split()} - PREPOSITIONS - ARTICLES
        if not NounIndex(taken).named_in(nouns[i]) and not NounIndex([nouns[i]]).named_in(setting):
            chosen.append(str(nouns[i]))
    return chosen


def _without(options: Sequence[str], one: str) -> list[str]:
    return [option for option in options if option != one]


def _is_several(phrase: str) -> bool:
    return bool(phrase.split()) and is_plural(phrase)


def _agreement(several: bool) -> dict[str, str]:
    if several:
        return {"is": "are", "does": "do", "s": "", "es": "", "objects": "objects"}
    return {"is": "is", "does": "does", "s": "s", "es": "es", "objects": "object"}
