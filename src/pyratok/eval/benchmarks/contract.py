"""What every benchmark gives: items from a dataset as it is distributed, an answer to each, a score of them all.

    load ──► items ──► run(model): item ──► answer (JSON) ──► score ──► record
                            │ one by one, in any process, in any order

Items are independent, so that :mod:`pyratok.eval.runner` may share them out, stop anywhere and go on.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pyratok.eval.base import HashedProtocol, versions
from pyratok.eval.benchmarks.registry import ENTRIES
from pyratok.types import ModelId

if TYPE_CHECKING:
    from pyratok.model.base import VideoTokenizer

Answer = dict[str, Any]
"""What a model said of one item, as JSON holds it."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkProtocol(HashedProtocol):
    """``benchmark``: the name in the registry; whatever else decides the numbers is a field of a subclass."""

    benchmark: str


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing to be answered; ``key`` tells it apart from all others of its benchmark, now and later."""

    key: str


ItemT = TypeVar("ItemT", bound=Item)


@dataclass(frozen=True, kw_only=True)
class Loaded(Generic[ItemT]):
    """A dataset as it was found.

    ``missing``: names of what the annotations speak of and the folder does not hold. ``counts``: how much the
    annotations speak of, ``expected``: how much those that are distributed do, as far as is known.
    """

    items: tuple[ItemT, ...]
    missing: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    expected: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """``values``: the numbers of the benchmark by name; ``details``: what they are made of, as JSON holds it."""

    values: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Benchmark(ABC, Generic[ItemT]):
    """A dataset in ``data`` and the ``protocol`` that it is scored by; small, so that processes can be sent one."""

    data: Path
    protocol: BenchmarkProtocol
    needs_model: ClassVar[bool] = True

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: what was read of the dataset is not sent to other processes."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @property
    def name(self) -> str:
        return self.protocol.benchmark

    @abstractmethod
    def load(self) -> Loaded[ItemT]:
        """The items whose files are there, always in the same order. Raises ValueError that names the fix."""

    @abstractmethod
    def run(self, model: VideoTokenizer) -> Callable[[ItemT], Answer]:
        """The function that answers an item; what is the same for all of them is computed once, here.

        It may raise :class:`~pyratok.data.video_io.VideoError`: the item then counts as unreadable.
        """

    @abstractmethod
    def score(self, answers: Sequence[tuple[ItemT, Answer]]) -> Scores:
        """The numbers, from every item that could be read and its answer, in the order of the items."""

    def files(self, answers: Sequence[tuple[ItemT, Answer]]) -> Mapping[str, bytes]:
        """By name, files that others want of the answers, such as an evaluation server; none by default."""
        return {}

    def nothing(self, what: str, where: Path | str | None = None) -> ValueError:
        """The error of a dataset of which ``what`` is not ``where`` (default: the folder given), with the fix."""
        entry = ENTRIES[self.name]
        return ValueError(
            f"{self.name}: there is no {what} in {self.data if where is None else where}; "
            f"expected {entry.layout}, from {entry.source}"
        )


def check_revision(name: str, loaded: Loaded[Any]) -> None:
    """Raises ValueError where the annotations are not those that are distributed."""
    found = {key: loaded.counts.get(key, 0) for key in loaded.expected}
    if found != dict(loaded.expected):
        said = ", ".join(f"{found[key]:,} {key} where {name} has {count:,}" for key, count in loaded.expected.items())
        raise ValueError(
            f"these annotations are another revision or a part: {said}; get those of {ENTRIES[name].source}, "
            "or say --any-revision if they are meant, which the record will tell"
        )


def first_of(items: Sequence[ItemT], limit: int | None) -> tuple[ItemT, ...]:
    """``limit`` items as good as drawn at random, by the SHA-1 of their keys, in their order; all without a limit."""
    if limit is None or limit >= len(items):
        return tuple(items)
    drawn = sorted(items, key=lambda item: hashlib.sha1(item.key.encode()).digest())[:limit]
    kept = {item.key for item in drawn}
    return tuple(item for item in items if item.key in kept)


@dataclass(frozen=True, kw_only=True)
class BenchmarkRecord:
    """A result: who, by which protocol, on how much of which data, and the numbers.

    ``weights``: digest of all weights, since the fingerprint of a model leaves out its text head. ``found`` and
    ``missing``: of what the annotations speak of; ``unreadable``: files that are there and cannot be read, and why;
    ``scored``: items behind the numbers; ``limit``: how many were asked for, None for all.
    """

    protocol: BenchmarkProtocol
    model: ModelId | None
    weights: str | None
    counts: Mapping[str, int]
    expected: Mapping[str, int]
    found: int
    missing: tuple[str, ...]
    unreadable: Mapping[str, str]
    scored: int
    limit: int | None
    scores: Scores

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; equal for equal work, whenever and in however many processes it was done."""
        return {
            "benchmark": self.protocol.benchmark,
            "protocol": self.protocol.to_dict(),
            "model": None if self.model is None else asdict(self.model),
            "weights": self.weights,
            "versions": versions(),
            "annotations": {"counts": dict(self.counts), "expected": dict(self.expected)},
            "items": {
                "found": self.found,
                "missing": len(self.missing),
                "unreadable": len(self.unreadable),
                "scored": self.scored,
                "limit": self.limit,
            },
            "missing": list(self.missing),
            "unreadable": dict(self.unreadable),
            "scores": dict(self.scores.values),
            "details": self.scores.details,
        }
