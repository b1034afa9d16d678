"""The demo: a clip becomes tokens and comes back, level by level, and everything about it is kept for the report."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import pyratok
from pyratok.codec.container import bits_on_disk, save_tokens
from pyratok.data.video_io import load_video, probe, save_video, to_uint8
from pyratok.files import write_atomically
from pyratok.metrics.reconstruction import psnr_per_frame, ssim_per_frame
from pyratok.quantization.usage import CodebookUsage, LevelUsage
from pyratok.report.png import encode_png
from pyratok.report.stopwatch import Stopwatch
from pyratok.report.tokenmaps import sprite_sheet, token_colours
from pyratok.tasks.generation.clips import generate_clip
from pyratok.tasks.generation.files import load_prior
from pyratok.tasks.generation.prompts import example_prompts
from pyratok.tasks.generation.sampling import advised
from pyratok.types import Geometry, ModelId, Video

if TYPE_CHECKING:
    from pyratok.model.base import VideoTokenizer

REPORT_CRF = 17
"""x264 quality of the videos inside the report: differences seen there are the model's, hardly the encoder's."""
ERROR_GAIN = 4
"""How much brighter than life the picture of the errors is."""
IMAGINED_FPS = 12.0
"""Frames per second of new clips."""


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """What the first ``levels`` levels give: their cost, their quality per frame (PSNR in dB), the picture."""

    levels: int
    tokens: int
    bits_per_pixel: float
    file_bytes: int
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    media: bytes

    @property
    def mean_psnr(self) -> float:
        return sum(self.psnr) / len(self.psnr)

    @property
    def mean_ssim(self) -> float:
        return sum(self.ssim) / len(self.ssim)


@dataclass(frozen=True, kw_only=True)
class Imagined:
    """A new clip that a prior made of a ``prompt``."""

    prompt: str
    media: bytes


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """All that the report shows.

    ``original``, ``error`` and ``media`` are H.264 mp4 files, or PNG files when the clip is a single image.
    ``is_whole_source``: the clip is the whole source file at its own size, so that their bytes may be compared.
    ``imagined``: None where no prior with prompts is there, no clips where these cannot be read (:func:`imagine`).
    """

    source: str
    source_bytes: int
    is_whole_source: bool
    is_sample: bool
    geometry: Geometry
    model: ModelId
    num_bits: int
    original: bytes
    error: bytes
    prefixes: tuple[Prefix, ...]
    token_maps: tuple[bytes, ...]
    usage: tuple[LevelUsage, ...]
    seconds: dict[str, float]
    host: str
    imagined: tuple[Imagined, ...] | None = None

    @property
    def is_image(self) -> bool:
        return self.geometry.frames == 1

    @property
    def raw_bytes(self) -> int:
        """Size of the frames as plain 8-bit RGB."""
        return self.geometry.frames * self.geometry.height * self.geometry.width * 3

    def numbers(self) -> dict[str, Any]:
        """The result without pictures, ready for JSON."""
        prefixes = [
            {
                "levels": p.levels,
                "tokens": p.tokens,
                "bits_per_pixel": p.bits_per_pixel,
                "file_bytes": p.file_bytes,
                "psnr": p.mean_psnr,
                "ssim": p.mean_ssim,
                "psnr_per_frame": p.psnr,
                "ssim_per_frame": p.ssim,
            }
            for p in self.prefixes
        ]
        return {
            "source": self.source,
            "source_bytes": self.source_bytes,
            "raw_bytes": self.raw_bytes,
            "geometry": asdict(self.geometry),
            "model": asdict(self.model),
            "prefixes": prefixes,
            "usage": [asdict(level) for level in self.usage],
            "imagined": [clip.prompt for clip in self.imagined or ()],
            "seconds": self.seconds,
            "host": self.host,
        }


def sample_clip() -> Path:
    """The clip in the package; its source and licence are in the README beside it."""
    return Path(pyratok.__file__).parent / "assets" / "sample.mp4"


def run_demo(
    tokenizer: VideoTokenizer, clip: Path, tokens_path: Path, video_path: Path, *, size: int | None, frames: int | None,
    watch: Stopwatch, prior: Path | None = None,
) -> DemoResult:  # fmt: skip
    """Encode ``clip``, store its tokens, decode every prefix of the levels and measure it.

    Writes ``tokens_path`` (.pyra) and ``video_path`` (all levels; .png for an image, else a video with the sound of
    the source). ``prior``: the folder of one, whose example prompts become clips.
    """
    with watch.step("read the clip"):
        video = load_video(clip, size=size, frames=frames)
    with watch.step("encode to tokens"):
        tokens = tokenizer.encode(video)
    with watch.step("store the tokens"):
        save_tokens(tokens, tokens_path)
    prefixes = []
    num_levels = len(tokens.levels)
    for count in range(1, num_levels + 1):
        held = tokens.prefix(count)
        with watch.step(f"decode {'level 1' if count == 1 else f'levels 1 to {count}'}"):
            back = tokenizer.decode(held)
        psnr, ssim = psnr_per_frame(back, video)[0], ssim_per_frame(back, video)[0]
        prefixes.append(
            Prefix(
                levels=count,
                tokens=held.num_tokens,
                bits_per_pixel=held.bits_per_pixel,
                file_bytes=bits_on_disk(tokens_path, count) // 8,
                psnr=tuple(psnr.tolist()),
                ssim=tuple(ssim.tolist()),
                media=_media(back),
            )
        )
    with watch.step("write the video"):
        if video_path.suffix == ".png":
            write_atomically(video_path, _media(back))
        else:
            save_video(back, video_path, fps=video.fps, audio_from=clip)
    imagined: tuple[Imagined, ...] | None = None
    if prior is not None:
        with watch.step("make clips of words"):
            imagined = imagine(tokenizer, prior)
    usage = CodebookUsage(num_levels, tokens.num_bits)
    usage.update(tokens.levels)
    colours = [token_colours(ids[0], tokens.num_bits) for ids in tokens.levels]
    return DemoResult(
        source=os.fsencode(clip.name).decode("utf-8", "replace"),
        source_bytes=clip.stat().st_size,
        is_whole_source=_is_whole(clip, video),
        is_sample=clip == sample_clip(),
        geometry=tokens.geometry,
        model=tokens.model,
        num_bits=tokens.num_bits,
        original=_media(video),
        error=_media(_error(back, video)),
        prefixes=tuple(prefixes),
        token_maps=tuple(encode_png(sprite_sheet(level)) for level in colours),
        usage=usage.summary().levels,
        seconds=dict(watch.seconds),
        host=f"pyratok {pyratok.__version__}, torch {torch.__version__}, {_processor()}",
        imagined=imagined,
    )


def imagine(tokenizer: VideoTokenizer, folder: Path) -> tuple[Imagined, ...] | None:
    """A clip for each of the example prompts of the prior in ``folder``; None where it has none, no clips where text
    cannot be read here (it takes the extra ``text``)."""
    prompts = example_prompts(folder)
    if not prompts:
        return None
    prior, found = load_prior(folder, tokenizer.model_id), list[Imagined]()
    for seed, prompt in enumerate(prompts):
        try:
            tokens = generate_clip(tokenizer, prior, prompt, seed=seed, fps=IMAGINED_FPS, **advised(prior.config))
        except ImportError:  # the text encoder is an extra
            return ()
        found.append(Imagined(prompt=prompt, media=_media(tokenizer.decode(tokens))))
    return tuple(found)


def _is_whole(clip: Path, video: Video) -> bool:
    """Are these all frames of the file, at its own size?"""
    info = probe(clip)
    return (info.frames or 1, info.height, info.width) == tuple(video.shape[2:])


def _error(back: Video, video: Video) -> Video:
    """The distance of every pixel from the original, black where there is none, brightened."""
    distance = (back.plain() - video.plain()).abs()
    return Video(distance.mul_(ERROR_GAIN).clamp_max_(2).sub_(1), fps=video.fps)


def _media(video: Video) -> bytes:
    """A clip as a browser plays it: an mp4 file, or a PNG file for a single frame."""
    if video.shape[2] == 1:
        return encode_png(to_uint8(video)[0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        save_video(video, path, fps=video.fps, crf=REPORT_CRF)
        return path.read_bytes()


def _processor() -> str:
    threads = torch.get_num_threads()
    return f"{threads} {'thread' if threads == 1 else 'threads'} of {os.cpu_count()} CPU cores"
