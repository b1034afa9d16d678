"""MVBench: twenty kinds of questions about real videos, each with some candidates, one of them right.

As distributed: ``json/TASK.json``, 200 items ``video, question, candidates, answer`` (and ``start``, ``end`` in five
tasks), and the videos in ``video/`` under the folders of their sources; episodic reasoning comes as folders of
pictures at 3 frames per second. Parts with a licence of their own (NTU RGB+D) are often not there: the result says so.

Source: Li et al., MVBench (arXiv 2311.17005); PyraTok (arXiv 2601.16210), sec. 4.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyratok.data.video_io import VideoError, load_video, probe
from pyratok.eval.benchmarks.clips import load_pictures
from pyratok.eval.benchmarks.contract import Answer, Benchmark, BenchmarkProtocol, Item, Loaded, Scores
from pyratok.eval.benchmarks.networks import digest_of_folder
from pyratok.types import Video

if TYPE_CHECKING:
    from pyratok.model.base import VideoTokenizer
    from pyratok.tasks.qa import Reader

TASKS = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": "clevrer/video_validation",
}
"""Every task and where its videos lie."""
ITEMS_PER_TASK = 200
PICTURES_FPS = 3.0
READERS = ("similarity", "answerer", "tokens", "language")


@dataclass(frozen=True, kw_only=True)
class MVBenchProtocol(BenchmarkProtocol):
    """``frames`` at the centres of as many segments of the video, or of its part from start to end; short side and
    centre ``size``. ``reader``: how tokens answer (:mod:`pyratok.tasks.qa`), ``reader_digest``: of its files."""

    benchmark: str = "mvbench"
    frames: int = 16
    size: int = 128
    reader: str = "similarity"
    reader_digest: str = ""
    scoring: str = "the candidate of highest score; accuracy per task, and mean over tasks"

    def __post_init__(self) -> None:
        if self.reader not in READERS:
            raise ValueError(f"reader is one of {', '.join(READERS)}, got {self.reader!r}")


class Segment(NamedTuple):
    """Seconds."""

    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class QuestionItem(Item):
    """``path``: a video, or a folder of pictures at :data:`PICTURES_FPS`; ``answer`` indexes ``candidates``."""

    task: str
    path: Path
    question: str
    candidates: tuple[str, ...]
    answer: int
    segment: Segment | None


@dataclass(frozen=True, kw_only=True)
class MVBench(Benchmark[QuestionItem]):
    """``reader``: the folder of an answerer ("answerer") or of a language model over tokens ("tokens"), or one with
    ``language_model`` and ``projector`` in it ("language")."""

    protocol: MVBenchProtocol
    reader: Path | None = None

    def load(self) -> Loaded[QuestionItem]:
        items, missing, counts = [], [], {"tasks": 0, "questions": 0}
        for task, place in TASKS.items():
            rows = self._rows(task)
            counts["tasks"] += rows is not None
            counts["questions"] += len(rows or ())
            for number, row in enumerate(rows or ()):
                path = self._video(place, row["video"])
                key = f"{task}/{number:03d}"
                if path is None:
                    missing.append(f"{key}: {place}/{row['video']}")
                else:
                    items.append(_item(key, task, path, row))
        if not counts["tasks"]:
            raise self.nothing("json/TASK.json")
        if not items:
            raise self.nothing(f"video of the {len(missing)} questions", self.data / "video")
        expected = {"tasks": len(TASKS), "questions": len(TASKS) * ITEMS_PER_TASK}
        return Loaded(items=tuple(items), missing=tuple(missing), counts=counts, expected=expected)

    def run(self, model: VideoTokenizer) -> Callable[[QuestionItem], Answer]:
        from pyratok.tasks.qa import ask

        reader = make_reader(self.protocol.reader, self.reader, model)

        def answer(item: QuestionItem) -> Answer:
            tokens = model.encode(centre_frames(item.path, item.segment, self.protocol.frames, self.protocol.size))
            said = ask(model, tokens, item.question, list(item.candidates), reader=reader)
            return {"option": said.option}

        return answer

    def score(self, answers: Sequence[tuple[QuestionItem, Answer]]) -> Scores:
        right: dict[str, list[bool]] = {}
        for item, said in answers:
            right.setdefault(item.task, []).append(said["option"] == item.answer)
        per_task = {task: float(np.mean(found)) for task, found in right.items()}
        chance = float(np.mean([1 / len(item.candidates) for item, _ in answers]))
        values = {
            "accuracy": float(np.mean(list(per_task.values()))),
            "accuracy_over_questions": float(np.mean([hit for found in right.values() for hit in found])),
            "chance": chance,
        }
        return Scores(
            values=values, details={"per_task": per_task, "asked": {task: len(found) for task, found in right.items()}}
        )

    def _rows(self, task: str) -> list[Mapping[str, Any]] | None:
        path = next((p for p in (self.data / "json" / f"{task}.json", self.data / f"{task}.json") if p.is_file()), None)
        if path is None:
            return None
        try:
            rows: list[Mapping[str, Any]] = json.loads(path.read_text("utf-8"))
            for row in rows:
                if row["candidates"].count(row["answer"]) != 1 or not row["question"] or not row["video"]:
                    raise ValueError(row)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ValueError(
                f"{path}: expected a list of items with video, question, candidates and answer, which is exactly one "
                "of the candidates; get the file again"
            ) from None
        return rows

    def _video(self, place: str, name: str) -> Path | None:
        paths = (root / place / name for root in (self.data / "video", self.data))
        return next((path for path in paths if path.exists()), None)


def make_reader(kind: str, folder: Path | None, model: VideoTokenizer) -> Reader:
    """One of :data:`READERS` for the tokens of a model. Raises ValueError where its files are wanting."""
    from pyratok.tasks.qa import AnswererReader, LanguageModelReader, SimilarityReader, TokenLMReader

    if kind == "similarity":
        return SimilarityReader()
    if folder is None:
        raise ValueError(f"reader={kind} needs its files: --network reader=DIR")
    if kind == "answerer":
        return AnswererReader.load(folder, model.model_id)
    if kind == "tokens":
        return TokenLMReader.load(folder, model.model_id)
    return LanguageModelReader.load(folder / "language_model", folder / "projector", model.model_id)


def with_reader(benchmark: MVBench, networks: Mapping[str, Path]) -> MVBench:
    """The benchmark with the files of its reader, whose digest goes into the protocol."""
    path = networks.get("reader")
    if path is None:
        return benchmark
    protocol = replace(benchmark.protocol, reader_digest=digest_of_folder(path))
    return replace(benchmark, protocol=protocol, reader=path)


def centre_frames(path: Path, segment: Segment | None, frames: int, size: int) -> Video:
    """The ``frames`` at the centres of equal parts of a video or of its ``segment``, fewer where the file ends before.

    Raises: :class:`~pyratok.data.video_io.VideoError`.
    """
    if path.is_dir():
        return _centre_pictures(path, segment, frames, size)
    start, end = segment or Segment(0.0, probe(path).duration or 1.0)
    step = max(end - start, 1e-3) / frames
    return load_video(path, size=size, crop=size, start=start + step / 2, fps=1 / step, frames=frames)


def _centre_pictures(folder: Path, segment: Segment | None, frames: int, size: int) -> Video:
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    last = len(pictures) / PICTURES_FPS
    start, end = segment or Segment(0.0, last)
    step = max(end - start, 1e-3) / frames
    times = [start + (index + 0.5) * step for index in range(frames)]
    chosen = [pictures[min(int(time * PICTURES_FPS), len(pictures) - 1)] for time in times] if pictures else []
    if not chosen:
        raise VideoError(f"{folder}: there is no picture in it")
    video = load_pictures(chosen, size, 1 / step)
    top, left = ((side - size) // 2 for side in video.shape[-2:])
    return Video(video.plain()[..., top : top + size, left : left + size].contiguous(), 1 / step)


def _item(key: str, task: str, path: Path, row: Mapping[str, Any]) -> QuestionItem:
    start, end = row.get("start"), row.get("end")
    # A wrong candidate that is there twice is one choice.
    candidates = list(
        {" ".join(text.casefold().split()): text for text in (*row["candidates"], row["answer"])}.values()
    )
    bounded = start is not None and end is not None and math.isfinite(float(start)) and float(end) > float(start) >= 0
    return QuestionItem(
        key=key,
        task=task,
        path=path,
        question=row["question"],
        candidates=tuple(candidates),
        answer=candidates.index(row["answer"]),
        segment=Segment(float(row["start"]), float(row["end"])) if bounded else None,
    )
