"""Kinetics-400, -600 and -700: which of hundreds of actions does a clip show? None was trained.

The list is a CSV ``label,youtube_id,time_start,time_end,split``; a clip is ``ID_START_END.mp4`` with six digits for
either time, or ``ID.mp4``, in whatever folder. Videos go from YouTube year after year, so how many were found belongs
to the result.

Source: Kay et al. (2017), Carreira et al. (2018, 2019); zero-shot use, PyraTok (arXiv 2601.16210), sec. 4.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyratok.data.video_io import load_video
from pyratok.eval.benchmarks.clips import videos_by_stem
from pyratok.eval.benchmarks.contract import Answer, Benchmark, BenchmarkProtocol, Item, Loaded, Scores
from pyratok.tasks.classification import TEMPLATES, clip_vectors, embed_names

if TYPE_CHECKING:
    from pyratok.model.base import VideoTokenizer

COLUMNS = {"label", "youtube_id", "time_start", "time_end", "split"}
SPLITS = {"val": ("val", "validate", "validation"), "train": ("train",), "test": ("test",)}
"""Names of each split in the lists that are about."""
NAMES_KEPT = 5


@dataclass(frozen=True, kw_only=True)
class KineticsProtocol(BenchmarkProtocol):
    """Tokens of the first ``frames`` frames at ``fps``, short side ``size``, centre ``size x size``; the name whose
    vector, a mean over ``templates``, is closest to that of the clip.
    """

    split: str = "val"
    frames: int = 81
    fps: float = 8.0
    size: int = 128
    templates: tuple[str, ...] = TEMPLATES
    vectors: str = "last level, mean over tokens; templates averaged after normalisation"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split is one of {', '.join(SPLITS)}, got {self.split!r}")


@dataclass(frozen=True, kw_only=True)
class ClipItem(Item):
    path: Path
    label: str


@dataclass(frozen=True, kw_only=True)
class Kinetics(Benchmark[ClipItem]):
    protocol: KineticsProtocol

    def load(self) -> Loaded[ClipItem]:
        files = videos_by_stem(self.data)
        items, missing = [], []
        for key, label, youtube_id in self._rows:
            path = files.get(key) or files.get(youtube_id)
            if path is None:
                missing.append(key)
            else:
                items.append(ClipItem(key=key, path=path, label=label))
        if not items:
            raise self.nothing(f"video of the {len(missing)} in the list")
        return Loaded(
            items=tuple(items),
            missing=tuple(missing),
            counts={"clips": len(self._rows), "classes": len(self._labels)},
            expected={"classes": int(self.name.removeprefix("kinetics"))},
        )

    def run(self, model: VideoTokenizer) -> Callable[[ClipItem], Answer]:
        protocol, labels = self.protocol, self._labels
        words = embed_names(model, labels, protocol.templates)

        def answer(item: ClipItem) -> Answer:
            video = load_video(
                item.path, size=protocol.size, crop=protocol.size, fps=protocol.fps, frames=protocol.frames
            )
            scores = (clip_vectors(model, model.encode(video)) @ words.T)[0]
            order = scores.argsort(descending=True, stable=True).tolist()
            truth = labels.index(item.label)
            return {"rank": order.index(truth), "best": [labels[index] for index in order[:NAMES_KEPT]]}

        return answer

    def score(self, answers: Sequence[tuple[ClipItem, Answer]]) -> Scores:
        ranks = np.array([said["rank"] for _, said in answers])
        per_class = {}
        for label in sorted({item.label for item, _ in answers}):
            own = [said["rank"] == 0 for item, said in answers if item.label == label]
            per_class[label] = float(np.mean(own))
        values = {f"top{k}": float((ranks < k).mean()) for k in (1, 5)}
        values["mean_class_top1"] = float(np.mean(list(per_class.values())))
        return Scores(values=values | {"chance_top1": 1 / len(self._labels)}, details={"top1_per_class": per_class})

    @cached_property
    def _rows(self) -> list[tuple[str, str, str]]:
        """Name, label and YouTube id of every clip of the split, once each."""
        rows: dict[str, tuple[str, str, str]] = {}
        for path in sorted(self.data.rglob("*.csv")):
            with open(path, encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file)
                if not set(reader.fieldnames or ()) >= COLUMNS:
                    continue
                for row in reader:
                    if row["split"] not in SPLITS[self.protocol.split]:
                        continue
                    try:
                        start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
                    except (TypeError, ValueError):
                        raise ValueError(
                            f"{path}, line {reader.line_num}: times are seconds, got {row['time_start']!r} and "
                            f"{row['time_end']!r}"
                        ) from None
                    key = f"{row['youtube_id']}_{start:06d}_{end:06d}"
                    rows[key] = (key, row["label"].strip(), row["youtube_id"])
        if not rows:
            raise self.nothing(f"CSV with {', '.join(sorted(COLUMNS))} and rows of split {self.protocol.split}")
        return list(rows.values())

    @cached_property
    def _labels(self) -> list[str]:
        return sorted({label for _, label, _ in self._rows})
