"""Generated videos against real ones: gFVD on UCF-101 and FVD with TC on WebVid. No tokenizer takes part.

``generated/`` holds the videos of a prior, made anywhere; ``real/`` those of the dataset: for UCF-101
``CLASS/v_CLASS_gXX_cYY.avi``, of which ``trainlist01.txt``, if it is there, says which are the train split.

Sources: Unterthiner et al., FVD (2018); Wang et al., LARP (2024), for gFVD: 10,000 samples of 16x128x128 against the
train split; Liu et al., EvalCrafter (2024), for the temporal consistency that the paper leaves undefined.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from einops import rearrange

from pyratok.data.video_io import VideoError, load_video
from pyratok.eval.benchmarks.clips import videos_of
from pyratok.eval.benchmarks.contract import Answer, Benchmark, BenchmarkProtocol, Item, Loaded, Scores
from pyratok.eval.benchmarks.networks import I3D, ClipImages, sha256_of
from pyratok.metrics.consistency import temporal_consistency
from pyratok.metrics.frechet import feature_statistics, frechet_distance

if TYPE_CHECKING:
    from pyratok.model.base import VideoTokenizer

TRAIN_LIST = "trainlist01.txt"
UCF_TRAIN = 9537


@dataclass(frozen=True, kw_only=True)
class GeneratedProtocol(BenchmarkProtocol):
    """The first ``frames`` frames of every video, short side ``size``, centre ``size x size``; ``samples`` generated
    ones (0: all), never one of them twice. ``i3d``, ``clip``: SHA-256 of the files of these networks."""

    frames: int = 16
    size: int = 128
    samples: int = 0
    consistency: bool = False
    i3d: str = ""
    clip: str = ""
    fvd: str = "I3D, 224 x 224 bilinear, covariance / (N - 1)"
    tc: str = "100 x mean cosine of consecutive CLIP ViT-B/32 frame embeddings; mean over generated videos"


PROTOCOLS = {
    "ucf101-gfvd": GeneratedProtocol(benchmark="ucf101-gfvd", samples=10_000),
    "webvid-t2v": GeneratedProtocol(benchmark="webvid-t2v", size=256, consistency=True),
}


@dataclass(frozen=True, kw_only=True)
class SampleItem(Item):
    path: Path
    is_real: bool


@dataclass(frozen=True, kw_only=True)
class Generated(Benchmark[SampleItem]):
    protocol: GeneratedProtocol
    i3d: Path | None = None
    clip: Path | None = None
    needs_model: ClassVar[bool] = False

    def load(self) -> Loaded[SampleItem]:
        made = self._videos("generated")
        real, missing = self._train_split() if self._lists() else (self._videos("real"), [])
        wanted = self.protocol.samples
        if len(made) < wanted:
            raise ValueError(
                f"{self.name} takes {wanted:,} samples, {self.data / 'generated'} holds {len(made):,}; videos are not "
                f"repeated: generate the others, or say --set samples={len(made)}, which is another protocol"
            )
        items = [
            SampleItem(key=path.relative_to(self.data).as_posix(), path=path, is_real=is_real)
            for paths, is_real in ((made[: wanted or None], False), (real, True))
            for path in paths
        ]
        counts = {"generated": len(made), "real": len(real) + len(missing)}
        expected = {"real": UCF_TRAIN} if self.name == "ucf101-gfvd" else {}
        return Loaded(items=tuple(items), missing=tuple(missing), counts=counts, expected=expected)

    def run(self, model: VideoTokenizer | None) -> Callable[[SampleItem], Answer]:
        if self.i3d is None:
            raise ValueError(
                f"{self.name} needs the I3D network: fetch i3d_torchscript.pt, which StyleGAN-V's "
                "frechet_video_distance.py links to, and say --network i3d=FILE"
            )
        protocol, i3d = self.protocol, I3D(self.i3d)
        clip = ClipImages.load(self.clip) if self.clip is not None and protocol.consistency else None

        def answer(item: SampleItem) -> Answer:
            video = load_video(item.path, size=protocol.size, crop=protocol.size, frames=protocol.frames).plain()
            if video.shape[2] < protocol.frames:
                raise VideoError(f"{item.path}: has {video.shape[2]} frames, {protocol.frames} are compared")
            said: Answer = {"i3d": i3d.features(video)[0].tolist()}
            if clip is not None and not item.is_real:
                said["tc"] = temporal_consistency(clip.embed(rearrange(video, "1 c t h w -> t c h w")))
            return said

        return answer

    def score(self, answers: Sequence[tuple[SampleItem, Answer]]) -> Scores:
        sides = {
            name: torch.tensor([said["i3d"] for item, said in answers if item.is_real is real])
            for name, real in (("real", True), ("generated", False))
        }
        for name, features in sides.items():
            if len(features) < 2:
                raise ValueError(f"{self.name}: {len(features)} {name} videos could be used; two at least are needed")
        distance = frechet_distance(*(feature_statistics(features) for features in sides.values()))
        values = {"gfvd" if self.name == "ucf101-gfvd" else "fvd": distance}
        if consistencies := [said["tc"] for _, said in answers if "tc" in said]:
            values["tc"] = statistics.fmean(consistencies)
        return Scores(values=values, details={name: len(features) for name, features in sides.items()})

    def _videos(self, folder: str) -> list[Path]:
        found = videos_of(self.data / folder)
        if not found:
            raise self.nothing(f"folder {folder} with videos")
        return found

    def _lists(self) -> list[Path]:
        return sorted((self.data / "real").rglob(TRAIN_LIST)) if self.name == "ucf101-gfvd" else []

    def _train_split(self) -> tuple[list[Path], list[str]]:
        """Videos that the list names, there and not there; a line is ``CLASS/NAME.avi NUMBER``."""
        lines = self._lists()[0].read_text("utf-8").splitlines()
        names = [line.split()[0] for line in lines if line.strip()]
        there = {path.name: path for path in self._videos("real")}
        found = [there[name] for name in (Path(line).name for line in names) if name in there]
        if not found:
            raise self.nothing(f"video of the {len(names)} in {TRAIN_LIST}", self.data / "real")
        return found, [name for name in names if Path(name).name not in there]


def with_networks(benchmark: Generated, networks: Mapping[str, Path]) -> Generated:
    """The benchmark with these files, whose digests go into the protocol."""
    digests: dict[str, Any] = {name: sha256_of(path) for name, path in networks.items()}
    protocol = replace(benchmark.protocol, **digests)
    return replace(benchmark, protocol=protocol, i3d=networks.get("i3d"), clip=networks.get("clip"))
