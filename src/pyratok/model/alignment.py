"""Autoregressive alignment: a causal language model that predicts every word of a pyramid.

```
caption    <SOI>   q1_1 ... q1_n   <Q-SEP>   q2_1 ...        what the model reads
              │      │ ...            │        │
            q1_1   q1_2 ...         q2_1     q2_2 ...        what it predicts there
```

Source: PyraTok (arXiv 2601.16210), sec. 3.2.2: L_AR is the mean negative log-likelihood of the tokens. Its gradient
must reach the quantizer, so the likelihood is a function of the *signs* of a word, as input and as target.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from pyratok.nn.waves import waves
from pyratok.quantization.bits import signs_to_ids
from pyratok.text.hf_loading import load_text_model
from pyratok.types import TextEmbedding
from pyratok.vae.hub import resolve_folder

MAX_TABLE_BITS = 16
OCTAVES = 10
"""Frequencies per axis of a position; the finest tells neighbours on a grid of 1024 apart."""


@dataclass(frozen=True, kw_only=True)
class TokenLMConfig:
    """Shape of a :class:`TokenLM`.

    ``head`` says how the probability of a word of ``num_bits`` factorises, given the past: ``bits`` are independent,
    ``chunks`` of ``chunk_bits`` each have a softmax over their ``2**chunk_bits`` partial words, ``full`` is one softmax
    over all words. With ``chained`` a chunk also sees the chunks before it in the same word; otherwise they are
    independent.

    ``max_tokens_per_level``: of a level with more tokens only a window is modelled; None models all.
    ``target_gradient``: whether the gradient reaches a word also as what is predicted, and not only as what later
    words are predicted from.

    ``backbone``: None for a Qwen2 decoder of ``hidden_size``, ``num_layers`` and ``num_heads``; or the folder (or hub
    id) of a pretrained causal language model, such as Qwen2.5-VL, whose numbers win and whose weights stay as they
    are, by choice ``load_in_4bit``.
    """

    num_levels: int
    text_dim: int
    num_bits: int = 16
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    head: Literal["bits", "chunks", "full"] = "chunks"
    chunk_bits: int = 8
    chained: bool = True
    max_tokens_per_level: int | None = None
    target_gradient: bool = True
    backbone: str | None = None
    load_in_4bit: bool = False

    def __post_init__(self) -> None:
        for name in ("num_levels", "text_dim", "num_bits", "hidden_size", "num_layers", "num_heads", "chunk_bits"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_tokens_per_level is not None and self.max_tokens_per_level < 1:
            raise ValueError(f"max_tokens_per_level must be at least 1 or None, got {self.max_tokens_per_level}")
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size must be a multiple of twice num_heads, got {self.hidden_size} and {self.num_heads}"
            )
        if self.head not in ("bits", "chunks", "full"):
            raise ValueError(f"head must be bits, chunks or full, got {self.head!r}")
        if self.table_bits > MAX_TABLE_BITS:
            raise ValueError(
                f"a softmax over 2**{self.table_bits} words is too wide; use head='chunks' with chunk_bits of at most "
                f"{MAX_TABLE_BITS}"
            )
        if self.num_bits % self.table_bits:
            raise ValueError(f"chunk_bits must divide num_bits = {self.num_bits}, got {self.chunk_bits}")

    @property
    def table_bits(self) -> int:
        """Bits of a word that share one softmax."""
        return {"bits": 1, "chunks": self.chunk_bits, "full": self.num_bits}[self.head]


@dataclass(frozen=True, kw_only=True)
class TokenLMOutput:
    """Negative log-likelihoods in nats, with gradients.

    ``token_nll``: float32 ``[B, n]`` per level, one per token modelled. ``kept``: which tokens of each level these
    are, counted in t, h, w order.
    """

    token_nll: tuple[Tensor, ...]
    kept: tuple[range, ...]

    @property
    def nll(self) -> tuple[Tensor, ...]:
        """Mean over the tokens of each level, nats per token."""
        return tuple(values.mean() for values in self.token_nll)

    @property
    def bits_per_token(self) -> tuple[Tensor, ...]:
        """:attr:`nll` in bits; a word of K bits without any structure costs K."""
        return tuple(value / math.log(2) for value in self.nll)

    @property
    def total(self) -> Tensor:
        """L_AR: mean over all tokens modelled, nats per token."""
        return torch.cat(self.token_nll, dim=1).mean()


class TokenLM(nn.Module):
    """A causal language model over pyramids.

    A token enters as a linear map of its K signs. To what is read at a place two positions are added, that of the
    place and that of the token to be predicted there: their level, and ``(t, h, w)`` relative to the level's grid, so
    that any grid works and one place is the same on all levels. The backbone counts places of the sequence besides.

    Captions may be padded on either side: padding moves behind the last token, where causal attention leaves it
    without effect. A clip without a caption starts at ``<SOI>``.

    ``backbone``: any causal transformers model that takes ``inputs_embeds``; by default what ``config`` asks for. One
    that is frozen throughout is looked at, not owned: it is no part of parameters and state, and copies share it.
    Raises ValueError for one that sees the future, and as :func:`pyratok.text.hf_loading.load_text_model` does.
    """

    backbone: Any

    def __init__(self, config: TokenLMConfig, backbone: Any = None) -> None:
        super().__init__()
        self.config = config
        backbone = backbone if backbone is not None else build_backbone(config)
        if any(weight.requires_grad for weight in backbone.parameters()):
            self.backbone = backbone
        else:
            vars(self)["backbone"] = backbone
        # Tokens here are no text: a table of word pieces would only take memory, and never get a gradient.
        self.backbone.set_input_embeddings(nn.Identity())
        width: int = self.backbone.config.hidden_size
        self.caption = nn.Sequential(nn.LayerNorm(config.text_dim), nn.Linear(config.text_dim, width))
        self.word = nn.Linear(config.num_bits, width)
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.separator = nn.Parameter(torch.randn(width) * 0.02)
        self.here = nn.Linear(6 * OCTAVES + config.num_levels, width)
        self.ahead = nn.Linear(6 * OCTAVES + config.num_levels, width)
        self.head = WordHead(width, config.num_bits, config.table_bits, config.head == "chunks" and config.chained)
        if not isinstance(self.start.data, FakeTensor):  # shapes without values cannot be looked at
            require_causal(self.backbone, width)

    def __deepcopy__(self, memo: dict[int, Any]) -> TokenLM:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        if "backbone" not in self._modules:
            memo[id(self.backbone)] = self.backbone
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TokenLM:
        """Moves what is not owned along with the rest."""
        if "backbone" not in self._modules:
            self.backbone._apply(fn)
        return super()._apply(fn, recurse)

    def forward(
        self,
        levels: Sequence[Tensor],
        text: TextEmbedding | None = None,
        *,
        window: float | None = None,
        generator: torch.Generator | None = None,
    ) -> TokenLMOutput:
        """How well each token of the first levels is predicted by the caption and the tokens before it.

        ``levels``: signs in {-1, +1}, ``[B, K, t, h, w]`` each, such as :attr:`LevelOutput.bits`, whose gradient the
        result carries; words come as signs by :func:`pyratok.quantization.bits.ids_to_signs`. ``text``: captions of
        the ``B`` clips, a clip whose mask is False throughout having none; None for none at all.

        Where a level has more tokens than ``max_tokens_per_level``, a window of neighbours in t, h, w order is
        modelled as if it were the level; tokens keep their positions. The windows of all levels and clips start at
        the same fraction of what there is room for, so that they see the same time: ``window`` in [0, 1], drawn by
        ``generator`` (of the CPU; torch's own by default) where it is None.

        Raises ValueError for levels or captions that do not fit the configuration.
        """
        self._check(levels, text, window)
        if window is None:
            window = float(torch.rand((), generator=generator))
        kept = tuple(self._window(math.prod(signs.shape[2:]), window) for signs in levels)
        words = [
            signs_BKthw.flatten(2).transpose(1, 2)[:, part.start : part.stop]
            for signs_BKthw, part in zip(levels, kept, strict=True)
        ]
        places = zip(kept, [signs.shape[2:] for signs in levels], strict=True)
        positions = [self._positions(level, part, grid) for level, (part, grid) in enumerate(places)]
        hidden = self._read(self._sequence(words, positions), text)
        token_nll, first = [], 0
        for signs_BnK in words:
            count = signs_BnK.shape[1]
            targets = signs_BnK if self.config.target_gradient else signs_BnK.detach()
            token_nll.append(self.head(hidden[:, first : first + count], targets, signs_BnK))
            first += count + 1
        return TokenLMOutput(token_nll=tuple(token_nll), kept=kept)

    def _window(self, count: int, start: float) -> range:
        """Which of the ``count`` tokens of a level are modelled; ``start`` in [0, 1] as in :meth:`forward`."""
        size = min(count, self.config.max_tokens_per_level or count)
        first = round(start * (count - size))
        return range(first, first + size)

    def _positions(self, level: int, kept: range, grid: Sequence[int]) -> Tensor:
        """Features ``[n, 6 * OCTAVES + L]`` of where tokens lie: waves along each axis, and the level."""
        device, (_, rows, columns) = self.start.device, grid
        index = torch.arange(kept.start, kept.stop, device=device)
        cell = torch.stack([index // (rows * columns), index // columns % rows, index % columns], dim=-1)
        place = (cell + 0.5) / torch.tensor(list(grid), device=device)
        which = torch.eye(self.config.num_levels, device=device)[level].expand(len(kept), -1)
        return torch.cat([waves(place, OCTAVES), which], dim=-1).to(self.here.weight.dtype)

    def _sequence(self, words: Sequence[Tensor], positions: Sequence[Tensor]) -> Tensor:
        """Inputs ``[B, S, H]``: a mark and all tokens of every level."""
        parts = []
        for level, (signs_BnK, features) in enumerate(zip(words, positions, strict=True)):
            tokens = self.word(signs_BnK.to(self.word.weight.dtype))
            mark = (self.separator if level else self.start).to(tokens.dtype).expand(len(tokens), 1, -1)
            here, ahead = F.pad(self.here(features), (0, 0, 1, 0)), F.pad(self.ahead(features), (0, 0, 0, 1))
            parts.append(torch.cat([mark, tokens], dim=1) + here + ahead)
        return torch.cat(parts, dim=1)

    def _read(self, inputs_BSH: Tensor, text: TextEmbedding | None) -> Tensor:
        """Final hidden states at the places of ``inputs_BSH``, the same shape."""
        if text is None:
            return self._run(inputs_BSH)
        places = inputs_BSH.shape[1]
        caption = self.caption(text.tokens.to(self.word.weight.dtype)).to(inputs_BSH.dtype)
        sequence = torch.cat([caption, inputs_BSH], dim=1)
        padding = F.pad(~text.mask, (0, places))
        order = torch.argsort(padding.int(), dim=1, stable=True)
        hidden = self._run(torch.take_along_dim(sequence, order[..., None], dim=1))
        where = text.mask.sum(1, keepdim=True) + torch.arange(places, device=hidden.device)
        return torch.take_along_dim(hidden, where[..., None], dim=1)

    def _run(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.backbone(inputs_embeds=inputs.to(self.backbone.dtype), use_cache=False).last_hidden_state
        return hidden.to(inputs.dtype)

    def _check(self, levels: Sequence[Tensor], text: TextEmbedding | None, window: float | None) -> None:
        config = self.config
        if not 1 <= len(levels) <= config.num_levels:
            raise ValueError(f"expected 1 to {config.num_levels} levels, got {len(levels)}")
        batch = levels[0].shape[0]
        for index, signs in enumerate(levels):
            if signs.ndim != 5 or signs.shape[:2] != (batch, config.num_bits) or not signs.is_floating_point():
                raise ValueError(
                    f"level {index + 1} should be signs [{batch}, {config.num_bits}, t, h, w], got "
                    f"{signs.dtype} {list(signs.shape)}; ids become signs by ids_to_signs"
                )
        if text is not None and (text.tokens.shape[0], text.tokens.shape[2]) != (batch, config.text_dim):
            raise ValueError(
                f"captions should be [{batch}, N, {config.text_dim}] for these clips, got {list(text.tokens.shape)}"
            )
        if window is not None and not 0 <= window <= 1:
            raise ValueError(f"window must be from 0 (first tokens) to 1 (last tokens), got {window}")


IMPOSSIBLE = -1e4
"""A logit whose softmax is 0, in half precision too, and of which differences can be taken, as guidance does."""


class WordHead(nn.Module):
    """Probability of a word given a hidden state: softmaxes over the ``2**table_bits`` values of its chunks.

    Chunk j holds bits ``j * table_bits`` and up; entry i of its table is the partial word with id i
    (:mod:`pyratok.quantization.bits`). Where ``table_bits`` does not divide ``num_bits`` the last chunk has bits too
    many, which are never set.
    """

    def __init__(self, width: int, num_bits: int, table_bits: int, chained: bool) -> None:
        super().__init__()
        self.shape = -(-num_bits // table_bits), table_bits
        self.surplus = self.shape[0] * table_bits - num_bits
        self.tables = nn.Linear(width, self.shape[0] << table_bits)
        ends = range(table_bits, num_bits if chained else table_bits, table_bits)
        self.seen = nn.ModuleList(nn.Linear(end, width) for end in ends)

    def forward(self, hidden: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        """Negative log-likelihood in nats, float32 ``[B, n]``, of words with signs ``targets`` ``[B, n, K]``.

        ``inputs``: the same signs, for what a chunk sees of those before it.
        """
        logits = self.logits(hidden, inputs).float()
        if self.surplus:
            targets = F.pad(targets, (0, self.surplus), value=-1.0)
        return (logits.logsumexp(-1) - at_word(logits, targets.unflatten(-1, self.shape))).sum(-1)

    def logits(self, hidden: Tensor, inputs: Tensor) -> Tensor:
        """``[B, n, chunks, 2**table_bits]``; those of no word are so low that their probability is 0, yet finite."""
        chunks = range(self.shape[0])
        if self.seen or self.surplus:
            return torch.stack([self.chunk_logits(chunk, hidden, inputs) for chunk in chunks], dim=-2)
        return cast(Tensor, self.tables(hidden).unflatten(-1, (len(chunks), -1)))

    def chunk_logits(self, chunk: int, hidden: Tensor, inputs: Tensor) -> Tensor:
        """``[B, n, 2**table_bits]`` of one chunk, for which ``inputs`` need no more than the signs before it."""
        state, values = hidden, 1 << self.shape[1]
        if chunk and self.seen:
            seen = cast(nn.Linear, self.seen[chunk - 1])
            state = F.silu(hidden + seen(inputs[..., : seen.in_features].to(seen.weight.dtype)))
        rows = slice(chunk * values, (chunk + 1) * values)
        found = F.linear(state, self.tables.weight[rows], self.tables.bias[rows])
        if not self.surplus or chunk + 1 < self.shape[0]:
            return found
        return found.masked_fill(torch.arange(values, device=found.device) >= values >> self.surplus, IMPOSSIBLE)


def at_word(table: Tensor, signs: Tensor) -> Tensor:
    """Entry of ``table`` ``[..., 2**k]`` at the word with ``signs`` ``[..., k]``, float32 ``[...]``.

    Between words it is the multilinear extension ``sum_c table_c prod_i (1 + s_i c_i) / 2``, so that a sign has a
    gradient: half of what flipping its bit to +1 would change. At hard signs the value is the entry itself.
    """
    if not signs.requires_grad:
        ids = signs_to_ids(signs, dim=-1).long()
        return table.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    with torch.autocast(table.device.type, enabled=False):
        values = table.float()
        # The highest bit halves the table; lerp is exact at both of its ends.
        for sign in reversed(signs.float().unbind(-1)):
            low, high = values.chunk(2, dim=-1)
            values = torch.lerp(low, high, (1 + sign.unsqueeze(-1)) / 2)
    return values.squeeze(-1)


def build_backbone(config: TokenLMConfig) -> Any:
    """The pretrained decoder that ``config`` names, frozen; or a small one, random and trainable."""
    if config.backbone is not None:
        return load_text_model(resolve_folder(config.backbone), load_in_4bit=config.load_in_4bit)
    try:
        from transformers import Qwen2Config, Qwen2Model
    except ImportError:
        raise ImportError("alignment needs the package transformers: pip install pyratok[text]") from None
    shape = Qwen2Config(
        vocab_size=1,
        hidden_size=config.hidden_size,
        intermediate_size=4 * config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Qwen2Model(shape)


@torch.enable_grad()
def require_causal(backbone: Any, width: int) -> None:
    """Raise ValueError for a model in which what comes later changes what came before, such as an encoder."""
    ramp = torch.linspace(-1, 1, width, device=next(backbone.parameters()).device).to(backbone.dtype)
    inputs = ramp.expand(1, 2, -1).clone().requires_grad_()
    first = backbone(inputs_embeds=inputs, use_cache=False).last_hidden_state[0, 0]
    (gradient,) = torch.autograd.grad((first * ramp).sum(), inputs)
    if gradient[0, 1].any():
        raise ValueError(f"{type(backbone).__name__} is no causal language model: its outputs depend on later inputs")
