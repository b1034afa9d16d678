"""Compression: what token files cost and how they look, beside x265 on the same clips.

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
from pyratok.metrics.codecs import encode_x265
from pyratok.metrics.ratedistortion import bd_psnr, bd_rate
from pyratok.metrics.reconstruction import psnr, ssim
from pyratok.types import TokenPyramid

if TYPE_CHECKING:
    from pyratok.model.base import VideoTokenizer


@dataclass(frozen=True, kw_only=True)
class CompressionProtocol(BenchmarkProtocol):
    """Short side ``size`` (360: 640x360 of MCL-JCV; 0: native), the first ``frames`` frames at the native rate.

    A point per level prefix; ``x265_crf``: the points of its curve.
    """

    benchmark: str = "compression"
    size: int = 360
    frames: int = 33
    x265_crf: tuple[int, ...] = (19, 23, 27, 31, 35, 39)
    x265: str = "medium, tune zerolatency, keyint 12, yuv420p"
    rate: str = "bits of the .pyra file, or of the Annex B stream, over T * H * W of the true video"
    curve: str = "means over clips of rate and of PSNR; BD-rate by Akima's interpolation over the shared PSNR"


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
        protocol = self.protocol

        def answer(item: CodedItem) -> Answer:
            video = load_video(item.path, size=protocol.size or None, frames=protocol.frames)
            target, frames = video.plain(), to_uint8(video)
            pixels = math.prod(target.shape[2:])
            tokens = model.encode(video)
            pyra = []
            for levels in range(1, len(tokens.levels) + 1):
                prefix = tokens.prefix(levels)
                back = model.decode(prefix).plain().to(target.device)
                pyra.append({"levels": levels} | _point(file_bits(prefix) / pixels, back, target))
            x265 = []
            for crf in protocol.x265_crf:
                data, decoded = encode_x265(frames, video.fps or FALLBACK_FPS, crf)
                x265.append({"crf": crf} | _point(8 * len(data) / pixels, from_uint8(decoded), target))
            return {"frames": target.shape[2], "size": list(target.shape[3:]), "curves": {"pyra": pyra, "x265": x265}}

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
        lines = {codec: [(p["bits_per_pixel"], p["psnr"]) for p in points] for codec, points in curves.items()}
        for codec in curves.keys() - {"pyra"}:
            try:
                values[f"bd_rate_percent_to_{codec}"] = bd_rate(lines[codec], lines["pyra"])
                values[f"bd_psnr_to_{codec}"] = bd_psnr(lines[codec], lines["pyra"])
            except ValueError as error:  # curves that have too few points, or do not meet
                details[f"no_bd_rate_to_{codec}"] = str(error)
        return Scores(values=values, details=details)


def file_bits(tokens: TokenPyramid) -> int:
    """Bits of the file that ``save_tokens`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.pyra")
        save_tokens(tokens, path)
        return 8 * path.stat().st_size


def _point(rate: float, back: Any, target: Any) -> dict[str, float]:
    return {"bits_per_pixel": rate, "psnr": psnr(back, target).item(), "ssim": ssim(back, target).item()}
