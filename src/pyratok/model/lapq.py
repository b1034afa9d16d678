"""Language-aligned pyramidal quantization (LaPQ).

```
            F^(l) ── lateral ──┐
                               ├─ fuse ─ + gate * attention(text) ─ norm ─ linear ─ z ── sign ── s   (ids)
q^(l-1) ── resample ── conv ───┘                                                         │
   └──────── resample ───────────────────────────── + ──────────── lift_l(E(s)) ─────────┘
                                                    │
                                                  q^(l)   ...   q^(L) ── out ── latent ── VAE decoder
```

Source: PyraTok (arXiv 2601.16210), sec. 3.2.1, eq. 1. E, the embedding of a word, is shared by all levels: one
vocabulary. ``lift_l`` places it where level l has something to say; with E alone, the sum over levels that share a
grid would forget which level said what.

Every way through takes an optional :class:`~pyratok.nn.carry.Carry`: then the features or words at hand are those of
one chunk of a stream. Encoding looks back in time nowhere here, only the VAE before it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyratok.config import LaPQConfig, WanVAEConfig
from pyratok.nn.attention import TextAttention
from pyratok.nn.carry import Carry
from pyratok.nn.grids import Fold, Resample
from pyratok.quantization.lfq import lfq
from pyratok.types import LevelOutput, Stride, TextEmbedding
from pyratok.vae.wan_blocks import CausalConv3d, RMSNorm


class WordEmbedding(nn.Module):
    """E: signs ``[B, K, t, h, w]`` of a word to features ``[B, D, t, h, w]``, one map for the whole vocabulary."""

    def __init__(self, num_bits: int, width: int) -> None:
        super().__init__()
        self.expand = nn.Conv3d(num_bits, width, 1)
        self.mix = nn.Conv3d(width, width, 1)

    def forward(self, signs: Tensor) -> Tensor:
        return cast(Tensor, self.mix(F.silu(self.expand(signs))))


class LaPQLevel(nn.Module):
    """One block: a feature and what is known so far, to the word that says the most of what is not yet known."""

    def __init__(self, tap_dim: int, tap: Stride, grid: Stride, previous: Stride | None, config: LaPQConfig) -> None:
        super().__init__()
        width = config.width
        self.norm_in = RMSNorm(tap_dim)
        self.lateral = Fold(tap_dim, width, tap, grid)
        self.resample = Resample(width, previous, grid) if previous is not None else None
        self.fuse = CausalConv3d(width * (1 if previous is None else 2), width, (1, 3, 3), padding=(0, 1, 1))
        self.text = TextAttention(width, config.text_dim, config.num_heads)
        self.norm_out = RMSNorm(width)
        self.project = nn.Conv3d(width, config.num_bits, 1)
        self.lift = nn.Conv3d(width, width, 1)

    def regrid(self, q: Tensor, carry: Carry | None = None) -> Tensor:
        """q^(l-1) on this level's grid."""
        assert self.resample is not None, "the first level has none before it"
        return cast(Tensor, self.resample(q, carry))

    def presign(
        self, feature: Tensor, known: Tensor | None, text: TextEmbedding | None, carry: Carry | None = None
    ) -> Tensor:
        """Values before the sign ``[B, K, t, h, w]``, float32; ``known`` is q^(l-1) on this grid."""
        h = self.lateral(F.silu(self.norm_in(feature)), carry)
        r = self.fuse(F.silu(h if known is None else torch.cat([h, known.to(h.dtype)], dim=1)))
        r = self.norm_out(self.text(r, text))
        # Words must not depend on the precision the features happen to be computed in.
        with torch.autocast(r.device.type, enabled=False):
            weight, bias = self.project.weight.float(), cast(Tensor, self.project.bias).float()
            return F.conv3d(r.float(), weight, bias)


class LaPQ(nn.Module):
    """All levels, their shared vocabulary, and the way from words to the VAE's latent."""

    def __init__(self, config: LaPQConfig, vae: WanVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = WordEmbedding(config.num_bits, config.width)
        previous: list[Stride | None] = [None, *config.strides[:-1]]
        self.levels = nn.ModuleList(
            LaPQLevel(vae.tap_channels[tap], vae.tap_strides[tap], grid, before, config)
            for tap, grid, before in zip(config.taps, config.strides, previous, strict=True)
        )
        self.out = CausalConv3d(config.width, vae.z_dim, 3, padding=1)

    def quantize(
        self, taps: Sequence[Tensor], text: TextEmbedding | None = None, carry: Carry | None = None
    ) -> tuple[LevelOutput, ...]:
        """Features of every depth to one :class:`LevelOutput` per level, each level knowing all words before it."""
        outputs: list[LevelOutput] = []
        q: Tensor | None = None
        for index, level in enumerate(self._levels()):
            known = None if q is None else level.regrid(q, carry)
            output = lfq(level.presign(taps[self.config.taps[index]], known, text, carry))
            outputs.append(output)
            if index + 1 < len(self.levels):
                q = self._add(level, known, output.bits, None)
        return tuple(outputs)

    def pyramid(
        self, bits: Sequence[Tensor], kept_levels: Tensor | None = None, carry: Carry | None = None
    ) -> tuple[Tensor, ...]:
        """q^(1) ... q^(n) ``[B, D, t, h, w]``, each on its level's grid, from the signs of the first n levels.

        ``kept_levels`` int64 ``[B]``: clip b uses only that many of the levels (level dropout).
        """
        if not 1 <= len(bits) <= len(self.levels):
            raise ValueError(f"LaPQ has {len(self.levels)} levels, got signs of {len(bits)}")
        found: list[Tensor] = []
        for index, (level, signs) in enumerate(zip(self._levels(), bits, strict=False)):
            keep = None if kept_levels is None else kept_levels > index
            found.append(self._add(level, level.regrid(found[-1], carry) if found else None, signs, keep))
        return tuple(found)

    def features(self, bits: Sequence[Tensor], kept_levels: Tensor | None = None, carry: Carry | None = None) -> Tensor:
        """q^(n) of :meth:`pyramid`, brought on to the last grid ``[B, D, t, h, w]``."""
        q = self.pyramid(bits, kept_levels, carry)[-1]
        for level in self._levels()[len(bits) :]:
            q = level.regrid(q, carry)
        return q

    def latent(self, bits: Sequence[Tensor], kept_levels: Tensor | None = None, carry: Carry | None = None) -> Tensor:
        """Latent ``[B, z, t, h, w]`` for the VAE's decoder."""
        return cast(Tensor, self.out(self.features(bits, kept_levels, carry), carry))

    def _add(self, level: LaPQLevel, known: Tensor | None, bits: Tensor, keep: Tensor | None) -> Tensor:
        said: Tensor = level.lift(self.embed(bits.to(level.lift.weight.dtype)))
        if keep is not None:
            said = said * keep.to(said.dtype).view(-1, 1, 1, 1, 1)
        return said if known is None else known + said

    def _levels(self) -> list[LaPQLevel]:
        return [cast(LaPQLevel, level) for level in self.levels]
