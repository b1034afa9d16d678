"""Going on with real videos: are the frames that a prior predicts nearer to those that came than a still picture is?

The first ``given`` frames of every clip are shown, and the others compared with what came. PSNR in dB of

- still: the last given frame, repeated
- sample: a clip that the prior draws, in the mean of ``samples``; best: the best of these, by who knows the truth
- mean: the mean of these clips, which is what squared errors ask for: where a prior cannot know, it blurs
- tokenizer: the true frames through the levels of the tokenizer that the prior predicts: what a perfect one would reach

``..._decoded`` are the same by tokens alone, without the pixels of the frames given
(:mod:`pyratok.tasks.generation.seam`); ``..._ahead`` the number of clips on which that is better than the still.

Source: against a still picture and by the best of many samples as in stochastic video prediction (Denton and Fergus,
arXiv 1802.07687); PyraTok (arXiv 2601.16210) has no such measurement.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyratok.data.video_io import VideoError, load_video
from pyratok.eval.benchmarks.clips import videos_of
from pyratok.eval.benchmarks.contract import Answer, Benchmark, BenchmarkProtocol, Item, Loaded, Scores
from pyratok.eval.benchmarks.networks import digest_of_folder
from pyratok.metrics.reconstruction import psnr
from pyratok.tasks.generation.clips import continue_clip
from pyratok.tasks.generation.files import load_prior
from pyratok.tasks.generation.seam import NOISE, WINDOW, join
from pyratok.types import Video

if TYPE_CHECKING:
    from pyratok.model.base import VideoTokenizer
    from pyratok.tasks.generation.prior import Prior

STILL, DECODED = "psnr_still", "_decoded"


@dataclass(frozen=True, kw_only=True)
class ContinuationProtocol(BenchmarkProtocol):
    """The first ``frames`` frames of every video at its own rate, short side ``size``, centre ``size x size``; the
    first ``given`` of them are shown. ``samples`` clips are drawn, with ``temperature`` and seeds from ``seed`` on.
    ``prior``: digest of its folder."""

    benchmark: str = "continuation"
    frames: int = 17
    given: int = 9
    size: int = 64
    samples: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    prior: str = ""
    psnr: str = "RGB in [0, 1], one mean squared error over all predicted frames of a clip, at most 100 dB"
    seam: str = f"weight 1 / (1 + ({NOISE}^2 / change)^2), {WINDOW} x {WINDOW} pixels"

    def __post_init__(self) -> None:
        if not 0 < self.given < self.frames:
            raise ValueError(f"given is between 1 and frames - 1 = {self.frames - 1}, got {self.given}")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")


@dataclass(frozen=True, kw_only=True)
class ClipItem(Item):
    path: Path


@dataclass(frozen=True, kw_only=True)
class Continuation(Benchmark[ClipItem]):
    """``prior``: the folder of what is measured."""

    protocol: ContinuationProtocol
    prior: Path | None = None

    def load(self) -> Loaded[ClipItem]:
        videos = videos_of(self.data)
        if not videos:
            raise self.nothing("video")
        root = self.data if self.data.is_dir() else self.data.parent
        items = tuple(ClipItem(key=path.relative_to(root).as_posix(), path=path) for path in videos)
        return Loaded(items=items, counts={"clips": len(items)})

    def run(self, model: VideoTokenizer) -> Callable[[ClipItem], Answer]:
        if self.prior is None:
            raise ValueError("continuation measures a prior: --network prior=DIR, the folder that pyratok train made")
        protocol, prior = self.protocol, load_prior(self.prior, model.model_id)

        def answer(item: ClipItem) -> Answer:
            video = load_video(item.path, size=protocol.size, crop=protocol.size, frames=protocol.frames)
            if video.shape[2] < protocol.frames:
                raise VideoError(f"{item.path}: has {video.shape[2]} frames, a clip needs {protocol.frames}")
            given, truth = video.plain().tensor_split([protocol.given], dim=2)
            drawn = draw(model, prior, video, protocol)
            shown = {"mean": drawn.mean(0, keepdim=True)} | {f"{n}": one for n, one in enumerate(drawn.split(1))}
            shown["tokenizer"] = model.decode(model.encode(video).prefix(prior.config.num_levels)).plain()

            def score(predicted: Tensor) -> float:
                return psnr(predicted, truth, mode="video").item()

            said: Answer = {STILL: score(given[:, :, -1:].expand_as(truth))}
            for kind, seen in (("", partial(join, given)), (DECODED, _as_it_is)):
                found = {name: score(seen(one)[:, :, protocol.given :]) for name, one in shown.items()}
                singles = [found.pop(f"{number}") for number in range(protocol.samples)]
                found |= {"sample": statistics.fmean(singles), "best": max(singles)}
                said |= {f"psnr_{name}{kind}": value for name, value in found.items()}
            return said

        return answer

    def score(self, answers: Sequence[tuple[ClipItem, Answer]]) -> Scores:
        values = {name: statistics.fmean(said[name] for _, said in answers) for name in answers[0][1]}
        for name in tuple(values):
            if name != STILL:
                ahead = sum(said[name] > said[STILL] for _, said in answers)
                values[f"{name.removeprefix('psnr_')}_ahead"] = float(ahead)
        return Scores(values=values, details={"clips": {item.key: said for item, said in answers}})


def draw(model: VideoTokenizer, prior: Prior, video: Video, protocol: ContinuationProtocol) -> Tensor:
    """What a prior makes of the first ``given`` frames of a clip, as tokens alone say it: ``[samples, 3, T, H, W]``."""
    tokens = continue_clip(
        model,
        prior,
        Video(video.plain()[:, :, : protocol.given], video.fps),
        frames=protocol.frames,
        count=protocol.samples,
        temperature=protocol.temperature,
        top_p=protocol.top_p,
        seed=protocol.seed,
    )
    return torch.cat([model.decode(tokens.select(number)).plain() for number in range(protocol.samples)])


def _as_it_is(video: Tensor) -> Tensor:
    return video


def with_prior(benchmark: Continuation, networks: Mapping[str, Path]) -> Continuation:
    """The benchmark of a prior, whose digest goes into the protocol."""
    if (prior := networks.get("prior")) is None:
        return benchmark
    if not prior.is_dir():
        raise ValueError(f"{prior}: no such folder")
    return replace(benchmark, protocol=replace(benchmark.protocol, prior=digest_of_folder(prior)), prior=prior)
