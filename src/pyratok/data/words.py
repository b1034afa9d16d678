"""Nouns out of captions, and the split into seen and unseen ones: which objects training may show and name."""

from __future__ import annotations

import functools
import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pyratok.data.manifests import Entry

ARTICLES = frozenset("a an the some another".split())
PREPOSITIONS = frozenset("of in on at with without for from to behind under over inside into by and or".split())
MAX_NOUN_WORDS = 6

_OWNERS = frozenset("our your my his her its their this that these those it's no".split())
_NO_NOUN_BEGINS = PREPOSITIONS | ARTICLES | _OWNERS | frozenset("up down".split())
# A noun ends before these: finite verbs, participles and pronouns that open a clause of their own.
_CLAUSE_OPENERS = frozenset(
    """is are was were be has have means stands lets carries carry contains gets called used covered
    like as that which who when where if then you we they it""".split()
)
_FIRST_CLAUSE = re.compile(r"[,;:()!?]| - |(?<!Mr)(?<!Mrs)(?<!Dr)(?<!St)\.(?=\s|$)")
_QUOTES = re.compile(r"[\".]|(?<!\w)'|'(?!\w)")
# Typographic quotation marks, dashes and the ellipsis, by code point.
_PLAIN = str.maketrans({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x2013: " - ", 0x2014: " - ", 0x2026: "."})

Nouns = Mapping[str, tuple[Path, ...]]
"""Every noun with the files that show it."""


def is_unseen(caption: str) -> bool:
    """Is the object of this caption kept out of training, so that zero-shot use can be measured on it?

    A quarter of all captions are: those whose SHA-1, of the lower-cased text, begins with 0, 1, 2 or 3.
    """
    return hashlib.sha1(caption.lower().encode()).hexdigest()[0] in "0123"


def noun_phrase(caption: str) -> str:
    """What a caption of one object names, in lower case and without its article; empty where it names nothing.

    The noun is taken from the first clause, up to a verb: "An albino peahen (a female peafowl)." gives "albino
    peahen", "A hoverfly resembles a honeybee drone." gives "hoverfly". Exclamations, orders, quotations, bare amounts
    and phrases of more than six words give nothing.
    """
    text = caption.translate(_PLAIN).strip()
    clause = _FIRST_CLAUSE.split(text, maxsplit=1)[0]
    words = _QUOTES.sub("", clause).lower().split()
    determined = bool(words) and words[0] in ARTICLES | {"our"}
    words = words[determined:]
    end = next((i for i, word in enumerate(words) if i and word in _CLAUSE_OPENERS), len(words))
    for i in range(1, end):
        # An article or a pronoun behind anything but a preposition or participle has a verb before it.
        if words[i] in ARTICLES | _OWNERS and words[i - 1] not in PREPOSITIONS and not words[i - 1].endswith("ing"):
            end = i - 1 if determined else 0
            break
    shouted = not determined and end == len(words) and text[len(clause) :].startswith(("!", "?"))
    while end and words[end - 1] in PREPOSITIONS:
        end -= 1
    words = words[:end]
    if shouted or not 1 <= len(words) <= MAX_NOUN_WORDS or text.startswith(('"', "'", "-")):
        return ""
    counts = any(word.isdigit() for word in words[:-1])
    return "" if counts or words[0] in _NO_NOUN_BEGINS | _CLAUSE_OPENERS else " ".join(words)


def gather_nouns(entries: Iterable[Entry]) -> dict[str, tuple[Entry, ...]]:
    """Every noun that captions name, with the entries that show it; entries whose caption names none drop out.

    So do captions cut out of their file's name ("soccer ball ganson" of ``oca_soccer_ball_ganson_01``) where there
    are others: authors and stray letters trail them, and no rule tells those from nouns.
    """
    entries = [entry for entry in entries if entry.caption]
    nouns: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in [entry for entry in entries if not _is_cut_from_name(entry)] or entries:
        if noun := noun_phrase(entry.caption):
            nouns[noun].append(entry)
    return {noun: tuple(shown) for noun, shown in sorted(nouns.items())}


def split_nouns(entries: Iterable[Entry]) -> tuple[Nouns, Nouns]:
    """(seen, unseen): the nouns that training may show and name, and those kept for zero-shot measures.

    A noun is unseen if *any* caption that leads to it is (:func:`is_unseen`), so that two spellings of one object are
    never on both sides. So is a noun that names an unseen one in passing: with "bear" unseen, a training caption may
    not say "polar bear" either. All files of an unseen noun are unseen.
    """
    return _split(tuple(entries))


@functools.lru_cache(maxsize=2)  # every part of a mix of clips asks for those of the same drawings
def _split(entries: tuple[Entry, ...]) -> tuple[Nouns, Nouns]:
    nouns = gather_nouns(entries)
    hashed = {noun for noun, shown in nouns.items() if any(is_unseen(entry.caption) for entry in shown)}
    index = NounIndex(hashed)
    seen: dict[str, tuple[Path, ...]] = {}
    unseen: dict[str, tuple[Path, ...]] = {}
    for noun, shown in nouns.items():
        (unseen if index.named_in(noun) else seen)[noun] = tuple(entry.path for entry in shown)
    return seen, unseen


class NounIndex:
    """Finds nouns in running text, by whole words, a plural s aside."""

    def __init__(self, nouns: Collection[str]) -> None:
        self._nouns = {tuple(map(_singular, noun.split())) for noun in nouns}
        self._longest = max(map(len, self._nouns), default=0)

    def named_in(self, text: str) -> bool:
        words = [_singular(word) for word in re.findall(r"[^\s.,;:!?()\"]+", text.lower().translate(_PLAIN))]
        spans = ((i, j) for i in range(len(words)) for j in range(i + 1, min(len(words), i + self._longest) + 1))
        return any(tuple(words[i:j]) in self._nouns for i, j in spans)


def without_nouns(entries: Sequence[Entry], nouns: Collection[str]) -> list[Entry]:
    """The entries with the captions that name one of ``nouns`` emptied: what training may say of real footage."""
    index = NounIndex(nouns)
    return [replace(entry, caption="") if index.named_in(entry.caption) else entry for entry in entries]


def _is_cut_from_name(entry: Entry) -> bool:
    """Is the caption a part, not the whole, of the words in the file's name, digits aside?"""
    words, name = entry.caption.lower().split(), re.findall("[a-z]+", entry.path.stem.lower())
    if entry.caption[0].isupper() or words != re.findall("[a-z]+", entry.caption.lower()):
        return False
    return any(name[i : i + len(words)] == words for i in range(len(name))) and len(words) < len(name)


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
