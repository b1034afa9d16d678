"""THUMOS14 and ActivityNet 1.3: when do which actions happen? Classes are asked for by name, none was trained.

THUMOS14 is read from its text files (``annotation/Billiards_test.txt``: ``video start end``) or from a JSON of them,
ActivityNet from ``activity_net.v1-3.min.json``. What is known to be wrong with THUMOS14 is mended: ambiguous spans,
two bad videos, duplicates and spans of no length are left out, and every cliff diving is also a diving.

The number is that of the 50/50 protocol: the classes are split in two at random, ten times, and the average mAP of
the second halves is averaged. Nothing here has seen the first halves either, which is why all classes stand beside.

Sources: Jiang et al., THUMOS challenge (2014); Heilbron et al., ActivityNet (2015); Ju et al., Prompting
visual-language models (2022), for the splits; PyraTok (arXiv 2601.16210), sec. 4.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyratok.eval.benchmarks.clips import tokens_of_file, videos_by_stem
from pyratok.eval.benchmarks.contract import Answer, Benchmark, BenchmarkProtocol, Item, Loaded, Scores
from pyratok.metrics.localization import (
    ACTIVITYNET_TIOUS,
    THUMOS14_TIOUS,
    LocalizationScores,
    ScoredSpan,
    TrueSpan,
    localization_ap,
)
from pyratok.tasks.localization import FLOOR, THRESHOLD, WINDOW, localize

if TYPE_CHECKING:
    from pyratok.model.base import VideoTokenizer

BAD_VIDEOS = frozenset({"video_test_0000270", "video_test_0001292"})
"""Of THUMOS14: annotations of the first are shifted, the second has ambiguous ones alone."""
AMBIGUOUS = "Ambiguous"
SUB_CLASSES = {"CliffDiving": "Diving"}
RANDOM_SPLITS = "random"


@dataclass(frozen=True, kw_only=True)
class ActionSpanProtocol(BenchmarkProtocol):
    """Tokens of whole videos at ``fps``, the short side scaled to ``size``; spans as
    :func:`pyratok.tasks.localization.localize` finds them, at most ``most`` per class and video.

    ``splits`` halves of the classes from ``seed``, or those of the lists whose digest ``split_lists`` is.
    """

    subset: str
    tious: tuple[float, ...]
    fps: float
    size: int = 128
    prompt: str = "{}"
    level: int = 0
    window: int = WINDOW
    threshold: float = THRESHOLD
    floor: float = FLOOR
    most: int = 100
    splits: int = 10
    seed: int = 0
    split_lists: str = RANDOM_SPLITS
    ap: str = "per class, all-point interpolation, best still free truth; mean over classes, then tIoU, then splits"


PROTOCOLS = {
    "thumos14": ActionSpanProtocol(benchmark="thumos14", subset="test", tious=THUMOS14_TIOUS, fps=25.0),
    "activitynet13": ActionSpanProtocol(
        benchmark="activitynet13", subset="validation", tious=ACTIVITYNET_TIOUS, fps=5.0
    ),
}


@dataclass(frozen=True, kw_only=True)
class SpanItem(Item):
    """A video; ``truths``: label, start and end in seconds."""

    path: Path
    truths: tuple[tuple[str, float, float], ...]


class Annotations(NamedTuple):
    """True spans by video, and how much there was before anything was mended, to tell revisions apart."""

    spans: Mapping[str, Sequence[tuple[str, float, float]]]
    labels: tuple[str, ...]
    counts: Mapping[str, int]
    expected: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class ActionSpans(Benchmark[SpanItem]):
    protocol: ActionSpanProtocol

    def load(self) -> Loaded[SpanItem]:
        annotations = self._annotations
        files = videos_by_stem(self.data)
        items, missing = [], []
        for video, spans in sorted(annotations.spans.items()):
            path = files.get(video) or files.get(f"v_{video}")
            if path is None:
                missing.append(video)
            else:
                items.append(SpanItem(key=video, path=path, truths=tuple(spans)))
        if not items:
            raise self.nothing(f"video of the {len(missing)} that the annotations speak of")
        return Loaded(
            items=tuple(items), missing=tuple(missing), counts=annotations.counts, expected=annotations.expected
        )

    def run(self, model: VideoTokenizer) -> Callable[[SpanItem], Answer]:
        protocol = self.protocol
        queries = {protocol.prompt.replace("{}", spoken(label)): label for label in self._annotations.labels}

        def answer(item: SpanItem) -> Answer:
            tokens = tokens_of_file(model, item.path, size=protocol.size, fps=protocol.fps)
            found = localize(
                model,
                tokens,
                list(queries),
                level=protocol.level,
                window=protocol.window,
                threshold=protocol.threshold,
                floor=protocol.floor,
                most=protocol.most,
            )
            spans = [[queries[span.query], float(span.start), float(span.end), float(span.score)] for span in found]
            return {"spans": spans}

        return answer

    def score(self, answers: Sequence[tuple[SpanItem, Answer]]) -> Scores:
        truths = [TrueSpan(item.key, *truth) for item, _ in answers for truth in item.truths]
        claims = [ScoredSpan(item.key, *span) for item, said in answers for span in said["spans"]]
        there = {truth.label for truth in truths}
        whole = self._ap(truths, claims, there)
        halves = [half & there for half in self._halves() if half & there]
        parts = [self._ap(truths, claims, half) for half in halves]
        averages = [part.average for part in parts]
        values = {"average_map": float(np.mean(averages)), "average_map_all_classes": whole.average}
        for index, tiou in enumerate(self.protocol.tious):
            values[f"map_at_{tiou:g}"] = float(np.mean([part.mean_ap[index] for part in parts]))
        return Scores(
            values=values,
            details={
                "splits": [
                    {"classes": sorted(half), "average_map": a} for half, a in zip(halves, averages, strict=True)
                ],
                "spread_of_splits": float(np.std(averages)),
                "ap_per_class": {label: float(np.mean(ap)) for label, ap in sorted(whole.per_class.items())},
            },
        )

    def files(self, answers: Sequence[tuple[SpanItem, Answer]]) -> Mapping[str, bytes]:
        """``predictions.json`` as ActivityNet's own evaluation reads it."""
        results = {
            item.key: [{"label": label, "segment": [start, end], "score": s} for label, start, end, s in said["spans"]]
            for item, said in answers
        }
        document = {"version": "VERSION 1.3", "results": results, "external_data": {}}
        return {"predictions.json": json.dumps(document).encode()}

    def _ap(
        self, truths: Iterable[TrueSpan], claims: Iterable[ScoredSpan], labels: set[str] | frozenset[str]
    ) -> LocalizationScores:
        asked = [truth for truth in truths if truth.label in labels]
        return localization_ap(asked, [claim for claim in claims if claim.label in labels], self.protocol.tious)

    def _halves(self) -> list[frozenset[str]]:
        """The classes that each split asks for."""
        labels = self._annotations.labels
        if self.protocol.split_lists == RANDOM_SPLITS:
            rng = np.random.default_rng(self.protocol.seed)
            count = len(labels) - len(labels) // 2
            return [frozenset(rng.permutation(labels)[:count].tolist()) for _ in range(self.protocol.splits)]
        halves = []
        for path in split_files(self.data):
            lines = {line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()}
            if unknown := sorted(lines - set(labels)):
                raise ValueError(f"{path}: {', '.join(unknown[:5])} are no classes of {self.name}; one class per line")
            halves.append(frozenset(lines))
        return halves

    @cached_property
    def _annotations(self) -> Annotations:
        if self.name == "thumos14" and (texts := sorted(self.data.rglob(f"*_{self.protocol.subset}.txt"))):
            return mended(read_thumos(texts))
        for path in sorted(self.data.rglob("*.json")):
            if (database := _database(path)) is not None:
                read = read_database(path, database, self.protocol.subset, self.name)
                return mended(read) if self.name == "thumos14" else read
        raise self.nothing("annotation")


