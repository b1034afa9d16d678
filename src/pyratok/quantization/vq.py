"""Quantizers with a learned codebook: VQ, its dual form, and Gumbel-softmax.

Distances and logits are computed for a limited number of tokens at a time: 2^16 words times the tokens of a clip are
never held at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyratok.quantization.base import Ids, Losses, Quantizer, linear, straight_through
from pyratok.quantization.lfq import commitment_loss

MAX_SCORES = 1 << 24
"""Distances or logits held at once: 64 MiB in float32."""


def chunks(z: Tensor, codebook_size: int) -> tuple[Tensor, ...]:
    """Tokens ``[N, C]`` in pieces whose scores against all words stay within ``MAX_SCORES``."""
    return z.split(max(1, MAX_SCORES // codebook_size))


@torch.no_grad()
def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """Index int64 ``[N]`` of the word of ``codebook`` ``[K, C]`` next to each token of ``z`` ``[N, C]``."""
    squares = codebook.square().sum(1)
    # |z - e|^2 without |z|^2, which is the same for every word.
    return torch.cat([torch.addmm(squares, part, codebook.T, alpha=-2).argmin(1) for part in chunks(z, len(codebook))])


class VectorQuantizer(Quantizer):
    """VQ: the nearest word of a codebook that follows the tokens as a moving average (no gradient).

    Buffers: ``codebook`` float32 ``[K, C]``, ``sizes`` float32 ``[K]``, the moving average of the tokens a word stands
    for in a batch. Words used less than ``restart_below`` times the mean are placed on random tokens of the batch; at
    the start these are all of them, so the first batch initialises the codebook. 0 switches restarts off.

    Each process follows its own batch: across ranks, counts and sums would have to be added up before the update.

    Sources: VQ-VAE (arXiv 1711.00937), eq. 3 and app. A.1 (moving average); SoundStream (arXiv 2107.03312), sec. III-C
    (restart from the batch).
    """

    codebook: Tensor
    sizes: Tensor

    def __init__(self, dim: int, codebook_size: int, *, decay: float = 0.99, restart_below: float = 0.05) -> None:
        super().__init__(dim, (codebook_size,))
        self.decay, self.restart_below = decay, restart_below
        self.register_buffer("codebook", torch.randn(codebook_size, dim))
        self.register_buffer("sizes", torch.zeros(codebook_size))

    def quantize(self, z: Tensor) -> tuple[Tensor, Ids, Losses]:
        if self.training:
            self._restart(z.detach())
        ids = self.nearest(z)
        if self.training:
            self._follow(z.detach(), ids)
        # Looked up after the update, so that what is decoded now is what the ids stand for afterwards.
        words = self.embed((ids,))
        return straight_through(z, words), (ids,), {"commitment": commitment_loss(z, words)}

    def embed(self, ids: Ids) -> Tensor:
        return self.codebook[ids[0]].float()

    def nearest(self, z: Tensor) -> Tensor:
        """Index int64 ``[N]`` of the word that stands for each token."""
        return nearest(z, self.codebook.float())

    @torch.no_grad()
    def _restart(self, z: Tensor) -> None:
        mean = len(z) / len(self.sizes)
        dead = (self.sizes < self.restart_below * mean).nonzero().flatten()
        # No token twice: of two equal words one would stay unused.
        chosen = torch.randperm(len(z), device=z.device)[: len(dead)]
        dead = dead[: len(chosen)]
        self.codebook[dead] = z[chosen]
        self.sizes[dead] = mean

    @torch.no_grad()
    def _follow(self, z: Tensor, ids: Tensor) -> None:
        """``N <- decay N + (1 - decay) n`` and the same for the sums, whose ratio is the word."""
        counts = torch.bincount(ids, minlength=len(self.sizes)).to(z.dtype)
        sums = torch.zeros_like(self.codebook).index_add_(0, ids, z)
        self.sizes.lerp_(counts, 1 - self.decay)
        towards = (sums - counts[:, None] * self.codebook) / self.sizes.clamp_min(torch.finfo(z.dtype).tiny)[:, None]
        self.codebook.add_(towards, alpha=1 - self.decay)


class DualCodebook(VectorQuantizer):
    """TokenFlow's way: a semantic and a pixel codebook share one index.

    The first ``semantic_dim`` channels of a token are its semantic part, the rest its pixel part. The index minimises
    ``d_semantic + pixel_weight * d_pixel``, each d the mean squared distance over its channels; both parts should have
    about the same scale (TokenFlow normalises them, here the caller does). Only the semantic part is for a loss against
    language to see: ``features[:, :semantic_dim]``.

    Source: TokenFlow (arXiv 2412.03069), shared mapping. Words follow as in :class:`VectorQuantizer`.
    """

    def __init__(self, dim: int, codebook_size: int, *, semantic_dim: int, pixel_weight: float = 1.0) -> None:
        super().__init__(dim, codebook_size)
        self.semantic_dim, self.pixel_weight = semantic_dim, pixel_weight

    def nearest(self, z: Tensor) -> Tensor:
        # A weighted sum of squared distances is one squared distance between scaled vectors.
        pixel_dim = self.dim - self.semantic_dim
        scale = z.new_full((self.dim,), self.semantic_dim**-0.5)
        scale[self.semantic_dim :] = (self.pixel_weight / pixel_dim) ** 0.5
        return nearest(z * scale, self.codebook.float() * scale)


class GumbelQuantizer(Quantizer):
    """GVQ: a word drawn from the softmax of K logits, its gradient that of the relaxed one (straight through).

    ``temperature`` divides the logits; it is the trainer's to lower from 1 towards 1/16 in the course of a run. In
    evaluation the most likely word is taken. The term ``uniform_kl`` is the KL divergence of the softmax from the
    uniform distribution, in nats: it keeps words in play.

    Sources: Gumbel-softmax (arXiv 1611.01144), sec. 2.2; as a quantizer of images DALL-E (arXiv 2102.12092), sec. 2.1.
    """

    def __init__(self, dim: int, codebook_size: int, *, temperature: float = 1.0) -> None:
        super().__init__(dim, (codebook_size,))
        self.temperature = temperature
        self.logits = nn.Linear(dim, codebook_size)
        self.codebook = nn.Embedding(codebook_size, dim)

    def quantize(self, z: Tensor) -> tuple[Tensor, Ids, Losses]:
        size = self.codebook_sizes[0]
        # Logits are computed again for the gradient (with the same noise) instead of being kept.
        parts = [checkpoint(self._choose, part, use_reentrant=False) for part in chunks(z, size)]
        ids, relaxed, negative_entropy = (torch.cat(values) for values in zip(*parts, strict=True))
        features = self.embed((ids,)) + (relaxed - relaxed.detach())
        return features, (ids,), {"uniform_kl": math.log(size) + negative_entropy.mean()}

    def embed(self, ids: Ids) -> Tensor:
        return self.codebook(ids[0]).float()

    def _choose(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ids ``[N]``, the expected word ``[N, C]`` under the relaxed choice, and ``E[log q]`` ``[N]``."""
        logits = linear(self.logits, z)
        log_q = logits.log_softmax(1)
        if self.training:
            logits = logits - torch.empty_like(logits).exponential_().log()
        relaxed = (logits / self.temperature).softmax(1)
        # The codebook learns through the chosen words alone.
        expected = relaxed @ self.codebook.weight.detach().float()
        return logits.argmax(1), expected, (log_q.exp() * log_q).sum(1)
