"""Compression: what token files cost and how they look, beside x264, x265 and SVT-AV1 on the same clips.

A rate is the bits of the real file, header, checksums and padding included, over the pixels of the true video.

Source: PyraTok (arXiv 2601.16210), sec. 4 (MCL-JCV, 30 clips of 640x360); Wang et al., MCL-JCV (2016).
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyratok.codec.container import save_tokens
from pyratok.data.video_io import FALLBACK_FPS, from_uint8, load_video, to_uint8
from pyratok.eval.benchmarks.contract import Answer, Benchmark, BenchmarkProtocol, Item, Loaded, Scores
from pyratok.eval.reconstruction import find_clips
from pyratok.metrics.codecs import CODECS, Codec, encode
from pyratok.metrics.ratedistortion import bd_psnr, bd_rate
from pyratok.metrics.reconstruction import psnr, ssim
from pyratok.types import TokenPyramid

if TYPE_CHECKING:
    from pyratok.model.base import VideoTokenizer


@dataclass(frozen=True, kw_only=True)
class CompressionProtocol(BenchmarkProtocol):
    """Short side ``size`` (360: 640x360 of MCL-JCV; 0: native), the first ``frames`` frames at the native rate.

    A point per level prefix; ``x264_crf``, ``x265_crf``, ``svtav1_crf``: the points of their curves, none where empty.
    """

    benchmark: str = "compression"
    size: int = 360
    frames: int = 33
    x264_crf: tuple[int, ...] = (19, 23, 27, 31, 35, 39)
    x265_crf: tuple[int, ...] = (19, 23, 27, 31, 35, 39)
    svtav1_crf: tuple[int, ...] = (20, 28, 36, 44, 52, 60)
    x264: str = CODECS["x264"].settings
    x265: str = CODECS["x265"].settings
    svtav1: str = CODECS["svtav1"].settings
    rate: str = "bits of the .pyra file, or of the bare byte stream, over T * H * W of the true video"
    curve: str = (
        "means over clips of rate, of PSNR and of SSIM; BD-rate by Akima's interpolation over the shared PSNR, or SSIM"
    )

    @property
    def points(self) -> dict[Codec, tuple[int, ...]]:
        """The CRFs at which each codec encodes, of those that take part."""
        crfs = {codec: getattr(self, f"{name}_crf") for name, codec in CODECS.items()}
        return {codec: points for codec, points in crfs.items() if points}


@dataclass(frozen=True, kw_only=True)
class CodedItem(Item):
    path: Path


@dataclass(frozen=True, kw_only=True)
class Compression(Benchmark[CodedItem]):
    protocol: CompressionProtocol

    def load(self) -> Loaded[CodedItem]:
        try:
            clips = find_clips(self.data)
        except ValueError:
            raise self.nothing("video") from None
        root = self.data if self.data.is_dir() else self.data.parent
        items = tuple(CodedItem(key=path.relative_to(root).as_posix(), path=path) for path in clips)
        return Loaded(items=items, counts={"clips": len(items)})

    def run(self, model: VideoTokenizer) -> Callable[[CodedItem], Answer]:
        protocol, codecs = self.protocol, self.protocol.points
        for codec in codecs:
            try:
                codec.check()
            except ValueError as error:
                raise ValueError(f"{error}; without its curve: --set {codec.name}_crf=[]") from None

        def answer(item: CodedItem) -> Answer:
            video = load_video(item.path, size=protocol.size or None, frames=protocol.frames)
            target, frames = video.plain(), to_uint8(video)
            pixels = math.prod(target.shape[2:])
            tokens = model.encode(video)
            curves: dict[str, list[dict[str, float]]] = {"pyra": []}
            for levels in range(1, len(tokens.levels) + 1):
                prefix = tokens.prefix(levels)
                back = model.decode(prefix).plain().to(target.device)
                curves["pyra"].append({"levels": levels} | _point(file_bits(prefix) / pixels, back, target))
            for codec, crfs in codecs.items():
                curves[codec.name] = []
                for crf in crfs:
                    data, decoded = encode(codec, frames, video.fps or FALLBACK_FPS, crf)
                    point = _point(8 * len(data) / pixels, from_uint8(decoded), target)
                    curves[codec.name].append({"crf": crf} | point)
            return {"frames": target.shape[2], "size": list(target.shape[3:]), "curves": curves}

        return answer

    def score(self, answers: Sequence[tuple[CodedItem, Answer]]) -> Scores:
        curves = {
            codec: [
                {name: statistics.fmean(said["curves"][codec][index][name] for _, said in answers) for name in point}
                for index, point in enumerate(points)
            ]
            for codec, points in answers[0][1]["curves"].items()
        }
        values = {name: curves["pyra"][-1][name] for name in ("bits_per_pixel", "psnr", "ssim")}
        details: dict[str, Any] = {"curves": curves}
        for codec in [name for name in curves if name != "pyra"]:
            for quality, suffix in (("psnr", ""), ("ssim", "_by_ssim")):
                anchor, ours = ([(p["bits_per_pixel"], p[quality]) for p in curves[name]] for name in (codec, "pyra"))
                try:
                    values[f"bd_rate_percent_to_{codec}{suffix}"] = bd_rate(anchor, ours)
                    if quality == "psnr":
                        values[f"bd_psnr_to_{codec}"] = bd_psnr(anchor, ours)
                except ValueError as error:  # curves that have too few points, or do not meet
                    details[f"no_bd_rate_to_{codec}{suffix}"] = str(error)
        return Scores(values=values, details=details)


def file_bits(tokens: TokenPyramid) -> int:
    """Bits of the file that ``save_tokens`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.pyra")
        save_tokens(tokens, path)
        return 8 * path.stat().st_size


def _point(rate: float, back: Any, target: Any) -> dict[str, float]:
    return {"bits_per_pixel": rate, "psnr": psnr(back, target).item(), "ssim": ssim(back, target).item()}