def with_split_lists(protocol: ActionSpanProtocol, data: Path) -> ActionSpanProtocol:
    """The protocol with the digest of the lists ``splits/*.txt``, if there are any: classes to ask for, one a line."""
    files = split_files(data)
    if not files:
        return protocol
    content = b"\0".join(path.read_bytes() for path in files)
    return replace(protocol, split_lists=hashlib.sha256(content).hexdigest()[:16], splits=len(files))


def split_files(data: Path) -> list[Path]:
    return sorted((data / "splits").glob("*.txt"))


def spoken(label: str) -> str:
    """A class name for people: ``CliffDiving`` and ``Cliff_diving`` become "cliff diving"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label.replace("_", " ")).lower()


def read_thumos(files: Sequence[Path]) -> Annotations:
    """The text files of THUMOS14, one per class. Raises ValueError for a line that is not ``video start end``."""
    spans: dict[str, list[tuple[str, float, float]]] = {}
    for path in files:
        label = path.stem.rsplit("_", 1)[0]
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                video, start, end = line.split()
                spans.setdefault(video, []).append((label, float(start), float(end)))
            except ValueError:
                raise ValueError(f"{path}, line {number}: expected 'video start end', got {line!r}") from None
    labels = sorted({path.stem.rsplit("_", 1)[0] for path in files} - {AMBIGUOUS})
    counts = {"classes": len(labels), "videos": len(spans)}
    is_test = files[0].stem.endswith("_test")
    return Annotations(spans, tuple(labels), counts, {"classes": 20, "videos": 213 if is_test else 200})


def read_database(path: Path, database: Mapping[str, Any], subset: str, name: str) -> Annotations:
    """A JSON of ActivityNet's form. Raises ValueError for a subset that is not in it, or entries of another form."""
    spans: dict[str, list[tuple[str, float, float]]] = {}
    subsets = {str(entry.get("subset", "")).lower() for entry in database.values()}
    if subset.lower() not in subsets:
        raise ValueError(f"{path}: has no subset {subset!r}, it has {', '.join(sorted(subsets))}")
    try:
        for video, entry in database.items():
            if entry["subset"].lower() == subset.lower():
                spans[video] = [
                    (span["label"], float(span["segment"][0]), float(span["segment"][1]))
                    for span in entry["annotations"]
                ]
    except (LookupError, TypeError, ValueError):
        raise ValueError(f"{path}: video {video!r} has no annotations with label and segment [start, end]") from None
    labels = sorted({label for found in spans.values() for label, _, _ in found} - {AMBIGUOUS})
    counts = {"classes": len(labels), "videos": len(spans)}
    expected = {"classes": 20} if name == "thumos14" else {"classes": 200}
    if (name, subset) == ("activitynet13", "validation"):
        expected["videos"] = 4926
    return Annotations(spans, tuple(labels), counts, expected)


def mended(read: Annotations) -> Annotations:
    """THUMOS14 without what is known to be wrong with it."""
    spans = {}
    for video, found in read.spans.items():
        if video in BAD_VIDEOS:
            continue
        kept = [span for span in found if span[0] != AMBIGUOUS and span[2] > span[1]]
        kept += [(SUB_CLASSES[label], start, end) for label, start, end in kept if label in SUB_CLASSES]
        if kept:
            spans[video] = sorted(set(kept), key=lambda span: (span[1], span[2], span[0]))
    return read._replace(spans=spans)


def _database(path: Path) -> Mapping[str, Any] | None:
    """The part of a JSON file that says what happens in which video; None in a file of another kind."""
    try:
        document = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError):
        return None
    database = document.get("database") if isinstance(document, dict) else None
    usable = isinstance(database, dict) and all(isinstance(entry, dict) for entry in database.values())
    return database if usable else None
