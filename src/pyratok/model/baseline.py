"""A tokenizer around one of the quantizers that LaPQ is compared with: the same VAE, one grid, no text guidance.

```
video ── VAE encoder ── last tap ── norm, conv, norm ── n tokens a cell ── Quantizer ── lift ── q ── out ── VAE decoder
                                                                            (ids)               └─ text head
```

(Of a dual codebook the text head reads the semantic part: without that its two halves would be one plain codebook.)

It lies on the latent grid alone. To reach the rate of a pyramid, whose levels add up, a cell has several words: one
per codebook of the quantizer, and where that has a single one, the cell's channels are ``tokens_per_cell`` tokens that
share it. Each such word is a level of the :class:`~pyratok.types.TokenPyramid`, all of one grid.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pyratok.config import TextHeadConfig, WanVAEConfig, to_dict
from pyratok.model.base import VideoTokenizer
from pyratok.model.text_head import TextHead
from pyratok.nn.carry import Carry
from pyratok.quantization.base import Quantized
from pyratok.quantization.baselines import QuantizerConfig, build_quantizer
from pyratok.quantization.bits import ids_to_signs, signs_to_ids
from pyratok.quantization.vq import DualCodebook
from pyratok.types import TextEmbedding
from pyratok.vae.wan import WanVAE
from pyratok.vae.wan_blocks import CausalConv3d, RMSNorm


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """Shape of a :class:`BaselineTokenizer`; ``quantizer.dim`` channels per token, so that a cell has
    ``tokens_per_cell`` times as many. Words of a codebook are a power of two, so that a word is whole bits."""

    name: str = "baseline"
    vae: WanVAEConfig
    quantizer: QuantizerConfig
    tokens_per_cell: int = 1
    text_head: TextHeadConfig = field(default_factory=TextHeadConfig)
    text_dim: int = 384

    def __post_init__(self) -> None:
        if self.tokens_per_cell < 1 or self.text_dim < 1:
            raise ValueError(f"tokens_per_cell and text_dim must be at least 1, got {self.tokens_per_cell}")
        if self.quantizer.words != 1 << self.quantizer.bits_per_stage:
            raise ValueError(f"words of a codebook must be a power of two, got {self.quantizer.words}")

    @property
    def width(self) -> int:
        """Channels of the quantized features of a cell."""
        return self.quantizer.dim * self.tokens_per_cell

    @property
    def words_per_cell(self) -> int:
        return self.quantizer.stages * self.tokens_per_cell


class BaselineTokenizer(VideoTokenizer):
    """Features of the encoder's end, quantized by any :class:`~pyratok.quantization.base.Quantizer`."""

    def __init__(self, config: BaselineConfig, vae: WanVAE | None = None) -> None:
        super().__init__()
        self.config = config
        self.name = config.name
        self.strides = (config.vae.latent_stride,) * config.words_per_cell
        self.num_bits = config.quantizer.bits_per_stage
        self.vae = vae if vae is not None else WanVAE(config.vae)
        tap_dim, width = config.vae.tap_channels[-1], config.width
        self.norm_in = RMSNorm(tap_dim)
        self.project = CausalConv3d(tap_dim, width, (1, 3, 3), padding=(0, 1, 1))
        self.norm_out = RMSNorm(width)
        self.quantizer = build_quantizer(config.quantizer)
        self.lift = nn.Sequential(nn.Conv3d(width, width, 1), nn.SiLU(), nn.Conv3d(width, width, 1))
        self.out = CausalConv3d(width, config.vae.z_dim, 3, padding=1)
        self.text_head = TextHead(config.text_head, width, 1, config.text_dim)

    def quantize(self, tap: Tensor) -> Quantized:
        """The encoder's last feature ``[B, C, t, h, w]`` in words: features ``[B, width, t, h, w]``, an id per word."""
        cell = self.norm_out(self.project(F.silu(self.norm_in(tap))))
        count = self.config.tokens_per_cell
        found: Quantized = self.quantizer(rearrange(cell, "b (n c) t h w -> (b n) c t h w", n=count))
        ids = (rearrange(index, "(b n) t h w -> n b t h w", n=count).unbind() for index in found.ids)
        return replace(
            found,
            features=rearrange(found.features, "(b n) c t h w -> b (n c) t h w", n=count),
            ids=tuple(word for words in ids for word in words),
            bits_per_position=found.bits_per_position * count,
        )

    def features(self, quantized: Tensor) -> Tensor:
        """q ``[B, width, t, h, w]``, which the decoder reads, from what :meth:`quantize` gives."""
        return cast(Tensor, self.lift(quantized.to(self.out.weight.dtype)))

    def meaning(self, quantized: Tensor) -> Tensor:
        """As :meth:`features`, for the text head alone: of a dual codebook it reads the semantic part, no pixels."""
        if isinstance(self.quantizer, DualCodebook):
            channel = torch.arange(self.config.width, device=quantized.device) % self.config.quantizer.dim
            semantic = (channel < self.quantizer.semantic_dim)[:, None, None, None]
            quantized = torch.where(semantic, quantized, 0)
        return self.features(quantized)

    def signs(self, video: Tensor, text: TextEmbedding | None, carry: Carry | None = None) -> Sequence[Tensor]:
        tap = self.vae.encode_taps(video, carry)[-1]
        return [ids_to_signs(word, self.num_bits) for word in self.quantize(tap).ids]

    def reconstruct(self, signs: Sequence[Tensor], carry: Carry | None = None) -> Tensor:
        return self.vae.decode(self.out(self.features(self._quantized(signs)), carry), carry)

    def read(self, signs: Sequence[Tensor]) -> Tensor:
        return cast(Tensor, self.text_head(self.meaning(self._quantized(signs)), 0))

    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> None:
        """As :meth:`pyratok.model.pyratok.PyraTok.save_pretrained`, whose ``from_pretrained`` loads it."""
        from pyratok.model.pretrained import save_pretrained

        save_pretrained(self, folder, dtype=dtype)

    def config_dict(self) -> dict[str, Any]:
        return to_dict(self.config)

    def _quantized(self, signs: Sequence[Tensor]) -> Tensor:
        if len(signs) != self.num_levels:
            raise ValueError(f"{self.name} reads all of its {self.num_levels} words of a cell, got {len(signs)}")
        count = self.config.tokens_per_cell
        words = [signs_to_ids(word) for word in signs]
        # One codebook after another, each with the words of all tokens of a cell.
        stages = [words[first : first + count] for first in range(0, len(words), count)]
        ids = tuple(rearrange(stage, "n b t h w -> (b n) t h w") for stage in stages)
        return rearrange(self.quantizer.lookup(ids), "(b n) c t h w -> b (n c) t h w", n=count)
