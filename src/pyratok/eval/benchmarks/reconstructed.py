"""Reconstruction as the paper reports it: WebVid-10M's validation clips and COCO's validation images.

WebVid: a CSV ``videoid,contentUrl,duration,page_dir,name`` and ``PAGE_DIR/VIDEOID.mp4``; COCO: ``val2017/*.jpg``,
each a clip of one frame. A perceptual distance goes under the name of the network that computed it.

Source: PyraTok (arXiv 2601.16210), sec. 4 and Table 1; TokenBench and LARP for one mean squared error per video.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyratok.data.video_io import load_video
from pyratok.eval.benchmarks.contract import Answer, Benchmark, BenchmarkProtocol, Item, Loaded, Scores
from pyratok.eval.benchmarks.networks import I3D, sha256_of
from pyratok.metrics.frechet import feature_statistics, frechet_distance
from pyratok.metrics.reconstruction import psnr, ssim

if TYPE_CHECKING:
    from pyratok.model.base import VideoTokenizer

COLUMNS = {"videoid", "page_dir"}
COCO_IMAGES = 5000
PERCEPTUAL = ("st_lpips", "lpips", "none")


@dataclass(frozen=True, kw_only=True)
class ReconstructedProtocol(BenchmarkProtocol):
    """Short side to ``size``, centre ``crop x crop``, the first ``frames`` frames at the native rate, ``levels`` of the
    pyramid (0: all). ``lpips`` and ``i3d``: SHA-256 of the files of these networks, empty where they were not given."""

    size: int = 256
    crop: int = 256
    frames: int = 17
    levels: int = 0
    perceptual: str = "st_lpips"
    lpips: str = ""
    i3d: str = ""
    psnr: str = "RGB in [0, 1], per frame, mean over frames, then clips, at most 100 dB; psnr_video: one error per clip"
    ssim: str = "RGB in [0, 1], Gaussian 11x11, sigma 1.5, per frame"
    rfvd: str = "clips against their own reconstructions; I3D, 224 x 224 bilinear, covariance / (N - 1)"

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.size:
            raise ValueError(f"crop is between 1 and size = {self.size}, got {self.crop}")
        if self.perceptual not in PERCEPTUAL:
            raise ValueError(f"perceptual is one of {', '.join(PERCEPTUAL)}, got {self.perceptual!r}")


@dataclass(frozen=True, kw_only=True)
class MediaItem(Item):
    path: Path


@dataclass(frozen=True, kw_only=True)
class Reconstructed(Benchmark[MediaItem]):
    """``networks``: files by name."""

    protocol: ReconstructedProtocol
    networks: Mapping[str, Path] = field(default_factory=dict)

    def load(self) -> Loaded[MediaItem]:
        return self._images() if self.name == "coco" else self._clips()

    def run(self, model: VideoTokenizer) -> Callable[[MediaItem], Answer]:
        protocol = self.protocol
        distance = self._distance()
        i3d = I3D(self.networks["i3d"]) if "i3d" in self.networks else None

        def answer(item: MediaItem) -> Answer:
            video = load_video(item.path, size=protocol.size, crop=protocol.crop, frames=protocol.frames)
            tokens = model.encode(video)
            tokens = tokens.prefix(protocol.levels) if protocol.levels else tokens
            target, back = video.plain(), model.decode(tokens).plain().to(video.device)
            said: Answer = {
                "frames": target.shape[2],
                "bits_per_pixel": tokens.bits_per_pixel,
                "psnr": psnr(back, target).item(),
                "psnr_video": psnr(back, target, mode="video").item(),
                "ssim": ssim(back, target).item(),
            }
            if distance is not None:
                said[protocol.perceptual] = float(distance(back, target).mean())
            if i3d is not None:
                said["i3d"] = [i3d.features(clip)[0].tolist() for clip in (target, back)]
            return said

        return answer

    def score(self, answers: Sequence[tuple[MediaItem, Answer]]) -> Scores:
        names = [name for name in answers[0][1] if name not in ("frames", "i3d")]
        values = {name: statistics.fmean(said[name] for _, said in answers) for name in names}
        if "i3d" in answers[0][1] and len(answers) > 1:
            real, back = (
                feature_statistics(torch.tensor([said["i3d"][side] for _, said in answers])) for side in range(2)
            )
            values["rfvd"] = frechet_distance(real, back)
        shorter = sum(said["frames"] < self.protocol.frames for _, said in answers)
        return Scores(values=values, details={"clips_with_fewer_frames": 0 if self.name == "coco" else shorter})

    def _distance(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        from pyratok.losses.perceptual import lpips, st_lpips

        if self.protocol.perceptual == "none":
            return None
        if self.protocol.perceptual == "lpips":
            return lpips(self.networks["lpips"]).per_frame
        try:
            return st_lpips().per_frame
        except ImportError as error:
            raise ImportError(f"{error}; or leave it out: --set perceptual=none") from None

    def _images(self) -> Loaded[MediaItem]:
        folder = self.data / "val2017" if (self.data / "val2017").is_dir() else self.data
        paths = sorted(folder.glob("*.jpg"))
        if not paths:
            raise self.nothing("image")
        items = tuple(MediaItem(key=path.stem, path=path) for path in paths)
        return Loaded(items=items, counts={"images": len(items)}, expected={"images": COCO_IMAGES})

    def _clips(self) -> Loaded[MediaItem]:
        paths: dict[str, Path] = {}
        for table in sorted(self.data.rglob("*.csv")):
            with open(table, encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file)
                if set(reader.fieldnames or ()) >= COLUMNS:
                    for row in reader:
                        paths[row["videoid"]] = Path(row["page_dir"], f"{row['videoid']}.mp4")
        if not paths:
            raise self.nothing("CSV with the columns videoid and page_dir")
        roots = [self.data, self.data / "videos"]
        found = {key: next((r / path for r in roots if (r / path).is_file()), None) for key, path in paths.items()}
        items = tuple(MediaItem(key=key, path=path) for key, path in found.items() if path is not None)
        if not items:
            raise self.nothing(f"video of the {len(paths)} in the list")
        missing = tuple(paths[key].as_posix() for key, path in found.items() if path is None)
        return Loaded(items=items, missing=missing, counts={"clips": len(paths)})


def with_networks(benchmark: Reconstructed, networks: Mapping[str, Path]) -> Reconstructed:
    """The benchmark with these files, whose digests go into the protocol; LPIPS takes the place of its stand-in."""
    digests: dict[str, Any] = {name: sha256_of(path) for name, path in networks.items()}
    protocol = replace(benchmark.protocol, **digests)
    if "lpips" in networks and protocol.perceptual == "st_lpips":
        protocol = replace(protocol, perceptual="lpips")
    if protocol.perceptual == "lpips" and not protocol.lpips:
        raise ValueError(
            "LPIPS needs torchvision's AlexNet: fetch alexnet-owt-7be5be79.pth from download.pytorch.org/models and "
            "say --network lpips=FILE; without it, --set perceptual=st_lpips"
        )
    return replace(benchmark, protocol=protocol, networks=dict(networks))
