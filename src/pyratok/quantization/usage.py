"""How much of the vocabulary is in use: counts that add up across batches, clips and ranks.

Only counts are kept and merged, never percentages: the share of words in use grows with the number of tokens
seen, so it means something only beside that number, and a mean of shares means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_HISTOGRAM_BITS = 20
DEAD_BIT_RANGE = (0.01, 0.99)


@dataclass(frozen=True, kw_only=True)
class LevelUsage:
    """Use of the vocabulary of ``2**K`` words by one level, or by all of them together.

    ``unique``, ``share`` (unique words / 2^K), ``perplexity`` (exp of the empirical entropy of words, 1 to 2^K)
    and ``dead_codes`` (words never seen) are None for K > 20, where words are not counted. ``bit_means`` are K
    shares of +1, ``dead_bits`` the indices of those outside ``DEAD_BIT_RANGE``, ``max_deviation`` is the
    largest distance of a bit's mean from 1/2. Without tokens ``perplexity`` is 0 and nothing is said of bits.
    """

    tokens: int
    unique: int | None
    share: float | None
    perplexity: float | None
    dead_codes: int | None
    bit_means: tuple[float, ...]
    dead_bits: tuple[int, ...]
    max_deviation: float


@dataclass(frozen=True, kw_only=True)
class UsageSummary:
    """Use per level, shallow to deep, and of all levels pooled (the vocabulary is shared)."""

    levels: tuple[LevelUsage, ...]
    pooled: LevelUsage


class CodebookUsage:
    """Counts of words and bits per level.

    ``tokens`` int64 ``[L]``; ``ones`` int64 ``[L, K]``, how often each bit was +1; ``words`` int64
    ``[L, 2**K]``, how often each word was seen (``[L, 0]`` for K > 20). All on the CPU.
    """

    def __init__(self, num_levels: int, num_bits: int = 16) -> None:
        if num_levels < 1 or not 1 <= num_bits <= 31:
            raise ValueError(f"expected at least one level and 1 to 31 bits, got {num_levels} and {num_bits}")
        vocabulary = 1 << num_bits if num_bits <= MAX_HISTOGRAM_BITS else 0
        self.tokens = torch.zeros(num_levels, dtype=torch.int64)
        self.ones = torch.zeros(num_levels, num_bits, dtype=torch.int64)
        self.words = torch.zeros(num_levels, vocabulary, dtype=torch.int64)

    @property
    def num_levels(self) -> int:
        return self.ones.shape[0]

    @property
    def num_bits(self) -> int:
        return self.ones.shape[1]

    def update(self, ids_per_level: Sequence[Tensor]) -> None:
        """Count integer ids in ``[0, 2**K)``: a tensor of any shape per level, shallow to deep, fewer for a prefix.

        Raises: ValueError for too many levels or ids outside the vocabulary; nothing is counted then.
        """
        if len(ids_per_level) > self.num_levels:
            raise ValueError(f"counting {self.num_levels} levels, got {len(ids_per_level)}")
        flat = [ids.detach().flatten().to("cpu", torch.int64) for ids in ids_per_level]
        for index, ids in enumerate(flat):
            if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < 1 << self.num_bits:
                raise ValueError(f"level {index + 1} holds ids outside [0, 2**{self.num_bits})")
        for index, ids in enumerate(flat):
            self.tokens[index] += ids.numel()
            self.ones[index] += torch.stack([((ids >> bit) & 1).sum() for bit in range(self.num_bits)])
            if self.words.shape[1]:
                self.words[index] += torch.bincount(ids, minlength=self.words.shape[1])

    def merge(self, other: CodebookUsage) -> CodebookUsage:
        """The counts of both, as a new object; associative and commutative.

        Raises: ValueError where levels or bits differ.
        """
        mine, theirs = self.state_dict(), other.state_dict()
        if self.ones.shape != other.ones.shape:
            raise ValueError(
                f"cannot merge {self.num_levels} levels of {self.num_bits} bits "
                f"with {other.num_levels} levels of {other.num_bits} bits"
            )
        return CodebookUsage.from_state_dict({name: mine[name] + theirs[name] for name in mine})

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the counts as plain int64 tensors.

        Summed over ranks (``all_reduce`` with SUM on each) and given to :meth:`from_state_dict` they are the merge.
        """
        return {"tokens": self.tokens.clone(), "ones": self.ones.clone(), "words": self.words.clone()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> CodebookUsage:
        """Inverse of :meth:`state_dict`; takes tensors on any device.

        Raises: ValueError for missing, surplus or misshapen counts.
        """
        ones = state.get("ones")
        if ones is None or ones.ndim != 2:
            raise ValueError("a usage state needs 'ones' of shape [levels, bits]")
        usage = cls(*ones.shape)
        wanted = {name: counts.shape for name, counts in usage.state_dict().items()}
        found = {name: counts.shape for name, counts in state.items()}
        if found != wanted:
            raise ValueError(f"a usage state of this size has shapes {wanted}, got {found}")
        for name, counts in state.items():
            setattr(usage, name, counts.detach().to("cpu", torch.int64, copy=True))
        return usage

    def summary(self) -> UsageSummary:
        """Statistics of every level and of the pooled counts."""
        return UsageSummary(
            levels=tuple(map(_level_usage, self.tokens, self.ones, self.words)),
            pooled=_level_usage(self.tokens.sum(), self.ones.sum(0), self.words.sum(0)),
        )


def _level_usage(tokens: Tensor, ones: Tensor, words: Tensor) -> LevelUsage:
    """``tokens`` scalar, ``ones`` ``[K]``, ``words`` ``[2**K]`` or empty."""
    total, vocabulary = int(tokens), words.numel()
    means = (ones.double() / total).tolist() if total else []
    low, high = DEAD_BIT_RANGE
    unique = int((words > 0).sum())
    entropy = torch.special.entr(words.double() / max(total, 1)).sum()
    return LevelUsage(
        tokens=total,
        unique=unique if vocabulary else None,
        share=unique / vocabulary if vocabulary else None,
        perplexity=(float(entropy.exp()) if total else 0.0) if vocabulary else None,
        dead_codes=vocabulary - unique if vocabulary else None,
        bit_means=tuple(means),
        dead_bits=tuple(bit for bit, mean in enumerate(means) if not low <= mean <= high),
        max_deviation=max((abs(mean - 0.5) for mean in means), default=0.0),
    )
