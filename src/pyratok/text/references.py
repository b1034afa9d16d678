"""Frozen image encoders that training compares with: DINOv2 and DINOv3, frame by frame.

Sources: PyraTok (arXiv 2601.16210), sec. 3.3 and App. D, drift and frame retention; DINOv2 (arXiv 2304.07193); DINOv3
(arXiv 2508.10104). The classes that prepare images in transformers need torchvision; what they do is done here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from pyratok.text.hf_loading import CONFIG, load_frozen, read_config
from pyratok.vae.hub import read_json, resolve_folder

FAMILIES = ("dinov2", "dinov2_with_registers", "dinov3_vit")
PREPROCESSOR = "preprocessor_config.json"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class FrameFeatures:
    """What a reference sees in each frame, float32.

    ``patches`` ``[B, T, N, D]``, the ``N = rows * columns`` of ``grid`` in row order; ``pooled`` ``[B, T, D]``.
    """

    patches: Tensor
    pooled: Tensor
    grid: tuple[int, int]


@runtime_checkable
class ReferenceEncoder(Protocol):
    """A frozen model of images whose features are kept close to; ``name`` identifies it, ``dim`` is ``D``."""

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    def encode_frames(self, video: Tensor) -> FrameFeatures:
        """Features of all frames of ``[B, 3, T, H, W]`` in [-1, 1]; the gradient passes to ``video``."""
        ...


class DinoReference:
    """DINOv2, with or without registers, or a DINOv3 ViT; see :class:`ReferenceEncoder`.

    Not an ``nn.Module``, so that its weights stay out of checkpoints. Frames are resized to the nearest multiple of the
    patch, and so that their longer side is at most ``max_side`` pixels: attention over the patches of a 4K frame is
    rarely wanted. ``dtype``: what the model computes in, by default what its folder says.

    ``folder_or_id``: a folder, or a hub id, which alone is fetched. Raises ValueError for a folder without such a
    model, naming file and fix; ImportError without transformers.
    """

    def __init__(
        self,
        folder_or_id: str | os.PathLike[str],
        *,
        max_side: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        folder, config = reference_config(folder_or_id)
        if max_side is not None and max_side < config.patch_size:
            raise ValueError(f"max_side must be at least the patch of {config.patch_size} pixels, got {max_side}")
        self._mean, self._std = _normalisation(folder)
        self._model: Any = load_frozen(folder, config, device=device, dtype=dtype)
        self.name = folder.resolve().name if folder == Path(folder_or_id) else os.fspath(folder_or_id)
        self.dim: int = config.hidden_size
        self.patch: int = config.patch_size
        self.max_side = max_side
        # In front of the patches: the class token and the registers.
        self._prefix = 1 + getattr(config, "num_register_tokens", 0)

    def to(self, device: torch.device | str) -> DinoReference:
        """Move the weights; videos are to be on the same device."""
        self._model.to(device)
        return self

    def encode_frames(self, video: Tensor) -> FrameFeatures:
        """Patch features and class token of every frame; see :class:`ReferenceEncoder`."""
        if video.ndim != 5 or video.shape[1] != 3 or not video.is_floating_point():
            raise ValueError(f"expected a video [B, 3, T, H, W] in [-1, 1], got {video.dtype} {list(video.shape)}")
        batch, _, frames, height, width = video.shape
        rows, columns = self.grid(height, width)
        images = video.transpose(1, 2).flatten(0, 1).float()
        with torch.autocast(video.device.type, enabled=False):
            if (height, width) != (rows * self.patch, columns * self.patch):
                size = (rows * self.patch, columns * self.patch)
                images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
            mean, std = (torch.tensor(v, device=video.device).view(3, 1, 1) for v in (self._mean, self._std))
            images = ((images + 1) / 2 - mean) / std
            output = self._model(pixel_values=images.to(self._model.dtype))
        patches = output.last_hidden_state[:, self._prefix :].float().unflatten(0, (batch, frames))
        pooled = output.pooler_output.float().unflatten(0, (batch, frames))
        return FrameFeatures(patches=patches, pooled=pooled, grid=(rows, columns))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches per column and row of a frame."""
        return patch_grid(height, width, self.patch, self.max_side)


def patch_grid(height: int, width: int, patch: int, max_side: int | None) -> tuple[int, int]:
    """Patches per column and row of a frame that is resized as :class:`DinoReference` does."""
    scale = 1.0 if max_side is None else min(1.0, max_side / max(height, width))
    limit = max(height, width) if max_side is None else max_side // patch
    rows, columns = (max(1, round(side * scale / patch)) for side in (height, width))
    return min(rows, limit), min(columns, limit)


def reference_config(folder_or_id: str | os.PathLike[str]) -> tuple[Path, Any]:
    """Folder and transformers configuration of a DINO; ValueError for another model."""
    folder = resolve_folder(folder_or_id)
    config = read_config(folder)
    if config.model_type not in FAMILIES:
        raise ValueError(f"{folder / CONFIG}: expected one of {', '.join(FAMILIES)}, got {config.model_type!r}")
    return folder, config


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the colours in [0, 1], as the model was trained with."""
    path = folder / PREPROCESSOR
    if not path.is_file():
        return IMAGENET_MEAN, IMAGENET_STD
    try:
        values = read_json(path)
        mean, std = (
            tuple(map(float, values.get(key, default)))
            for key, default in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD))
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: no means and deviations of three colours there ({error})") from error
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"{path}: expected three colours with positive deviations, got {mean} and {std}")
    return mean, std
