"""Reconstruction quality of every level prefix on a folder of clips, with x265 at the same rate beside it."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyratok.data.manifests import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from pyratok.data.video_io import FALLBACK_FPS, load_video, to_uint8
from pyratok.eval.base import HashedProtocol, versions
from pyratok.metrics.codecs import UnreachableRateError, x265_at_bpp
from pyratok.metrics.reconstruction import psnr, ssim
from pyratok.types import ModelId, TokenPyramid, Video

if TYPE_CHECKING:
    from pyratok.model.base import VideoTokenizer


@dataclass(frozen=True, kw_only=True)
class EvalProtocol(HashedProtocol):
    """Everything that decides the numbers; two results may be compared when their ``digest`` is the same.

    The short side is scaled to ``size``, the centre ``crop`` x ``crop`` is cut out, the first ``frames`` frames are
    taken at the native rate (all of them from a shorter clip). Rates are raw token bits over true pixels.
    """

    benchmark: str = "reconstruction"
    size: int = 256
    crop: int = 256
    frames: int = 33
    caption: str | None = None
    psnr: str = "RGB in [0, 1], per frame, mean over frames, then over clips; at most 100 dB"
    ssim: str = "RGB in [0, 1], Gaussian 11x11, sigma 1.5, per frame, mean over frames, then over clips"
    x265: str = "medium, tune zerolatency, keyint 12, yuv420p; the largest rate not above that of the tokens"

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.size:
            raise ValueError(f"crop must be between 1 and size = {self.size}, got {self.crop}")
        if self.frames < 1:
            raise ValueError(f"frames must be at least 1, got {self.frames}")


@dataclass(frozen=True, kw_only=True)
class PrefixScore:
    """Quality of the first ``levels`` levels; ``x265_psnr`` in dB is None where x265 was not asked or cannot go as
    low as ``bits_per_pixel``."""

    levels: int
    bits_per_pixel: float
    psnr: float
    ssim: float
    x265_psnr: float | None = None


@dataclass(frozen=True, kw_only=True)
class ClipScore:
    """One clip: what was measured of it, and a score per level prefix."""

    clip: str
    frames: int
    height: int
    width: int
    prefixes: tuple[PrefixScore, ...]


@dataclass(frozen=True, kw_only=True)
class ReconstructionRecord:
    """A whole result: who, on what, by which protocol."""

    protocol: EvalProtocol
    model: ModelId
    clips: tuple[ClipScore, ...]

    @property
    def mean(self) -> tuple[PrefixScore, ...]:
        """Means over clips; that of x265 only where it has a number for every clip."""
        return tuple(_mean(scores) for scores in zip(*(clip.prefixes for clip in self.clips), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "protocol": self.protocol.to_dict(),
            "model": asdict(self.model),
            "versions": versions(),
            "clips": [asdict(clip) for clip in self.clips],
            "mean": [asdict(score) for score in self.mean],
        }


def find_clips(data: Path) -> list[Path]:
    """The video and image files in a folder and the folders in it, by name; or the one file given.

    Hidden files, and those in hidden folders, are left alone. Raises: ValueError where there is none.
    """
    if data.is_file():
        return [data]
    if not data.is_dir():
        raise ValueError(f"there is no folder {data}")
    files = (path for path in data.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES)
    visible = (path for path in files if not any(part.startswith(".") for part in path.relative_to(data).parts))
    clips = sorted(path for path in visible if path.is_file())
    if not clips:
        raise ValueError(f"there is no video or image in {data}")
    return clips


def load_clip(path: Path, protocol: EvalProtocol) -> Video:
    """The part of a clip that is scored. Raises: :class:`~pyratok.data.video_io.VideoError` if it cannot be read."""
    return load_video(path, size=protocol.size, crop=protocol.crop, frames=protocol.frames)


def evaluate_reconstruction(
    tokenizer: VideoTokenizer,
    clips: Sequence[Path],
    protocol: EvalProtocol,
    *,
    levels: Sequence[int] | None = None,
    with_x265: bool = False,
    on_clip: Callable[[ClipScore], None] | None = None,
) -> ReconstructionRecord:
    """Score the prefixes ``levels`` (default: all) of every clip; ``on_clip`` hears of each as it is done.

    Clips are called by their paths below the folder that they share.

    Raises: :class:`~pyratok.data.video_io.VideoError` for a clip that cannot be read, ValueError for a prefix that
    the model does not have.
    """
    shared = os.path.commonpath([path.absolute().parent for path in clips])
    scores = []
    for path in clips:
        name = path.absolute().relative_to(shared).as_posix()
        score = _score_clip(tokenizer, path, name, protocol, levels, with_x265)
        scores.append(score)
        if on_clip is not None:
            on_clip(score)
    return ReconstructionRecord(protocol=protocol, model=tokenizer.model_id, clips=tuple(scores))


def _score_clip(
    tokenizer: VideoTokenizer,
    path: Path,
    name: str,
    protocol: EvalProtocol,
    levels: Sequence[int] | None,
    with_x265: bool,
) -> ClipScore:
    video = load_clip(path, protocol)
    tokens = tokenizer.encode(video, protocol.caption)
    counts = range(1, len(tokens.levels) + 1) if levels is None else levels
    prefixes = [tokens.prefix(count) for count in counts]
    anchors = _x265_psnr(video, prefixes) if with_x265 else iter([None] * len(prefixes))
    return ClipScore(
        clip=name,
        frames=tokens.geometry.frames,
        height=tokens.geometry.height,
        width=tokens.geometry.width,
        prefixes=tuple(
            _score_prefix(tokenizer, video, prefix, anchor) for prefix, anchor in zip(prefixes, anchors, strict=True)
        ),
    )


def _score_prefix(
    tokenizer: VideoTokenizer, video: Video, prefix: TokenPyramid, x265_psnr: float | None
) -> PrefixScore:
    back = tokenizer.decode(prefix).to(video.device)
    return PrefixScore(
        levels=len(prefix.levels),
        bits_per_pixel=prefix.bits_per_pixel,
        psnr=psnr(back, video).item(),
        ssim=ssim(back, video).item(),
        x265_psnr=x265_psnr,
    )


def _x265_psnr(video: Video, prefixes: Sequence[TokenPyramid]) -> Iterator[float | None]:
    """PSNR of x265 at the rate of each prefix, or None where even its coarsest setting takes more bits."""
    frames = to_uint8(video)
    for prefix in prefixes:
        try:
            # The rate hardly matters for quality at a fixed CRF, so any will do for an image.
            yield x265_at_bpp(frames, video.fps or FALLBACK_FPS, prefix.bits_per_pixel).psnr
        except UnreachableRateError:
            yield None


def _mean(scores: Sequence[PrefixScore]) -> PrefixScore:
    anchors = [score.x265_psnr for score in scores if score.x265_psnr is not None]
    return PrefixScore(
        levels=scores[0].levels,
        bits_per_pixel=statistics.fmean(score.bits_per_pixel for score in scores),
        psnr=statistics.fmean(score.psnr for score in scores),
        ssim=statistics.fmean(score.ssim for score in scores),
        x265_psnr=statistics.fmean(anchors) if len(anchors) == len(scores) else None,
    )
