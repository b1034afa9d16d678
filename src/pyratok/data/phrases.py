"""Captions of clips in which objects do something: one grammar, worded in many ways, the same for the same generator.

A verb is a key of :data:`WORDING`, "moves left" or "enters from the top"; :mod:`pyratok.data.scenes` sets it in
motion. "{s}" and "{es}" are the endings of the third person, there for one object and gone for several.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pyratok.data.words import PREPOSITIONS

_SIDES = {"left": "the left", "right": "the right", "top": "above", "bottom": "below"}
_WAYS = {"left": "to the left", "right": "to the right", "top": "upwards", "bottom": "downwards"}

# A finite and a participle form of each wording.
_ENTERS = (
    ("enter{s} from {side}", "entering from {side}"),
    ("come{s} in from {side}", "coming in from {side}"),
    ("move{s} into view from {side}", "moving into view from {side}"),
    ("arrive{s} from {side}", "arriving from {side}"),
    ("slide{s} in from {side}", "sliding in from {side}"),
)
_LEAVES = (
    ("leave{s} {way}", "leaving {way}"),
    ("go{es} out {way}", "going out {way}"),
    ("move{s} out of view {way}", "moving out of view {way}"),
    ("slide{s} away {way}", "sliding away {way}"),
    ("exit{s} {way}", "exiting {way}"),
)
_MOVES = (
    ("move{s} {way}", "moving {way}"),
    ("go{es} {way}", "going {way}"),
    ("slide{s} {way}", "sliding {way}"),
    ("drift{s} {way}", "drifting {way}"),
    ("travel{s} {way}", "travelling {way}"),
)


def _directed(forms: Sequence[tuple[str, str]], side: str) -> tuple[tuple[str, str], ...]:
    def fill(form: str) -> str:
        return form.replace("{side}", _SIDES[side]).replace("{way}", _WAYS[side])

    return tuple((fill(finite), fill(participle)) for finite, participle in forms)


WORDING: dict[str, tuple[tuple[str, str], ...]] = {
    "stays": (
        ("stay{s} in place", "staying in place"),
        ("do{es} not move", "not moving"),
        ("keep{s} still", "keeping still"),
        ("remain{s} where it is", "remaining in one place"),
    ),
    **{f"enters from the {side}": _directed(_ENTERS, side) for side in _SIDES},
    **{f"leaves to the {side}": _directed(_LEAVES, side) for side in _SIDES},
    "moves left": (*_directed(_MOVES, "left"), ("move{s} left", "moving left")),
    "moves right": (*_directed(_MOVES, "right"), ("move{s} right", "moving right")),
    "moves up": (*_directed(_MOVES, "top"), ("move{s} up", "moving up"), ("rise{s}", "rising")),
    "moves down": (*_directed(_MOVES, "bottom"), ("move{s} down", "moving down"), ("sink{s}", "sinking")),
    "grows": (
        ("grow{s}", "growing"),
        ("get{s} bigger", "getting bigger"),
        ("become{s} larger", "becoming larger"),
        ("expand{s}", "expanding"),
    ),
    "shrinks": (
        ("shrink{s}", "shrinking"),
        ("get{s} smaller", "getting smaller"),
        ("become{s} smaller", "becoming smaller"),
        ("grow{s} smaller", "growing smaller"),
    ),
    "turns": (
        ("turn{s}", "turning"),
        ("rotate{s}", "rotating"),
        ("spin{s}", "spinning"),
        ("turn{s} around", "turning around"),
    ),
    "bounces": (
        ("bounce{s}", "bouncing"),
        ("jump{s} up and down", "jumping up and down"),
        ("hop{s}", "hopping"),
        ("bounce{s} up and down", "bouncing up and down"),
    ),
    "appears": (
        ("appear{s}", "appearing"),
        ("show{s} up", "showing up"),
        ("fade{s} in", "fading in"),
        ("become{s} visible", "becoming visible"),
    ),
    "disappears": (
        ("disappear{s}", "disappearing"),
        ("vanish{es}", "vanishing"),
        ("fade{s} away", "fading away"),
        ("fade{s} out", "fading out"),
    ),
}
VERBS = tuple(WORDING)

_FINITE_FRAMES = ("{}", "{}", "{}", "in this clip {}", "a clip in which {}", "a video where {}", "here {}")
_PARTICIPLE_FRAMES = ("{}", "a video of {}", "a clip of {}", "footage of {}", "we see {}", "there is {}")
_NOUN_FRAMES = ("{}", "{}", "a video of {}", "a clip with {}", "there is {}", "we see {}")
_NOUN_SHARE = 0.15

_SINGULAR_IN_S = frozenset("mars lens gas tennis news airways christmas rhinoceros".split())
_PLURAL = frozenset("men women people children feet teeth mice geese police".split())
_AN_BUT_SPELT_A = re.compile(r"(uni|eu|ewe|ura|uk\b|us\b|one\b|one-|once\b)")
_A_BUT_SPELT_AN = re.compile(r"(hour|heir|honest|honou?r|[fhlmnrsx]\b)")


class Deed(NamedTuple):
    """An object, what it does, and the frames ``[start, stop)`` in which it does it."""

    noun: str
    verb: str
    start: int
    stop: int


def is_plural(noun: str) -> bool:
    """Does the noun stand for several things? Told by its head: the word before a preposition or a participle."""
    words = noun.split()
    ends = (i for i, word in enumerate(words) if i and (word in PREPOSITIONS or word.endswith("ing")))
    head = words[next(ends, len(words)) - 1]
    several = len(head) > 3 and head.endswith("s") and not head.endswith(("ss", "us", "is"))
    return head in _PLURAL or (several and head not in _SINGULAR_IN_S)


def with_article(noun: str) -> str:
    """The noun alone, as a phrase for a text encoder: "a frog", "an owl", "musical notes"."""
    if is_plural(noun):
        return noun
    vowel = noun[:1] in set("aeiou") and not _AN_BUT_SPELT_A.match(noun)
    return f"an {noun}" if vowel or _A_BUT_SPELT_AN.match(noun) else f"a {noun}"


def deed_phrase(rng: np.random.Generator, deed: Deed) -> str:
    """One object and what it does, as a clause: "a frog moves to the left"."""
    return f"{_named(rng, deed.noun)} {_finite(rng, deed)}"


def describe(rng: np.random.Generator, deeds: Sequence[Deed], setting: str = "") -> str:
    """A caption of a whole clip, in lower case and without a full stop.

    ``deeds`` are told in random order, or in that of time where one follows another ("..., then ..."); ``setting``,
    such as "in front of a coral reef", goes to the end where it is given. A few captions only name the objects.
    """
    if not deeds:
        raise ValueError("a caption needs at least one object")
    order = [deeds[i] for i in rng.permutation(len(deeds))]
    if rng.random() < _NOUN_SHARE:
        text = _pick(rng, _NOUN_FRAMES).format(_join([_named(rng, deed.noun) for deed in order]))
    elif rng.random() < 0.35:
        parts = [f"{_named(rng, deed.noun)} {_participle(rng, deed)}" for deed in order]
        text = _pick(rng, _PARTICIPLE_FRAMES).format(_join(parts))
    else:
        clauses = _clauses(rng, order)
        text = clauses if clauses.startswith("while") else _pick(rng, _FINITE_FRAMES).format(clauses)
    return f"{text} {setting}" if setting else text


def _clauses(rng: np.random.Generator, deeds: Sequence[Deed]) -> str:
    if len(deeds) == 1:
        return deed_phrase(rng, deeds[0])
    in_time = sorted(deeds, key=lambda deed: deed.start)
    one_by_one = all(a.stop <= b.start for a, b in pairwise(in_time))
    if one_by_one:
        return ", then ".join(deed_phrase(rng, deed) for deed in in_time)
    first, *rest = (deed_phrase(rng, deed) for deed in deeds)
    return _pick(rng, ("{0} while {1}", "{0} and {1}", "{0}, {1}", "while {1}, {0}")).format(first, _join(rest))


def _named(rng: np.random.Generator, noun: str) -> str:
    if rng.random() < 0.2:
        return f"the {noun}"
    return f"some {noun}" if is_plural(noun) and rng.random() < 0.3 else with_article(noun)


def _finite(rng: np.random.Generator, deed: Deed) -> str:
    form = _pick(rng, [finite for finite, _ in WORDING[deed.verb]])
    if is_plural(deed.noun):
        return form.format(s="", es="").replace("where it is", "where they are")
    return form.format(s="s", es="es")


def _participle(rng: np.random.Generator, deed: Deed) -> str:
    return _pick(rng, [participle for _, participle in WORDING[deed.verb]])


def _join(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]
