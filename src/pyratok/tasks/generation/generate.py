"""One way to sample from every prior: new clips, continuations, and what is missing in a clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyratok.tasks.generation.autoregressive import ARPrior
from pyratok.tasks.generation.config import PriorConfig
from pyratok.tasks.generation.layout import Layout
from pyratok.tasks.generation.masked import MaskedPrior
from pyratok.tasks.generation.prior import Prior, told_and_untold
from pyratok.tasks.generation.sampling import Noise, Sampler, SamplingConfig
from pyratok.types import Geometry, TextEmbedding, TokenPyramid


@dataclass(frozen=True, eq=False)
class Known:
    """Words that stay: those of ``tokens`` where ``masks``, bool ``[t, h, w]`` or ``[B, t, h, w]`` a level, are set."""

    tokens: TokenPyramid
    masks: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        for level, (ids, mask) in enumerate(zip(self.tokens.levels, self.masks, strict=True), start=1):
            if mask.dtype != torch.bool or mask.shape not in (ids.shape, ids.shape[1:]):
                raise ValueError(
                    f"the mask of level {level} should be bool {list(ids.shape[1:])}, got {mask.dtype} "
                    f"{list(mask.shape)}"
                )


def build_prior(config: PriorConfig) -> Prior:
    """The prior that ``config`` describes, untrained."""
    if config.kind == "llm":
        from pyratok.tasks.generation.language_model import LLMPrior

        return LLMPrior(config)
    return ARPrior(config) if config.kind == "ar" else MaskedPrior(config)


def outside(tokens: TokenPyramid, region: Tensor) -> Known:
    """Everything but a ``region`` bool ``[T, H, W]`` of the video, True where it is to be made anew.

    A cell goes when any of its pixels does. Tokens see beyond their cells, so that a region should be somewhat larger
    than what it is to hide. Raises ValueError for a region of another size.
    """
    geometry = tokens.geometry
    size = geometry.frames, geometry.height, geometry.width
    if region.dtype != torch.bool or tuple(region.shape) != size:
        raise ValueError(f"a region of this video is bool {list(size)}, got {region.dtype} {list(region.shape)}")
    if geometry.first_step:
        raise ValueError(f"this needs a clip from its first frame on, got one from step {geometry.first_step}")
    # The video was padded by repeating its edges.
    after = [amount for a, b in zip(geometry.padded[::-1], size[::-1], strict=True) for amount in (0, a - b)]
    padded = F.pad(region.float()[None, None], after, mode="replicate")
    masks = []
    for stride in geometry.strides:
        first = F.max_pool3d(padded[:, :, :1], (1, *stride[1:]))
        later = [F.max_pool3d(padded[:, :, 1:], stride)] if padded.shape[2] > 1 else []
        masks.append(torch.cat([first, *later], dim=2)[0, 0] == 0)
    return Known(tokens, tuple(masks[: len(tokens.levels)]))


@torch.no_grad()
def generate(
    prior: Prior,
    text: TextEmbedding | None,
    geometry: Geometry,
    *,
    batch: int | None = None,
    seed: int = 0,
    prefix: TokenPyramid | None = None,
    known: Known | None = None,
    on_part: Callable[[TokenPyramid], None] | None = None,
    **sampling: Any,
) -> TokenPyramid:
    """Sample clips of a true size and rate, ``geometry``; decode them with the tokenizer that the prior has learned.

    ``text``: a caption per clip, one for all of ``batch`` clips, or None. ``sampling``: the fields of
    :class:`~pyratok.tasks.generation.sampling.SamplingConfig`: temperature, top_k, top_p, guidance, steps ...
    Clip b of a batch is what ``seed + b`` gives alone, up to rounding.

    ``prefix``: tokens of a video of that size that goes on; of its last latent step only if it is whole. ``known``:
    words that stay (:func:`outside`). Both stay as they are, whatever the prior thinks of them.

    ``on_part`` gets neighbouring parts of the result, in order, as soon as no later word changes them, for
    ``decode_stream``: while later ones are sampled for a prior of order ``time`` or ``cell``, during the last level for
    one word after another in the order ``level``, and in the end for the other kinds. A part once given is final, also
    when sampling is cut off.

    Raises ValueError for sizes or tokens that the prior has not learned, batches that do not fit together, and
    settings out of range.
    """
    layout = prior.layout(geometry)
    config, num_levels = SamplingConfig(**sampling), prior.config.num_levels
    batch = _batch(batch, text, prefix, known)
    words, kept = _given(prior, layout, batch, prefix, known)
    if text is not None and len(text.tokens) != batch:
        tokens, mask, pooled = (x.expand(batch, *x.shape[1:]) for x in (text.tokens, text.mask, text.pooled))
        text = TextEmbedding(tokens=tokens, mask=mask, pooled=pooled)
    guided = text is not None and config.guidance != 1
    noise = Noise(seed, batch, words.device)
    draw = Sampler(prior.head, layout.level, num_levels, config, noise, guided=guided)
    shown = told_and_untold(text) if text is not None and guided else text
    memory = prior.remember(shown, 2 * batch if guided else batch)

    def pyramid(final: Tensor) -> TokenPyramid:
        levels = tuple(ids.to(torch.int32) for ids in layout.unflatten(final))
        return TokenPyramid(levels, geometry, prior.config.tokenizer, prior.config.num_bits)

    given = 0

    def tell(final: Tensor, places: int) -> None:
        nonlocal given
        whole = layout.steps_within(places) if on_part is not None else 0
        if on_part is not None and whole > given:
            on_part(pyramid(final).time_slice(given, whole))
            given = whole

    words, _ = prior.sample(words, kept, layout, memory, draw, tell)
    tell(words, len(layout))
    return pyramid(words)


def _batch(batch: int | None, *parts: TextEmbedding | TokenPyramid | Known | None) -> int:
    """How many clips there are to be: as many as something says, where everything else is one or as many."""
    sizes = [] if batch is None else [batch]
    for part in parts:
        if isinstance(part, TextEmbedding):
            sizes.append(len(part.tokens))
        elif part is not None:
            sizes.append(part.batch_size if isinstance(part, TokenPyramid) else part.tokens.batch_size)
    found = max(sizes, default=1)
    if found < 1 or set(sizes) - {1, found}:
        raise ValueError(f"captions, tokens and batch speak of different numbers of clips: {sizes}")
    return found


def _given(
    prior: Prior, layout: Layout, batch: int, prefix: TokenPyramid | None, known: Known | None
) -> tuple[Tensor, Tensor]:
    """Words int64 ``[B, n]`` that are there before, and bool ``[B, n]`` which."""
    words = torch.zeros(batch, len(layout), dtype=torch.int64, device=layout.order.device)
    kept = torch.zeros_like(words, dtype=torch.bool)
    if known is not None:
        there, its_layout = prior.words_of(known.tokens)
        if its_layout.geometry != layout.geometry:
            raise ValueError(f"the known tokens are {_size(its_layout.geometry)}, asked for {_size(layout.geometry)}")
        masks = known.masks[: layout.num_levels]
        kept = layout.flatten([mask.to(words.device) for mask in masks]).expand(batch, -1).clone()
        words = torch.where(kept, there, words)
    if prefix is not None:
        there, its_layout = prior.words_of(prefix)
        begun, wanted = its_layout.geometry, layout.geometry
        if begun.frames > wanted.frames or replace(begun, frames=wanted.frames) != wanted:
            raise ValueError(f"the prefix is {_size(begun)}, which cannot go on to {_size(wanted)}")
        # A step that ends in padding would go on as a still picture.
        whole = begun.latent_steps - (begun.frames not in (begun.padded[0], wanted.frames))
        before = layout.step < whole
        words[:, before] = there[:, its_layout.step < whole]
        kept[:, before] = True
    return words, kept


def _size(geometry: Geometry) -> str:
    return f"{geometry.frames} frames of {geometry.width}x{geometry.height}"
