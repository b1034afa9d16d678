"""YouTube-VIS 2021 and OVIS: an object of a known class is a tube of masks; nothing is trained for the classes.

Layouts as distributed: ``train/instances.json`` with ``train/JPEGImages/VIDEO/00000.jpg`` (YouTube-VIS), and
``annotations_train.json`` with ``train/VIDEO/img_0000001.jpg`` (OVIS). The masks of the validation splits are not
public: there ``results.zip`` is written, which the evaluation servers take, and nothing is scored.

Sources: Yang et al., Video instance segmentation (2019); Qi et al., Occluded video instance segmentation (2022);
zero-shot use, PyraTok (arXiv 2601.16210), sec. 4.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from pyratok.eval.benchmarks.clips import load_pictures
from pyratok.eval.benchmarks.contract import Answer, Benchmark, BenchmarkProtocol, Item, Loaded, Scores
from pyratok.metrics.segmentation import (
    MAX_DETECTIONS,
    ScoredTube,
    TrueTube,
    Tube,
    jaccard,
    match_tubes,
    tube_iou,
    video_instance_ap,
)
from pyratok.tasks.crf import CRFConfig
from pyratok.tasks.segmentation import BACKGROUND, segment

if TYPE_CHECKING:
    from pyratok.model.base import VideoTokenizer


@dataclass(frozen=True, kw_only=True)
class VideoInstanceProtocol(BenchmarkProtocol):
    """Tokens of whole videos, the short side scaled to ``size``, at ``fps``; a mask per class name.

    Of the split every ``holdout``-th video, by id, is asked: the training split is large, and nothing here was
    trained on it. ``level``, ``background`` and ``crf`` (refinement with the pixels) as in
    :func:`pyratok.tasks.segmentation.segment`, ``fused`` for all levels together.
    """

    split: str = "train"
    holdout: int = 10
    size: int = 256
    fps: float = 6.0
    prompt: str = "{}"
    level: str = "-1"
    background: float = BACKGROUND
    crf: CRFConfig | None = field(default_factory=CRFConfig)
    ap: str = "tube IoU 0.50:0.05:0.95, 101 recalls, at most 100 tubes per class and video, at the true size"
    jaccard: str = "per frame, both empty is 1, mean over frames, then objects; greedy one-to-one within class by IoU"


@dataclass(frozen=True)
class _Release:
    """What a dataset is made of; ``videos`` by split."""

    annotations: tuple[str, ...]
    pictures: tuple[str, ...]
    categories: int
    videos: Mapping[str, int]


RELEASES = {
    "ytvis21": _Release(
        annotations=("{split}/instances.json", "{split}.json"),
        pictures=("{split}/JPEGImages", "{split}"),
        categories=40,
        videos={"train": 2985, "valid": 421, "test": 453},
    ),
    "ovis": _Release(
        annotations=("annotations_{split}.json", "annotations/annotations_{split}.json"),
        pictures=("{split}", "Images/{split}"),
        categories=25,
        videos={"train": 607, "valid": 140, "test": 154},
    ),
}


@dataclass(frozen=True, kw_only=True)
class VideoItem(Item):
    """A video with its frames; ``truths``: its annotations as the JSON has them, None where they are not public."""

    video_id: int
    height: int
    width: int
    frames: tuple[Path, ...]
    truths: tuple[Mapping[str, Any], ...] | None


@dataclass(frozen=True, kw_only=True)
class VideoInstances(Benchmark[VideoItem]):
    protocol: VideoInstanceProtocol

    def load(self) -> Loaded[VideoItem]:
        split, release = self.protocol.split, RELEASES[self.name]
        document = self._document
        folder = self._first(release.pictures, "folder of frames")
        truths: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for annotation in document.get("annotations") or ():
            truths[annotation["video_id"]].append(annotation)
        public = bool(document.get("annotations"))
        items, missing = [], []
        videos = sorted(document["videos"], key=lambda video: video["id"])
        for video in videos[:: self.protocol.holdout]:
            frames = tuple(folder / name for name in video["file_names"])
            if not frames or not all(path.is_file() for path in frames):
                missing.append(frames[0].parent.name if frames else str(video["id"]))
                continue
            items.append(
                VideoItem(
                    key=str(video["id"]),
                    video_id=video["id"],
                    height=video["height"],
                    width=video["width"],
                    frames=frames,
                    truths=tuple(truths[video["id"]]) if public else None,
                )
            )
        if not items:
            raise self.nothing(f"video of which all frames are there, of {len(missing)} annotated,", folder)
        return Loaded(
            items=tuple(items),
            missing=tuple(missing),
            counts={"videos": len(videos), "categories": len(self._names)},
            expected={"videos": release.videos.get(split, len(videos)), "categories": release.categories},
        )

    def run(self, model: VideoTokenizer) -> Callable[[VideoItem], Answer]:
        protocol = self.protocol
        words = {protocol.prompt.replace("{}", name): category for category, name in self._names.items()}
        level: Any = protocol.level if protocol.level == "fused" else int(protocol.level)

        def answer(item: VideoItem) -> Answer:
            video = load_pictures(item.frames, protocol.size, protocol.fps)
            found = segment(
                model,
                model.encode(video),
                list(words),
                video=None if protocol.crf is None else video,
                crf=protocol.crf,
                level=level,
                background=protocol.background,
            )
            kept: dict[str, int] = defaultdict(int)
            predictions = []
            for instance in found.instances():
                kept[instance.word] += 1
                if kept[instance.word] > MAX_DETECTIONS:
                    continue
                masks = _resized(np.asarray(instance.masks), item.height, item.width)
                if masks.any():
                    predictions.append(
                        {
                            "video_id": item.video_id,
                            "category_id": words[instance.word],
                            "segmentations": Tube.from_masks(masks).to_coco(),
                            "score": float(instance.score),
                        }
                    )
            return {"predictions": predictions}

        return answer

    def score(self, answers: Sequence[tuple[VideoItem, Answer]]) -> Scores:
        if any(item.truths is None for item, _ in answers):
            return Scores(values={}, details={"note": "the masks of this split are not public: submit results.zip"})
        matches, overlaps = [], []
        for item, said in answers:
            truths = [
                TrueTube(truth["category_id"], self._tube(item, truth), bool(truth.get("iscrowd", 0)))
                for truth in item.truths or ()
            ]
            claims = [
                ScoredTube(claim["category_id"], self._tube(item, claim), claim["score"])
                for claim in said["predictions"]
            ]
            matches += match_tubes(truths, claims)
            overlaps += _jaccards([truth for truth in truths if not truth.crowd], claims)
        scores = video_instance_ap(matches)
        values = {name: getattr(scores, name) for name in ("ap", "ap50", "ap75", "ar1", "ar10")}
        per_class = {self._names[int(category)]: value for category, value in scores.per_class.items()}
        return Scores(
            values=values | {"jaccard": float(np.mean(overlaps))},
            details={"ap_per_class": per_class, "objects": len(overlaps)},
        )

    def files(self, answers: Sequence[tuple[VideoItem, Answer]]) -> Mapping[str, bytes]:
        """``results.zip`` with the list of predictions, as the evaluation servers take it."""
        predictions = [prediction for _, said in answers for prediction in said["predictions"]]
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            entry = zipfile.ZipInfo("results.json", date_time=(1980, 1, 1, 0, 0, 0))  # equal work, equal bytes
            archive.writestr(entry, json.dumps(predictions), compress_type=zipfile.ZIP_DEFLATED)
        return {"results.zip": buffer.getvalue()}

    @cached_property
    def _document(self) -> dict[str, Any]:
        path = self._first(RELEASES[self.name].annotations, "annotation file")
        try:
            document: dict[str, Any] = json.loads(path.read_text("utf-8"))
            videos = document["videos"]
            assert isinstance(document["categories"], list)
            assert all({"id", "width", "height", "file_names"} <= video.keys() for video in videos)
        except (ValueError, LookupError, AttributeError, TypeError, AssertionError):
            raise ValueError(f"{path}: not annotations with videos, annotations and categories") from None
        return document

    @cached_property
    def _names(self) -> dict[int, str]:
        """Class names for people, by id."""
        return {entry["id"]: entry["name"].replace("_", " ").strip() for entry in self._document["categories"]}

    def _first(self, patterns: Sequence[str], what: str) -> Path:
        places = [self.data / pattern.format(split=self.protocol.split) for pattern in patterns]
        found = next((path for path in places if path.exists()), None)
        if found is None:
            raise self.nothing(f"{what} {' or '.join(path.relative_to(self.data).as_posix() for path in places)}")
        return found

    def _tube(self, item: VideoItem, annotation: Mapping[str, Any]) -> Tube:
        segmentations = annotation["segmentations"]
        if len(segmentations) != len(item.frames):
            raise ValueError(
                f"{self.name}: a mask of video {item.video_id} has {len(segmentations)} frames, the video "
                f"{len(item.frames)}; get the annotations again"
            )
        return Tube.from_coco(segmentations, item.height, item.width)


def _jaccards(truths: Sequence[TrueTube], claims: Sequence[ScoredTube]) -> list[float]:
    """J of every true object: with the tube of its class given to it, largest overlaps first; 0 without one."""
    pairs = sorted(
        (
            (tube_iou(claim.tube, truth.tube), i, j)
            for i, truth in enumerate(truths)
            for j, claim in enumerate(claims)
            if truth.category == claim.category
        ),
        key=lambda pair: -pair[0],
    )
    scores: dict[int, float] = {}
    taken: set[int] = set()
    for overlap, i, j in pairs:
        if overlap > 0 and i not in scores and j not in taken:
            scores[i] = jaccard(claims[j].tube, truths[i].tube)
            taken.add(j)
    return [scores.get(i, 0.0) for i in range(len(truths))]


def _resized(masks: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bool ``[T, h, w]`` to ``[T, height, width]``, where more than half of a pixel is inside."""
    if masks.shape[1:] == (height, width):
        return masks
    soft = F.interpolate(torch.from_numpy(masks).float()[None], (height, width), mode="bilinear", align_corners=False)
    return (soft[0] > 0.5).numpy()
