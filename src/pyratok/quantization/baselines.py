"""The quantizers that LaPQ is compared with, at equal bits, behind one interface.

| kind | words of a position | source |
|---|---|---|
| ``vq`` | one of a learned codebook | VQ-VAE, arXiv 1711.00937 |
| ``gvq`` | one of a learned codebook, drawn | Gumbel-softmax, arXiv 1611.01144 |
| ``lfq`` | the signs of a projection | MAGVIT-v2, arXiv 2310.05737 |
| ``rvq`` | one per stage, each for what the stages before leave | SoundStream, arXiv 2107.03312 |
| ``rvq-lfq`` | the same with signs in place of codebooks, scale ``2^-i`` | PyraTok's released code, arXiv 2601.16210 |
| ``unitok`` | one per chunk of channels, each with its own codebook | UniTok, arXiv 2502.20321 |
| ``tokenflow`` | one for a pair of codebooks, semantic and pixel | TokenFlow, arXiv 2412.03069 |

They are compared for how a position is quantized, so what else sets those works apart (normalised codebooks,
projections with attention, a second encoder) is left out, and the codebooks of all but ``gvq`` follow their tokens in
the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from pyratok.quantization.base import Ids, Losses, Quantizer, linear, mean_losses, straight_through
from pyratok.quantization.bits import ids_to_signs, signs_to_ids
from pyratok.quantization.entropy import batch_entropy, sample_entropy
from pyratok.quantization.lfq import commitment_loss, quantize
from pyratok.quantization.vq import DualCodebook, GumbelQuantizer, VectorQuantizer

Kind = Literal["vq", "gvq", "lfq", "rvq", "rvq-lfq", "unitok", "tokenflow"]
MAX_CODEBOOK_SIZE, MAX_BITS = 1 << 20, 31
ENTROPY_GROUP_BITS = 8


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """``kind`` as in the module's table; ``dim`` channels in and out.

    The rate is given either as ``bits`` per position, shared out evenly over the ``stages`` (residual stages, chunks of
    ``unitok``; 1 for the other kinds), or as ``codebook_size`` words per stage; when both are given they must agree.
    """

    kind: Kind
    dim: int
    bits: int | None = None
    stages: int = 1
    codebook_size: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"unknown quantizer {self.kind!r}; there are {', '.join(get_args(Kind))}")
        least = {"unitok": self.stages, "tokenflow": 2}.get(self.kind, 1)
        if self.stages < 1 or self.dim < least:
            raise ValueError(f"{self.kind} needs stages >= 1 and dim >= {least}, got {self.stages} and {self.dim}")
        if self.stages > 1 and self.kind not in ("rvq", "rvq-lfq", "unitok"):
            raise ValueError(f"{self.kind} has a single stage, got stages = {self.stages}")
        if self.kind == "unitok" and self.dim % self.stages:
            raise ValueError(f"dim {self.dim} cannot be split into {self.stages} equal chunks")
        if self.bits is None and self.codebook_size is None:
            raise ValueError("the rate is missing: give bits per position, or codebook_size words per stage")
        if self.bits is not None and (self.bits < 1 or self.bits % self.stages):
            raise ValueError(f"bits must be a positive multiple of stages = {self.stages}, got {self.bits}")
        words = self.words
        if self.bits is not None and words != 1 << self.bits // self.stages:
            raise ValueError(f"{self.stages} stages of {words} words are not {self.bits} bits; give one of the two")
        if self.kind in ("lfq", "rvq-lfq"):
            if words != 1 << self.bits_per_stage or not 1 <= self.bits_per_stage <= MAX_BITS:
                raise ValueError(f"{self.kind} has 2 to 2^{MAX_BITS} words, a power of two, per stage, got {words}")
        elif not 2 <= words <= MAX_CODEBOOK_SIZE:
            raise ValueError(f"a learned codebook has 2 to {MAX_CODEBOOK_SIZE} words, got {words}; use more stages")

    @property
    def words(self) -> int:
        """Words of each stage."""
        return self.codebook_size if self.codebook_size is not None else 1 << cast(int, self.bits) // self.stages

    @property
    def bits_per_stage(self) -> int:
        """Whole bits that the number of a word of one stage needs."""
        return max(self.words - 1, 0).bit_length()


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """A fresh quantizer; its initial weights come from torch's generator."""
    dim, words, stages, bits = config.dim, config.words, config.stages, config.bits_per_stage
    match config.kind:
        case "vq":
            return VectorQuantizer(dim, words)
        case "gvq":
            return GumbelQuantizer(dim, words)
        case "lfq":
            return Projected(SignQuantizer(bits), dim)
        case "rvq":
            return Residual([VectorQuantizer(dim, words) for _ in range(stages)])
        case "rvq-lfq":
            return Projected(Residual([SignQuantizer(bits, scale=2.0**-stage) for stage in range(stages)]), dim)
        case "unitok":
            return Chunked([VectorQuantizer(dim // stages, words) for _ in range(stages)])
        case "tokenflow":
            return DualCodebook(dim, words, semantic_dim=dim // 2)


class SignQuantizer(Quantizer):
    """LFQ: ``scale`` times the signs of K channels.

    The terms are those of LaPQ's codebook loss, of the values in units of ``scale``; ``batch_entropy`` is negated, as
    it is to be made large.

    Source: MAGVIT-v2 (arXiv 2310.05737), sec. 3.1.
    """

    def __init__(self, num_bits: int, scale: float = 1.0) -> None:
        super().__init__(num_bits, (1 << num_bits,))
        self.scale = scale

    def quantize(self, z: Tensor) -> tuple[Tensor, Ids, Losses]:
        presign = z / self.scale
        signs = quantize(presign)
        losses = {
            "commitment": commitment_loss(presign, signs),
            "sample_entropy": sample_entropy(presign),
            "batch_entropy": -batch_entropy(presign, group_bits=ENTROPY_GROUP_BITS),
        }
        return self.scale * signs, (signs_to_ids(signs).long(),), losses

    def embed(self, ids: Ids) -> Tensor:
        return self.scale * ids_to_signs(ids[0], self.dim)


class Residual(Quantizer):
    """Stages of one width and one codebook each, quantizing what the stages before leave; their sum is the result.

    Losses are means over the stages.

    Source: SoundStream (arXiv 2107.03312), sec. III-C.
    """

    def __init__(self, stages: Sequence[Quantizer]) -> None:
        super().__init__(stages[0].dim, [stage.codebook_sizes[0] for stage in stages])
        self.stages = nn.ModuleList(stages)

    def quantize(self, z: Tensor) -> tuple[Tensor, Ids, Losses]:
        total, ids, losses = torch.zeros_like(z), list[Tensor](), list[Losses]()
        for stage in self._stages():
            said, index, loss = stage.quantize(z - total)
            total = total + said.detach()
            ids += index
            losses.append(loss)
        return straight_through(z, total), tuple(ids), mean_losses(losses)

    def embed(self, ids: Ids) -> Tensor:
        parts = [stage.embed((index,)) for stage, index in zip(self._stages(), ids, strict=True)]
        return sum(parts, start=torch.zeros_like(parts[0]))

    def _stages(self) -> list[Quantizer]:
        return [cast(Quantizer, stage) for stage in self.stages]


class Chunked(Quantizer):
    """Channels in equal chunks, each with a quantizer of one codebook; losses are means over the chunks.

    Source: UniTok (arXiv 2502.20321), multi-codebook quantization.
    """

    def __init__(self, parts: Sequence[Quantizer]) -> None:
        super().__init__(sum(part.dim for part in parts), [part.codebook_sizes[0] for part in parts])
        self.parts = nn.ModuleList(parts)

    def quantize(self, z: Tensor) -> tuple[Tensor, Ids, Losses]:
        pieces = z.chunk(len(self.parts), dim=1)
        results = [part.quantize(piece) for part, piece in zip(self._parts(), pieces, strict=True)]
        features, ids, losses = zip(*results, strict=True)
        return torch.cat(features, dim=1), tuple(index for part in ids for index in part), mean_losses(losses)

    def embed(self, ids: Ids) -> Tensor:
        return torch.cat([part.embed((index,)) for part, index in zip(self._parts(), ids, strict=True)], dim=1)

    def _parts(self) -> list[Quantizer]:
        return [cast(Quantizer, part) for part in self.parts]


class Projected(Quantizer):
    """A quantizer of few channels between two learned linear maps."""

    def __init__(self, inner: Quantizer, dim: int) -> None:
        super().__init__(dim, inner.codebook_sizes)
        self.inner = inner
        self.down, self.up = nn.Linear(dim, inner.dim), nn.Linear(inner.dim, dim)

    def quantize(self, z: Tensor) -> tuple[Tensor, Ids, Losses]:
        features, ids, losses = self.inner.quantize(linear(self.down, z))
        return linear(self.up, features), ids, losses

    def embed(self, ids: Ids) -> Tensor:
        return linear(self.up, self.inner.embed(ids))
