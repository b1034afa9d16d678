"""How much of the vocabulary a model uses, counted at a fixed number of tokens per level.

Usage rises with the number of tokens seen, so that the budget is part of the protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pyratok.data.datasets import MixedClips, batches, to_signed
from pyratok.eval.base import versions
from pyratok.quantization.usage import CodebookUsage, UsageSummary
from pyratok.types import ModelId

if TYPE_CHECKING:
    from pyratok.model.base import VideoTokenizer


@dataclass(frozen=True, kw_only=True)
class UsageProtocol:
    """Clips of ``frames x size x size`` from the training mix, until every level has seen ``tokens`` tokens."""

    benchmark: str = "codebook-usage"
    tokens: int = 1_000_000
    frames: int = 17
    size: int = 128
    batch_size: int = 8
    seed: int = 1

    @property
    def most_clips(self) -> int:
        """More clips than any grid needs: even one token per frame fills the budget."""
        return self.tokens // self.frames + self.batch_size


@dataclass(frozen=True, kw_only=True)
class UsageRecord:
    """Who, by which protocol, from how many clips, and the counts' summary."""

    protocol: UsageProtocol
    model: ModelId
    clips: int
    usage: UsageSummary

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "protocol": asdict(self.protocol),
            "model": asdict(self.model),
            "versions": versions(),
            "clips": self.clips,
            "usage": asdict(self.usage),
        }


def evaluate_usage(
    tokenizer: VideoTokenizer,
    dataset: MixedClips,
    protocol: UsageProtocol,
    on_batch: Callable[[float], None] = lambda share: None,
) -> UsageRecord:
    """Count words; ``on_batch`` hears the share of the budget that is reached.

    ``dataset`` gives clips of the protocol's shape, enough of them. Raises ValueError where they run out.
    """
    usage = CodebookUsage(tokenizer.num_levels, tokenizer.num_bits)
    fewest, clips = 0, 0
    for batch in batches(dataset, protocol.batch_size, workers=0):
        tokens = tokenizer.encode(to_signed(batch))
        usage.update(tokens.levels)
        clips += protocol.batch_size
        fewest += min(ids.numel() for ids in tokens.levels)
        on_batch(min(1.0, fewest / protocol.tokens))
        if fewest >= protocol.tokens:
            return UsageRecord(protocol=protocol, model=tokenizer.model_id, clips=clips, usage=usage.summary())
    raise ValueError(
        f"{clips} clips gave {fewest} tokens on the sparsest level, fewer than the {protocol.tokens} asked"
    )
