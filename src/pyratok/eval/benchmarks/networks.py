"""Frozen networks that numbers depend on: files that nobody may ship, told apart by their SHA-256.

A number of one extractor cannot be compared with that of another, so the digest of its file is in the protocol.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from pyratok.data.video_io import VideoError

MIN_I3D_FRAMES = 10
"""I3D halves time five times; of fewer frames nothing is left."""


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_of_folder(folder: Path) -> str:
    """16 hex digits for the files in a folder, by name and content."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder).as_posix()} {sha256_of(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


class I3D:
    """The TorchScript I3D that StyleGAN-V and its followers compute FVD with: 400 numbers per video."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._network: Any = _archive(path)

    @torch.no_grad()
    def features(self, video: Tensor) -> Tensor:
        """``[B, 3, T, H, W]`` in [-1, 1] to float32 ``[B, D]``; frames are resized to 224 x 224, bilinear.

        Raises: :class:`~pyratok.data.video_io.VideoError` for fewer than :data:`MIN_I3D_FRAMES` frames.
        """
        batch, _, frames = video.shape[:3]
        if frames < MIN_I3D_FRAMES:
            raise VideoError(f"FVD needs videos of at least {MIN_I3D_FRAMES} frames, got {frames}")
        flat = rearrange(video.float(), "b c t h w -> (b t) c h w")
        flat = F.interpolate(flat, (224, 224), mode="bilinear", align_corners=False)
        resized = rearrange(flat, "(b t) c h w -> b c t h w", b=batch).contiguous()
        try:
            features: Tensor = self._network(resized, rescale=False, resize=False, return_features=True)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{self._path}: not the I3D of StyleGAN-V ({str(error).splitlines()[-1]})") from None
        return features.float().flatten(1)


class ClipImages:
    """CLIP's image tower (Radford et al., 2021) from OpenAI's own archive, a vision transformer of any size.

    The archive itself is bound to the device that it was saved on, so only its weights are taken.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = {
            name.removeprefix("visual."): value.float() for name, value in state.items() if name.startswith("visual.")
        }
        needed = ("conv1.weight", "class_embedding", "positional_embedding", "proj", "ln_post.weight")
        if absent := [name for name in needed if name not in self._state]:
            raise ValueError(f"not CLIP's vision transformer: there is no visual.{absent[0]}")
        self._patch: int = self._state["conv1.weight"].shape[-1]
        self._heads = max(1, self._state["conv1.weight"].shape[0] // 64)
        self._depth = len({name.split(".")[2] for name in self._state if name.startswith("transformer.resblocks.")})
        self.side = self._patch * round((self._state["positional_embedding"].shape[0] - 1) ** 0.5)

    @classmethod
    def load(cls, path: Path) -> ClipImages:
        """From ``ViT-B-32.pt`` and its like. Raises ValueError for other files."""
        try:
            return cls(OrderedDict(_archive(path).state_dict()))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @torch.no_grad()
    def embed(self, frames: Tensor) -> Tensor:
        """``[T, 3, H, W]`` in [-1, 1] to float32 ``[T, D]``: short side to :attr:`side`, centre, CLIP's own colours."""
        height, width = frames.shape[-2:]
        scale = self.side / min(height, width)
        size = [max(self.side, round(height * scale)), max(self.side, round(width * scale))]
        x = F.interpolate(frames.float(), size, mode="bicubic", antialias=True, align_corners=False)
        top, left = ((length - self.side) // 2 for length in size)
        x = x[..., top : top + self.side, left : left + self.side].clamp(-1, 1).add(1).div(2)
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
        return self._forward((x - mean) / std)

    def _forward(self, x: Tensor) -> Tensor:
        state = self._state
        patches = F.conv2d(x, state["conv1.weight"], stride=self._patch).flatten(2).transpose(1, 2)
        first = state["class_embedding"].expand(len(x), 1, -1)
        x = self._norm(torch.cat([first, patches], dim=1) + state["positional_embedding"], "ln_pre")
        for index in range(self._depth):
            block = f"transformer.resblocks.{index}"
            x = x + self._attention(self._norm(x, f"{block}.ln_1"), f"{block}.attn")
            hidden = self._linear(self._norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
            x = x + self._linear(hidden * torch.sigmoid(1.702 * hidden), f"{block}.mlp.c_proj")
        return self._norm(x[:, 0], "ln_post") @ state["proj"]

    def _attention(self, x: Tensor, name: str) -> Tensor:
        packed = F.linear(x, self._state[f"{name}.in_proj_weight"], self._state[f"{name}.in_proj_bias"])
        q, k, v = rearrange(packed, "b n (three h d) -> three b h n d", three=3, h=self._heads)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self._linear(rearrange(mixed, "b h n d -> b n (h d)"), f"{name}.out_proj")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._state[f"{name}.weight"], self._state[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self._state[f"{name}.weight"], self._state[f"{name}.bias"])


def _archive(path: Path) -> Any:
    """A TorchScript archive on the CPU. Raises ValueError for another file."""
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: not a TorchScript archive ({str(error).splitlines()[0]})") from None
