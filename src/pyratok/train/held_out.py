"""Clips of token shards that a prior is trained on, and those that it is measured on and never trained on.

Which side a clip is on follows from its name, so that it is the same for every prior, seed and number of steps.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

from pyratok.data.token_shards import TokenClips, TokenRow, TokenShards
from pyratok.quantization.usage import CodebookUsage
from pyratok.tasks.generation.prior import Prior
from pyratok.tasks.generation.prompts import words_of

COUNTED = 256
"""Clips whose words are counted at once."""
NUM_EXAMPLES = 6
"""Captions that are kept as prompts to begin with."""


def is_held_out(clip: str, share: float) -> bool:
    """Does a clip belong to the ``share`` of all that is never trained on? Clips of one video (``name#0``, ``name#1``)
    go together."""
    video = re.sub(r"#\d+$", "", clip)
    return int.from_bytes(hashlib.sha256(video.encode("utf-8", "surrogateescape")).digest()[:8], "big") < share * 2**64


class TrainingClips(Dataset[TokenRow]):
    """The clips of ``shards`` that are not held out: in place of one that is comes the next that is not.

    Item i is a pure function of (seed, i) and the shards. There has to be one such clip.
    """

    def __init__(self, shards: TokenShards, held_out: float) -> None:
        self.shards, self.held_out = shards, held_out

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> TokenRow:
        row = self.shards[index]
        while is_held_out(row.clip, self.held_out):
            index = (index + 1) % len(self.shards)
            row = self.shards[index]
        return row

    def collate(self, items: Sequence[TokenRow]) -> TokenClips:
        return self.shards.collate(items)


@dataclass(frozen=True, kw_only=True, eq=False)
class Survey:
    """What is in shards: ``training`` clips, with the ``usage`` of the vocabulary by their tokens and the ``words`` of
    their captions; and the numbers of those ``held_out``, in the order of the files, with captions of the first few as
    ``examples``."""

    training: int
    usage: CodebookUsage
    words: frozenset[str]
    held_out: tuple[int, ...]
    examples: tuple[str, ...] = ()

    @property
    def unigram(self) -> tuple[float | None, ...]:
        """Entropy in bits of the words of each level as they were counted, None where they are too wide for that.

        Words not yet met would add to it: who needs fewer bits than this has learned more than how often words come.
        """
        found = (level.perplexity for level in self.usage.summary().levels)
        return tuple(None if perplexity is None else math.log2(max(1.0, perplexity)) for perplexity in found)


def survey(shards: TokenShards, held_out: float) -> Survey:
    """Read ``shards``, which are not shuffled, once. Raises ValueError where no clip is left to train on."""
    usage = CodebookUsage(len(shards.header.grids), shards.header.num_bits)
    apart, words, waiting, examples = list[int](), set[str](), list[TokenRow](), dict[str, None]()
    for number in range(len(shards)):
        row = shards[number]
        if is_held_out(row.clip, held_out):
            apart.append(number)
            if row.caption.strip():
                examples[row.caption] = None
            continue
        words |= words_of(row.caption)
        waiting.append(row)
        if len(waiting) == COUNTED:
            usage.update(shards.collate(waiting).tokens.levels)
            waiting.clear()
    if waiting:
        usage.update(shards.collate(waiting).tokens.levels)
    if len(apart) == len(shards):
        raise ValueError(f"all {len(apart)} clips are held out, none is left to train on; lower held_out or add clips")
    return Survey(
        training=len(shards) - len(apart),
        usage=usage,
        words=frozenset(words),
        held_out=tuple(apart),
        examples=tuple(examples)[:NUM_EXAMPLES],
    )


@torch.no_grad()
def bits_per_token(
    prior: Prior, shards: TokenShards, clips: Sequence[int], *, batch_size: int = 16, draws: int = 2, seed: int = 0
) -> tuple[float, ...]:
    """Bits per token of each level of ``clips``, one or more numbers of ``shards``, after their captions.

    Exact for ``ar`` and ``llm``. For the other kinds the mean over orders in which words may be revealed, an upper
    bound, estimated by ``draws`` looks or more at every level of a batch: n of N words are hidden, n uniform, and
    N / n times what those of a level cost is, in the mean, what the whole level does.
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = 1 if prior.config.is_sequential else draws
    sizes = torch.tensor([math.prod(grid) for grid in shards.header.grids[: prior.config.num_levels]])
    spent, looks = torch.zeros(len(sizes), dtype=torch.float64), torch.zeros(len(sizes))
    for first in range(0, len(clips), batch_size):
        batch = shards.collate([shards[number] for number in clips[first : first + batch_size]])
        count, seen = batch.tokens.batch_size, torch.zeros(len(sizes))
        while seen.min() < wanted:
            output = prior(batch.tokens, batch.text, prior.draw(count, batch.tokens.geometry, generator, measure=True))
            cost = (output.token_nll * output.predicted).double()
            cost *= cost.shape[1] / output.predicted.sum(1, keepdim=True)
            for level in output.level.unique().tolist():
                spent[level] += cost[:, output.level == level].sum().cpu() / sizes[level]
                seen[level] += 1
        looks += seen * count
    return tuple((spent / looks / math.log(2)).tolist())
