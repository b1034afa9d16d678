"""The zero-shot tasks on rendered clips, whose truth is exact: segmentation, localization and questions.

Clips are drawn anew for every item from its own seed, of nouns that training may show (seen) and of those it never
showed or named (unseen). Beside the tokens stand baselines that see the same pixels and no language:

- random: cells of the last level dealt out among the words; a span anywhere; any option
- centre: a box of half the frame's side; the middle half of the clip
- saliency: what differs from the frame's mean colour; runs of much change between frames
- any shot, whole clip (localization): one of the shots, as if the cuts were known; all of it
- colour: pixels with the colour of the most salient one
- blind (questions): the same reader before a grey clip, which is what its language alone guesses

The benchmark is ours.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import repeat
from numpy.typing import NDArray

from pyratok.data.manifests import Media, gather
from pyratok.data.questions import KINDS, QuestionedScenes
from pyratok.data.scenes import CaptionedClip, ObjectTruth
from pyratok.data.synthetic import CaptionedScenes, SceneConfig
from pyratok.data.words import split_nouns
from pyratok.eval.benchmarks.contract import Answer, Benchmark, BenchmarkProtocol, Item, Loaded, Scores
from pyratok.eval.benchmarks.mvbench import READERS, make_reader
from pyratok.eval.benchmarks.networks import digest_of_folder
from pyratok.eval.language import to_video
from pyratok.metrics.localization import THUMOS14_TIOUS, ScoredSpan, TrueSpan, localization_ap
from pyratok.metrics.segmentation import Tube, jaccard
from pyratok.tasks.crf import CRFConfig
from pyratok.tasks.localization import FLOOR, THRESHOLD, find_runs, localize
from pyratok.tasks.segmentation import BACKGROUND, segment
from pyratok.types import Stride, Video

if TYPE_CHECKING:
    from pyratok.model.base import VideoTokenizer

SPLITS = ("seen", "unseen")
PARTS = ("segmentation", "localization", "questions")
MIN_SEEN = 0.005
"""Share of the frame that an object covers where it counts as there."""

Masks = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class RenderedProtocol(BenchmarkProtocol):
    """``clips`` per part and kind of nouns, of ``frames x size x size`` at ``fps``; where something is to be found in
    time, of ``shots`` cut together, of ``shot_frames`` each; sizes of objects in parts of the frame's side;
    ``window``, ``threshold``, ``floor``, ``most`` as in localization; ``material``: digest of sprites and photos.
    """

    benchmark: str = "rendered"
    clips: int = 60
    frames: int = 33
    size: int = 128
    fps: float = 12.0
    shots: tuple[int, int] = (3, 5)
    shot_frames: tuple[int, int] = (17, 33)
    objects: tuple[int, int] = (2, 3)
    small: tuple[float, float] = (0.3, 0.5)
    large: tuple[float, float] = (0.4, 0.7)
    level: str = "-1"
    background: float = BACKGROUND
    crf: CRFConfig = field(default_factory=CRFConfig)
    window: int = 12
    threshold: float = THRESHOLD
    floor: float = FLOOR
    most: int = 3
    reader: str = "similarity"
    reader_digest: str = ""
    seed: int = 1
    material: str = ""
    jaccard: str = "mask of a noun against its object, per frame, both empty is 1; mean over frames, then objects"
    localization: str = "when an object of one shot is there, by its noun; average mAP at tIoU 0.3:0.1:0.7, all queries"

    def __post_init__(self) -> None:
        if self.reader not in READERS:
            raise ValueError(f"reader is one of {', '.join(READERS)}, got {self.reader!r}")


@dataclass(frozen=True, kw_only=True)
class ClipItem(Item):
    """The ``index``-th clip of a part, of seen or unseen nouns."""

    part: str
    nouns: str
    index: int


@dataclass(frozen=True, kw_only=True)
class Rendered(Benchmark[ClipItem]):
    """``reader``: files of what answers questions, if it has any."""

    protocol: RenderedProtocol
    reader: Path | None = None

    def load(self) -> Loaded[ClipItem]:
        seen, unseen = split_nouns(self._media.sprites)
        for name, nouns in (("seen", seen), ("unseen", unseen)):
            if len(nouns) < 4:
                raise self.nothing(f"sprite of 4 {name} nouns, only of {len(nouns)},")
        items = [
            ClipItem(key=f"{part}/{nouns}/{index:04d}", part=part, nouns=nouns, index=index)
            for part in PARTS
            for nouns in SPLITS
            for index in range(self.protocol.clips)
        ]
        return Loaded(items=tuple(items), counts={"seen nouns": len(seen), "unseen nouns": len(unseen)})

    def run(self, model: VideoTokenizer) -> Callable[[ClipItem], Answer]:
        answers: dict[str, Callable[[ClipItem, np.random.Generator], Answer]] = {
            "segmentation": self._segmentation(model),
            "localization": self._localization(model),
            "questions": self._questions(model),
        }

        def answer(item: ClipItem) -> Answer:
            place = (self.protocol.seed, PARTS.index(item.part), SPLITS.index(item.nouns), item.index)
            return answers[item.part](item, np.random.default_rng(place))

        return answer

    def score(self, answers: Sequence[tuple[ClipItem, Answer]]) -> Scores:
        values: dict[str, float] = {}
        details: dict[str, Any] = {}
        for nouns in SPLITS:
            own = {part: [(i.key, a) for i, a in answers if (i.part, i.nouns) == (part, nouns)] for part in PARTS}
            methods: dict[str, list[float]] = defaultdict(list)
            for _, said in own["segmentation"]:
                for method, found in said["jaccard"].items():
                    methods[method] += found
            for method, found in methods.items():
                values[f"jaccard {nouns}, {method}"] = float(np.mean(found))
            asked = [(key, said) for key, said in own["localization"] if said["truths"]]
            for method in asked[0][1]["spans"] if asked else ():
                values[f"map {nouns}, {method}"] = _average_map(asked, method)
            kinds: dict[str, list[bool]] = defaultdict(list)
            for method in ("tokens", "blind", "random"):
                found = [said[method] == said["truth"] for _, said in own["questions"]]
                if found:
                    values[f"questions {nouns}, {method}"] = float(np.mean(found))
            for _, said in own["questions"]:
                kinds[said["kind"]].append(said["tokens"] == said["truth"])
            details[nouns] = {"questions": {kind: [sum(hits), len(hits)] for kind, hits in kinds.items()}}
        return Scores(values=values, details=details)

    # ---------------------------------------------------------------------------------------------------- the parts

    def _segmentation(self, model: VideoTokenizer) -> Callable[[ClipItem, np.random.Generator], Answer]:
        protocol = self.protocol
        level: Any = protocol.level if protocol.level == "fused" else int(protocol.level)
        scenes = self._scenes(objects=protocol.objects, sizes=protocol.small)

        def answer(item: ClipItem, rng: np.random.Generator) -> Answer:
            clip, video = self._clip(scenes[item.nouns], rng)
            tokens = model.encode(video)
            words = [truth.noun for truth in clip.objects]
            found = {}
            for method, crf in (("tokens", None), ("tokens with crf", protocol.crf)):
                said = segment(
                    model,
                    tokens,
                    words,
                    video=None if crf is None else video,
                    crf=crf,
                    level=level,
                    background=protocol.background,
                )
                found[method] = np.asarray(said.masks)
            found |= {name: np.stack([mask] * len(words)) for name, mask in baseline_masks(clip.video).items()}
            found["random"] = random_masks(rng, len(words), clip.video.shape[:3], model.strides[-1])
            return {"jaccard": {name: _jaccards(masks, clip.objects) for name, masks in found.items()}}

        return answer

    def _localization(self, model: VideoTokenizer) -> Callable[[ClipItem, np.random.Generator], Answer]:
        protocol = self.protocol
        settings: dict[str, Any] = {
            "window": protocol.window,
            "threshold": protocol.threshold,
            "floor": protocol.floor,
            "most": protocol.most,
        }
        scenes = self._scenes(objects=(1, 2), sizes=protocol.large)

        def answer(item: ClipItem, rng: np.random.Generator) -> Answer:
            shots, cuts, truths = self._film(scenes[item.nouns], rng)
            film = np.concatenate([shot.video for shot in shots])
            spans: dict[str, list[Any]] = {
                name: [] for name in ("tokens", "random", "any shot", "whole clip", "centre", "saliency")
            }
            if truths:
                video = Video(torch.cat([to_video([shot]) for shot in shots], dim=2), protocol.fps)
                for noun, start, end, score in localize(model, model.encode(video), list(truths), **settings):
                    spans["tokens"].append([noun, start, end, score])
            change = np.abs(np.diff(film.astype(np.float64), axis=0)).mean(axis=(1, 2, 3))
            runs = find_runs(np.concatenate([change[:1], change]), **settings)
            length, seconds = len(film) / protocol.fps, [frame / protocol.fps for frame in cuts]
            for noun in truths:
                spans["random"].append([noun, *sorted(rng.uniform(0, length, 2).tolist()), rng.random()])
                any_shot = int(rng.integers(len(shots)))
                spans["any shot"].append([noun, *seconds[any_shot : any_shot + 2], rng.random()])
                spans["whole clip"].append([noun, 0.0, length, 1.0])
                spans["centre"].append([noun, length / 4, 3 * length / 4, 1.0])
                spans["saliency"] += [
                    [noun, run.first / protocol.fps, run.end / protocol.fps, run.score] for run in runs
                ]
            return {"truths": {n: [f / protocol.fps for f in span] for n, span in truths.items()}, "spans": spans}

        return answer

    def _questions(self, model: VideoTokenizer) -> Callable[[ClipItem, np.random.Generator], Answer]:
        from pyratok.tasks.qa import ask

        protocol = self.protocol
        reader = make_reader(protocol.reader, self.reader, model)
        scenes = self._scenes(objects=(1, 3))
        grey = model.encode(Video(torch.zeros(1, 3, protocol.frames, protocol.size, protocol.size), protocol.fps))

        def answer(item: ClipItem, rng: np.random.Generator) -> Answer:
            kind = KINDS[item.index % len(KINDS)]
            source = QuestionedScenes(scenes[item.nouns], (kind,))
            clip, question = source.sample_questioned(rng, protocol.frames, protocol.size)
            tokens = model.encode(Video(to_video([clip]), protocol.fps))
            said: Answer = {"kind": kind, "truth": question.answer, "random": int(rng.integers(len(question.options)))}
            for method, pyramid in (("tokens", tokens), ("blind", grey)):
                said[method] = ask(model, pyramid, question.text, question.options, reader=reader).option
            return said

        return answer

    # ------------------------------------------------------------------------------------------------------- clips

    @cached_property
    def _media(self) -> Media:
        return gather([self.data])

    def _scenes(self, **settings: Any) -> dict[str, CaptionedScenes]:
        """Sources of clips of seen and of unseen nouns."""
        media = self._media
        configs = {nouns: SceneConfig(nouns=nouns, **settings) for nouns in SPLITS}
        return {nouns: CaptionedScenes(media.sprites, media.photos, None, c) for nouns, c in configs.items()}

    def _clip(self, scenes: CaptionedScenes, rng: np.random.Generator) -> tuple[CaptionedClip, Video]:
        clip = scenes.sample_captioned(rng, self.protocol.frames, self.protocol.size)
        return clip, Video(to_video([clip]), self.protocol.fps)

    def _film(
        self, scenes: CaptionedScenes, rng: np.random.Generator
    ) -> tuple[list[CaptionedClip], list[int], dict[str, tuple[int, int]]]:
        """Shots, the frames between which each lies, and those ``[first, end)`` where the objects of one shot are."""
        protocol = self.protocol
        lengths = rng.integers(*protocol.shot_frames, size=rng.integers(*protocol.shots, endpoint=True), endpoint=True)
        shots = [scenes.sample_captioned(rng, int(length), protocol.size) for length in lengths]
        cuts = [0, *np.cumsum(lengths).tolist()]
        told = Counter(truth.noun for shot in shots for truth in shot.objects)
        truths = {
            truth.noun: (begin + span[0], begin + span[1])
            for begin, shot in zip(cuts, shots, strict=False)
            for truth in shot.objects
            if told[truth.noun] == 1 and (span := presence(truth)) is not None
        }
        return shots, cuts, truths


def with_material(benchmark: Rendered, networks: Mapping[str, Path]) -> Rendered:
    """The benchmark whose protocol tells what clips are rendered from, and the files of its reader."""
    try:
        media = benchmark._media
    except ValueError:
        return benchmark  # load says so
    lines = sorted(f"{e.path.name} {e.path.stat().st_size} {e.caption}" for e in (*media.sprites, *media.photos))
    protocol = replace(benchmark.protocol, material=hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16])
    if reader := networks.get("reader"):
        protocol = replace(protocol, reader_digest=digest_of_folder(reader))
    return replace(benchmark, protocol=protocol, reader=reader)


def presence(truth: ObjectTruth) -> tuple[int, int] | None:
    """Frames ``[first, end)`` between which an object is in the picture; None where it never is."""
    there = np.flatnonzero(truth.masks.mean(axis=(1, 2)) >= MIN_SEEN)
    return (int(there[0]), int(there[-1]) + 1) if there.size else None


def baseline_masks(video: NDArray[np.uint8]) -> dict[str, Masks]:
    """Guesses without language for a clip uint8 ``[T, H, W, 3]``, the same for every word: bool ``[T, H, W]`` each."""
    frames, height, width = video.shape[:3]
    centre = np.zeros((frames, height, width), dtype=bool)
    centre[:, height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    colour = video.astype(np.float64) / 255
    away = colour - colour.mean(axis=(1, 2), keepdims=True)
    distance = np.linalg.norm(away, axis=-1)
    flat = distance.reshape(frames, -1)
    salient = distance > (flat.mean(axis=1) + flat.std(axis=1))[:, None, None]
    best = away.reshape(frames, -1, 3)[np.arange(frames), flat.argmax(axis=1)]
    norms = distance * np.linalg.norm(best, axis=-1)[:, None, None]
    cosine = np.einsum("thwc,tc->thw", away, best) / np.maximum(norms, 1e-9)
    return {
        "centre": centre,
        "saliency": salient,
        "colour": (cosine > 0.9) & (distance > flat.mean(axis=1)[:, None, None]),
    }


def random_masks(rng: np.random.Generator, words: int, shape: tuple[int, ...], stride: Stride) -> Masks:
    """Every cell of the grid to one of the words or to none: bool ``[words, T, H, W]``."""
    frames, height, width = shape
    grid = [-(-side // step) for side, step in zip(shape, stride, strict=True)]
    labels = torch.from_numpy(rng.integers(0, words + 1, grid))
    whole = repeat(labels, "t h w -> (t a) (h b) (w c)", a=stride[0], b=stride[1], c=stride[2])
    dealt = F.one_hot(whole[:frames, :height, :width], words + 1)[..., :words].bool()
    return np.ascontiguousarray(dealt.permute(3, 0, 1, 2).numpy())


def _jaccards(masks: Masks, truths: Sequence[ObjectTruth]) -> list[float]:
    return [
        jaccard(Tube.from_masks(mask), Tube.from_masks(truth.masks)) for mask, truth in zip(masks, truths, strict=True)
    ]


def _average_map(answers: Sequence[tuple[str, Answer]], method: str) -> float:
    """Every query of every clip is a video of its own with one true span; all queries are one class."""
    truths = [
        TrueSpan(f"{key}/{noun}", "object", *span) for key, said in answers for noun, span in said["truths"].items()
    ]
    claims = [
        ScoredSpan(f"{key}/{noun}", "object", start, end, score)
        for key, said in answers
        for noun, start, end, score in said["spans"][method]
    ]
    return localization_ap(truths, claims, THUMOS14_TIOUS).average
