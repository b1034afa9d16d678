"""From a prompt, the beginning of a video, or a hole in one, to the tokens of a new clip.

>>> prior = load_prior("runs/prior/prior", model.model_id)                               # doctest: +SKIP
>>> video = model.decode(generate_clip(model, prior, "a red ball rolls left", seed=1))   # doctest: +SKIP

All that the functions here do not name goes to :func:`pyratok.tasks.generation.generate.generate`: seed, on_part,
temperature, top_k, top_p, guidance, steps ...
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pyratok.data.video_io import FALLBACK_FPS, load_video, probe
from pyratok.model.base import VideoTokenizer
from pyratok.tasks.generation.config import PriorConfig
from pyratok.tasks.generation.generate import generate, outside
from pyratok.tasks.generation.prior import Prior
from pyratok.tasks.generation.prompts import embed_prompt
from pyratok.types import Geometry, TokenPyramid, Video

PathLike = str | os.PathLike[str]


def generate_clip(
    model: VideoTokenizer,
    prior: Prior,
    prompt: str | None = None,
    *,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    fps: float = FALLBACK_FPS,
    count: int = 1,
    **how: Any,
) -> TokenPyramid:
    """Tokens of ``count`` new clips; without a prompt of whatever the prior has learned.

    Sizes default to the largest that it has met. Raises ValueError for larger ones, and an empty prompt.
    """
    known = prior.config
    frames = known.frames if frames is None else frames
    geometry = Geometry(
        frames=frames,
        height=known.height if height is None else height,
        width=known.width if width is None else width,
        strides=known.strides,
        fps=None if frames == 1 else fps,
    )
    return _generate(model, prior, prompt, geometry, count, how)


def continue_clip(
    model: VideoTokenizer,
    prior: Prior,
    video: Tensor,
    *,
    frames: int | None = None,
    caption: str | None = None,
    count: int = 1,
    **how: Any,
) -> TokenPyramid:
    """Tokens of ``frames`` frames in all (default: as many as the prior knows) that begin as ``video``
    ``[1, 3, T, H, W]`` does; of its last latent step only if that is whole.

    Raises ValueError for a video that the prior cannot go on from, being as long or of larger frames.
    """
    begun = _geometry_of(video, prior.config)
    geometry = replace(begun, frames=frames or prior.config.frames, fps=begun.fps or FALLBACK_FPS)
    if geometry.frames <= video.shape[2]:
        raise ValueError(
            f"{geometry.frames} frames are to be there in all and {video.shape[2]} are given: nothing is left to make; "
            f"this prior has learned clips of up to {prior.config.frames} frames"
        )
    prior.config.check(geometry)  # before any work
    return _generate(model, prior, caption, geometry, count, how, prefix=model.encode(video))


def inpaint_clip(
    model: VideoTokenizer,
    prior: Prior,
    video: Tensor,
    region: Tensor,
    *,
    caption: str | None = None,
    count: int = 1,
    **how: Any,
) -> TokenPyramid:
    """Tokens of ``video`` ``[1, 3, T, H, W]`` with those made anew that a ``region`` bool ``[T, H, W]`` touches.

    Raises ValueError for a video or region that does not fit.
    """
    geometry = _geometry_of(video, prior.config)
    prior.config.check(geometry)  # before any work
    known = outside(model.encode(video), region)
    return _generate(model, prior, caption, geometry, count, how, known=known)


def whole_steps(frames: int, config: PriorConfig) -> int:
    """How many of the first ``frames`` frames are in whole latent steps."""
    stride = config.geometry.latent_stride
    return 1 + (frames - 1) // stride * stride


def fit_clip(path: PathLike, config: PriorConfig, frames: int | None = None) -> Video:
    """The first ``frames`` frames of a file, by default all, scaled and cut to the frames that the prior has met.

    Raises ValueError, naming the largest, where that are more than it has met; VideoError for what cannot be read.
    """
    side, crop = _fit(path, config)
    video = load_video(path, size=side, crop=crop, frames=min(frames or config.frames + 1, config.frames + 1))
    if video.shape[2] > config.frames:
        raise ValueError(
            f"{path} has more than the {config.frames} frames of the longest clips that this prior has learned; "
            f"ask for no more than its first {config.frames}, or cut it"
        )
    return video


def load_region(mask: PathLike, source: PathLike, config: PriorConfig, frames: int) -> Tensor:
    """The region bool ``[frames, H, W]`` of ``fit_clip(source, config, frames)`` that is to be made anew.

    ``mask``: an image, for all frames alike, or a video, bright where the region is; or a .npy array ``[H, W]`` or
    ``[T, H, W]``, not 0 there. It has the size of the source, or that of the fitted clip. Raises ValueError for
    another size, too few frames, and a mask that shows nothing.
    """
    info, (side, crop) = probe(source), _fit(source, config)
    if Path(mask).suffix.lower() == ".npy":
        values = _array(mask)[:frames]
        if _is_size(mask, tuple(values.shape[1:]), (info.height, info.width), crop):
            scale = side / min(info.height, info.width)
            size = max(crop[0], round(info.height * scale)), max(crop[1], round(info.width * scale))
            values = F.interpolate(values[:, None], size, mode="area")[:, 0]
            top, left = (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2
            values = values[:, top : top + crop[0], left : left + crop[1]]
        region = values >= 0.5
    else:
        its = probe(mask)
        fitting = _is_size(mask, (its.height, its.width), (info.height, info.width), crop)
        picture = load_video(mask, frames=frames, size=side if fitting else None, crop=crop if fitting else None)
        region = picture.plain()[0].mean(0) > 0
    if not region.any():
        raise ValueError(f"{mask} shows nothing to be made anew: that is where it is white")
    if len(region) not in (1, frames):
        raise ValueError(f"{mask} has {len(region)} frames, the clip {frames}; give one for all, or one for each")
    return region.expand(frames, -1, -1)


def _generate(
    model: VideoTokenizer,
    prior: Prior,
    prompt: str | None,
    geometry: Geometry,
    count: int,
    how: dict[str, Any],
    **given: Any,
) -> TokenPyramid:
    prior.config.check(geometry)
    text = None if prompt is None else embed_prompt(model, prior, prompt)
    return generate(prior, text, geometry, batch=count, **given, **how)


def _geometry_of(video: Tensor, config: PriorConfig) -> Geometry:
    frames, height, width = video.shape[2:]
    return Geometry(frames=frames, height=height, width=width, strides=config.strides, fps=getattr(video, "fps", None))


def _fit(path: PathLike, config: PriorConfig) -> tuple[int, tuple[int, int]]:
    """Short side, in pixels, and the crop (height, width) that bring a file to the size of the prior."""
    info = probe(path)
    short = min(info.height, info.width)
    side = max(-(-config.height * short // info.height), -(-config.width * short // info.width))
    return side, (config.height, config.width)


def _is_size(mask: PathLike, found: tuple[int, ...], source: tuple[int, int], fitted: tuple[int, int]) -> bool:
    """Is the mask of the size of the source, so that it has to be fitted too?"""
    if found not in (source, fitted):
        sizes = " and ".join(f"{height}x{width}" for height, width in (source, fitted))
        raise ValueError(f"{mask} is {found[0]}x{found[1]} (height x width); masks of this video are {sizes}")
    return found == source


def _array(path: PathLike) -> Tensor:
    """float32 ``[T, H, W]``, 1 where the array of a file is not 0."""
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: no NumPy array ({error})") from error
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3):
        raise ValueError(f"{path}: a mask is an array [H, W] or [T, H, W], got shape {list(np.shape(array))}")
    return torch.from_numpy(array != 0).float().reshape(-1, *array.shape[-2:])
