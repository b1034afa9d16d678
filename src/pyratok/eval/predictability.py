"""How well a language model predicts tokens: bits per token after the right caption, a wrong one, and none.

Tokens are made without a caption, so that whatever a caption helps with is in the video. Beside the model stands what
needs no model: the entropy of the words of a level as they come, and that of their bits taken one by one.

Source: autoregressive alignment, PyraTok (arXiv 2601.16210), sec. 3.2.2; the measure is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyratok.data.synthetic import CaptionedScenes
from pyratok.eval.base import HashedProtocol, versions
from pyratok.eval.language import to_video
from pyratok.quantization.bits import ids_to_signs
from pyratok.quantization.usage import CodebookUsage, LevelUsage
from pyratok.types import ModelId, TextEmbedding

if TYPE_CHECKING:
    from pyratok.model.alignment import TokenLM
    from pyratok.model.base import VideoTokenizer

CONDITIONS = ("right caption", "shuffled captions", "no caption")


@dataclass(frozen=True, kw_only=True)
class PredictabilityProtocol(HashedProtocol):
    """``clips`` of ``frames x size x size`` are predicted, from ``windows`` places each where a level has more tokens
    than the model reads at once; the entropy of words is counted over ``counted_clips``, or all if these are more."""

    benchmark: str = "predictability"
    clips: int = 200
    counted_clips: int = 1000
    windows: int = 3
    frames: int = 5
    size: int = 80
    batch_size: int = 8
    seed: int = 11
    shuffled: str = "the caption of the next clip that has another one"


@dataclass(frozen=True, kw_only=True)
class LevelBits:
    """Bits per token of one level. ``predicted``: by the model, one number per condition. ``unigram``: entropy of the
    words, each counted by itself (with the correction of Miller and Madow for words not met). ``independent``: the sum
    of the entropies of the single bits."""

    level: int
    predicted: dict[str, float]
    unigram: float
    independent: float


@dataclass(frozen=True, kw_only=True)
class PredictabilityRecord:
    protocol: PredictabilityProtocol
    model: ModelId
    nouns: str
    levels: tuple[LevelBits, ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "protocol": self.protocol.to_dict(),
            "model": asdict(self.model),
            "versions": versions(),
            "nouns": self.nouns,
            "levels": [asdict(level) for level in self.levels],
        }


@torch.inference_mode()
def evaluate_predictability(
    tokenizer: VideoTokenizer,
    lm: TokenLM,
    source: CaptionedScenes,
    protocol: PredictabilityProtocol,
    nouns: str = "seen",
    on_share: Callable[[float], None] = lambda share: None,
) -> PredictabilityRecord:
    """Rendered clips that no training has shown: the generator starts from the protocol's seed.

    ``nouns`` is written into the record. ``lm`` must have learned the tokens of ``tokenizer``, whose text encoder
    embeds the captions.

    Raises: ValueError where all clips have one caption, so that none is wrong.
    """
    rng = np.random.default_rng((protocol.seed, 5))
    total = max(protocol.clips, protocol.counted_clips)
    work = total + protocol.clips
    captions: list[str] = []
    encoded: list[tuple[Tensor, ...]] = []
    for start in range(0, total, protocol.batch_size):
        count = min(protocol.batch_size, total - start)
        clips = [source.sample_captioned(rng, protocol.frames, protocol.size) for _ in range(count)]
        captions += [clip.caption for clip in clips]
        encoded.append(tokenizer.encode(to_video(clips)).levels)
        on_share((start + count) / work)
    words = [torch.cat(level) for level in zip(*encoded, strict=True)]
    usage = CodebookUsage(len(words), tokenizer.num_bits)
    usage.update(words)
    right = captions[: protocol.clips]
    wrong = shuffled(right)
    spent = {name: torch.zeros(len(words), dtype=torch.float64) for name in CONDITIONS}
    for start in range(0, protocol.clips, protocol.batch_size):
        part = slice(start, min(start + protocol.batch_size, protocol.clips))
        count = part.stop - start
        signs = [ids_to_signs(ids[part], tokenizer.num_bits) for ids in words]
        texts = tokenizer.embed_captions(right[part], count), tokenizer.embed_captions(wrong[part], count), None
        for name, text in zip(CONDITIONS, texts, strict=True):
            spent[name] += _bits(lm, signs, text, protocol.windows) * count
        on_share((total + part.stop) / work)
    levels = tuple(
        LevelBits(
            level=index + 1,
            predicted={name: float(bits[index] / protocol.clips) for name, bits in spent.items()},
            unigram=word_entropy(level),
            independent=bit_entropies(level),
        )
        for index, level in enumerate(usage.summary().levels)
    )
    return PredictabilityRecord(protocol=protocol, model=tokenizer.model_id, nouns=nouns, levels=levels)


def shuffled(captions: Sequence[str]) -> list[str]:
    """For every clip the caption of the next one, round in a circle, that has another: clips may share captions.

    Raises: ValueError where there is no other.
    """
    if len(set(captions)) < 2:
        raise ValueError(f"{len(captions)} clips with one caption leave none to shuffle; ask for more --clips")
    twice = [*captions, *captions]
    return [next(other for other in twice[place:] if other != caption) for place, caption in enumerate(captions)]


def word_entropy(usage: LevelUsage) -> float:
    """Entropy in bits of the words counted, with the Miller-Madow correction for a finite sample.

    Raises: ValueError where words are too wide to be counted.
    """
    if usage.perplexity is None or usage.unique is None:
        raise ValueError(f"words of {len(usage.bit_means)} bits are too many to be counted one by one")
    return math.log2(usage.perplexity) + (usage.unique - 1) / (2 * math.log(2) * usage.tokens)


def bit_entropies(usage: LevelUsage) -> float:
    """Sum over the bits of the entropy of each, in bits: no less than the entropy of the words."""
    means = torch.tensor(usage.bit_means, dtype=torch.float64)
    return float(-(torch.xlogy(means, means) + torch.xlogy(1 - means, 1 - means)).sum() / math.log(2))


def _bits(lm: TokenLM, signs: list[Tensor], text: TextEmbedding | None, windows: int) -> Tensor:
    """Mean bits per token of each level, float64 ``[L]``, over windows from the first tokens to the last."""
    places = np.linspace(0, 1, windows) if windows > 1 else [0.5]
    outputs = [lm(signs, text, window=float(place)).bits_per_token for place in places]
    return torch.stack([torch.stack(bits) for bits in outputs]).mean(0).double()
