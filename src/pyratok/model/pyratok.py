"""PyraTok: a video VAE with a pyramidal, language-aligned quantizer between its halves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyratok.config import PyraTokConfig, to_dict
from pyratok.model.base import VideoTokenizer
from pyratok.model.lapq import LaPQ
from pyratok.model.text_head import TextHead
from pyratok.nn.carry import Carry
from pyratok.types import TextEmbedding, TokenizerOutput
from pyratok.vae.wan import WanVAE


class PyraTok(VideoTokenizer):
    """The tokenizer (PyraTok, arXiv 2601.16210).

    >>> model = PyraTok.from_pretrained()          # doctest: +SKIP
    >>> tokens = model.encode(video)               # [B, 3, T, H, W] in [-1, 1] -> TokenPyramid
    >>> back = model.decode(tokens, levels=2)      # from the first two levels alone
    """

    def __init__(self, config: PyraTokConfig, vae: WanVAE | None = None) -> None:
        super().__init__()
        self.config = config
        self.name = config.name
        self.strides, self.num_bits = config.lapq.strides, config.lapq.num_bits
        self.vae = vae if vae is not None else WanVAE(config.vae)
        self.lapq = LaPQ(config.lapq, config.vae)
        self.text_head: TextHead | None = None
        if config.text_head is not None:
            lapq = config.lapq
            self.text_head = TextHead(config.text_head, lapq.width, lapq.num_levels, lapq.text_dim)

    @staticmethod
    def from_pretrained(
        source: str | os.PathLike[str] | None = None, *, dtype: torch.dtype = torch.float32
    ) -> VideoTokenizer:
        """The embedded default (None), a directory, or a hub id ``owner/name``; see ``pyratok.model.pretrained``."""
        from pyratok.model.pretrained import from_pretrained

        return from_pretrained(source, dtype=dtype)

    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> None:
        """Write configuration and weights (adapters merged) to a folder that :meth:`from_pretrained` loads."""
        from pyratok.model.pretrained import save_pretrained

        save_pretrained(self, folder, dtype=dtype)

    def config_dict(self) -> dict[str, Any]:
        return to_dict(self.config)

    def signs(self, video: Tensor, text: TextEmbedding | None, carry: Carry | None = None) -> Sequence[Tensor]:
        return [level.bits for level in self.lapq.quantize(self.vae.encode_taps(video, carry), text, carry)]

    def reconstruct(self, signs: Sequence[Tensor], carry: Carry | None = None) -> Tensor:
        return self.vae.decode(self.lapq.latent(signs, carry=carry), carry)

    def read(self, signs: Sequence[Tensor]) -> Tensor:
        if self.text_head is None:
            return super().read(signs)
        found: Tensor = self.text_head(self.lapq.pyramid(signs)[-1], len(signs) - 1)
        return found

    def forward(
        self, video: Tensor, text: TextEmbedding | None = None, kept_levels: Tensor | None = None
    ) -> TokenizerOutput:
        """Training pass over padded clips ``[B, 3, T, H, W]`` in [-1, 1], gradients straight through the signs.

        ``kept_levels`` int64 ``[B]``: how many levels each clip is decoded from; all by default.
        """
        if kept_levels is None:
            kept_levels = torch.full((video.shape[0],), self.num_levels, device=video.device)
        levels = self.lapq.quantize(self.vae.encode_taps(video), text)
        latent = self.lapq.latent([level.bits for level in levels], kept_levels)
        return TokenizerOutput(
            reconstruction=self.vae.decode(latent), latent=latent, levels=levels, kept_levels=kept_levels
        )
