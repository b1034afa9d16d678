"""Pointing and localization on a few real clips, marked by hand: what language in the tokens is worth on footage.

The marks are in ``marked.json`` beside this file; the clips are public ones that the folder given has to hold. Few
enough to look at one by one, and too few to tell two good models apart.

- pointing: the cell with the largest cosine with a noun, in the frame that was marked, lies in the noun's box. Beside
  it the centre of the frame, and a cell anywhere (the share of the frame that the box covers).
- localization: average mAP of when something is there, beside a span of the whole clip.

The benchmark is ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from pyratok.data.video_io import VideoError
from pyratok.eval.benchmarks.clips import tokens_of_file, videos_by_stem
from pyratok.eval.benchmarks.contract import Answer, Benchmark, BenchmarkProtocol, Item, Loaded, Scores
from pyratok.metrics.localization import THUMOS14_TIOUS, ScoredSpan, TrueSpan, localization_ap
from pyratok.tasks.cells import cell_vectors
from pyratok.tasks.localization import FLOOR, THRESHOLD, WINDOW, localize, rate_of
from pyratok.tasks.steps import step_edges
from pyratok.types import TokenPyramid

if TYPE_CHECKING:
    from pyratok.model.base import VideoTokenizer


def read_marks() -> bytes:
    """``marked.json`` as it ships."""
    return (resources.files("pyratok.eval.benchmarks") / "marked.json").read_bytes()


@dataclass(frozen=True, kw_only=True)
class MarkedProtocol(BenchmarkProtocol):
    """Clips with a short side of ``size``; ``window``, ``threshold``, ``floor`` as in localization; ``marks``: their
    digest."""

    benchmark: str = "marked"
    size: int = 256
    level: int = -1
    window: int = WINDOW
    threshold: float = THRESHOLD
    floor: float = FLOOR
    marks: str = ""


@dataclass(frozen=True, kw_only=True)
class MarkedItem(Item):
    """A clip; ``boxes`` by frame and noun, ``moments`` by query, ``frames``: how many the clip has."""

    path: Path
    frames: int
    boxes: Mapping[str, Mapping[str, Sequence[float]]]
    moments: Mapping[str, Sequence[Sequence[int]]]


@dataclass(frozen=True, kw_only=True)
class Marked(Benchmark[MarkedItem]):
    protocol: MarkedProtocol

    def load(self) -> Loaded[MarkedItem]:
        files, items, missing = videos_by_stem(self.data), [], []
        for name, marks in json.loads(read_marks())["clips"].items():
            if name not in files:
                missing.append(name)
                continue
            boxes, moments = marks["boxes"], marks.get("moments", {})
            items.append(MarkedItem(key=name, path=files[name], frames=marks["frames"], boxes=boxes, moments=moments))
        if not items:
            raise self.nothing(f"clip of the {len(missing)} that were marked ({', '.join(missing)})")
        return Loaded(items=tuple(items), missing=tuple(missing))

    def run(self, model: VideoTokenizer) -> Callable[[MarkedItem], Answer]:
        protocol = self.protocol
        settings: dict[str, Any] = {
            "level": protocol.level,
            "window": protocol.window,
            "threshold": protocol.threshold,
            "floor": protocol.floor,
        }

        def answer(item: MarkedItem) -> Answer:
            tokens = tokens_of_file(model, item.path, size=protocol.size, fps=None)
            found = tokens.geometry.frames
            if found != item.frames:
                raise VideoError(f"{item.path}: has {found} frames, the clip that was marked has {item.frames}")
            fps, spans = rate_of(tokens.geometry), []
            if item.moments:
                spans = [list(span) for span in localize(model, tokens, list(item.moments), **settings)]
            return {"points": point(model, tokens, item.boxes, protocol.level), "spans": spans, "fps": fps}

        return answer

    def score(self, answers: Sequence[tuple[MarkedItem, Answer]]) -> Scores:
        hits: dict[str, list[float]] = {"tokens": [], "centre": [], "anywhere": []}
        truths, claims, whole = list[TrueSpan](), list[ScoredSpan](), list[ScoredSpan]()
        for item, said in answers:
            for frame, nouns in item.boxes.items():
                for noun, box in nouns.items():
                    left, top, right, bottom = box
                    hits["tokens"].append(_is_in(said["points"][frame][noun], box))
                    hits["centre"].append(_is_in((0.5, 0.5), box))
                    hits["anywhere"].append((right - left) * (bottom - top))
            for query, moments in item.moments.items():
                video, fps = f"{item.key}/{query}", said["fps"]
                truths += [TrueSpan(video, "moment", first / fps, end / fps) for first, end in moments]
                whole.append(ScoredSpan(video, "moment", 0.0, item.frames / fps, 1.0))
            claims += [ScoredSpan(f"{item.key}/{query}", "moment", *span) for query, *span in said["spans"]]
        values = {f"pointing, {name}": float(np.mean(found)) for name, found in hits.items()}
        if truths:
            for name, said_spans in (("tokens", claims), ("whole clip", whole)):
                values[f"map, {name}"] = localization_ap(truths, said_spans, THUMOS14_TIOUS).average
        return Scores(values=values, details={"boxes": len(hits["tokens"]), "moments": len(truths)})


def with_marks(benchmark: Marked) -> Marked:
    """The benchmark whose protocol tells which marks they are."""
    digest = hashlib.sha256(read_marks()).hexdigest()[:16]
    return replace(benchmark, protocol=replace(benchmark.protocol, marks=digest))


def point(
    model: VideoTokenizer, tokens: TokenPyramid, nouns: Mapping[str, Mapping[str, Any]], level: int
) -> dict[str, dict[str, tuple[float, float]]]:
    """By frame and noun of ``nouns``: the middle of the cell that looks most like it, in parts of width and height."""
    geometry, level = tokens.geometry, level % len(tokens.levels)
    cells = F.normalize(cell_vectors(model, tokens, level), dim=-1)
    edges, (_, stride_h, stride_w) = step_edges(geometry, level), geometry.strides[level]
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for frame, asked in nouns.items():
        step: Tensor = cells[int(np.searchsorted(edges, int(frame), side="right")) - 1]
        cosines = step.flatten(0, 1) @ model.embed_text(list(asked)).T
        places = [divmod(int(place), step.shape[1]) for place in cosines.argmax(dim=0)]
        found[frame] = {
            noun: ((column + 0.5) * stride_w / geometry.width, (row + 0.5) * stride_h / geometry.height)
            for noun, (row, column) in zip(asked, places, strict=True)
        }
    return found


def _is_in(place: Sequence[float], box: Sequence[float]) -> float:
    (x, y), (left, top, right, bottom) = place, box
    return float(left <= x <= right and top <= y <= bottom)
