"""What a prior is made of, and whose tokens it learns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pyratok.tasks.generation.layout import depths_of
from pyratok.types import Geometry, ModelId, Stride

MAX_CHUNK_BITS = 12
NO_TEXT = 1
"""Width of captions that are not there."""


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Shape of a prior over the words of a tokenizer.

    ``kind``: ``ar`` predicts word after word, ``scale`` all words of a level given the levels before, ``masked`` any
    words given any others; ``llm`` as ``ar``, by a causal transformers language model: that of the folder (or hub id)
    ``language_model``, whose ``hidden_size`` is told too, or a small Qwen2. With ``lora_rank`` it stays as it is under
    adapters. ``tokenizer``, ``strides`` and ``num_bits`` are those of the model whose tokens are learned; ``frames``,
    ``height`` and ``width`` the largest clips that are met in training. ``levels``: only so many, from the first one
    on, are predicted, and clips are decoded from these; 0 for all.

    ``order`` (of ``ar`` and ``llm`` alone): ``level`` is the paper's, level after level; ``time`` goes through all
    levels of one latent step after another, so that frames can be decoded while later ones are sampled; ``cell`` does
    so too, and takes the words of a cell on neighbouring levels of the same grid in one pass.

    A word is predicted in chunks of ``chunk_bits`` bits, the last of what is left, each by a softmax that knows the
    chunks before it.
    ``text_dim``: width of the text encoder's tokens, :data:`NO_TEXT` where nothing is ever read. ``text_dropout``:
    share of training clips that are told nothing, which guidance needs.
    """

    kind: Literal["ar", "scale", "masked", "llm"]
    tokenizer: ModelId
    strides: tuple[Stride, ...]
    num_bits: int = 16
    frames: int = 17
    height: int = 64
    width: int = 64
    text_dim: int = 384
    hidden_size: int = 256
    num_layers: int = 6
    num_heads: int = 4
    chunk_bits: int = 8
    order: Literal["level", "time", "cell"] = "level"
    text_dropout: float = 0.1
    language_model: str | None = None
    lora_rank: int = 0
    levels: int = 0

    def __post_init__(self) -> None:
        for name in ("num_bits", "text_dim", "hidden_size", "num_layers", "num_heads", "chunk_bits"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.kind not in ("ar", "scale", "masked", "llm"):
            raise ValueError(f"kind must be ar, scale, masked or llm, got {self.kind!r}")
        if self.order not in ("level", "time", "cell") or (self.order != "level" and not self.is_sequential):
            raise ValueError(
                f"order must be level, or time or cell for ar and llm; got {self.order!r} for {self.kind!r}"
            )
        if self.lora_rank < 0 or (self.kind != "llm" and (self.lora_rank or self.language_model)):
            raise ValueError(
                f"language_model and lora_rank, 0 or more, are for kind llm; got {self.language_model!r} and "
                f"{self.lora_rank} for {self.kind!r}"
            )
        if self.lora_rank and self.language_model is None:
            raise ValueError("adapters are for a pretrained language model: give the folder of one as language_model")
        if self.hidden_size % (8 * self.num_heads):  # a head turns in four directions, by pairs
            raise ValueError(
                f"hidden_size must be a multiple of eight times num_heads, got {self.hidden_size} and {self.num_heads}"
            )
        if self.chunk_bits > min(self.num_bits, MAX_CHUNK_BITS):
            raise ValueError(
                f"chunk_bits must be at most num_bits = {self.num_bits} and {MAX_CHUNK_BITS}, got {self.chunk_bits}"
            )
        if not 0 <= self.levels <= len(self.strides):
            raise ValueError(f"levels are 1 to {len(self.strides)}, or 0 for all, got {self.levels}")
        if not 0 <= self.text_dropout < 1:
            raise ValueError(f"text_dropout must be in [0, 1), got {self.text_dropout}")
        object.__setattr__(self, "strides", self.geometry.strides)  # checked, and tuples all through

    @property
    def geometry(self) -> Geometry:
        """The largest clips that the prior knows."""
        return Geometry(frames=self.frames, height=self.height, width=self.width, strides=self.strides)

    @property
    def num_levels(self) -> int:
        """How many levels are predicted."""
        return self.levels or len(self.strides)

    @property
    def is_sequential(self) -> bool:
        """Is it one word after another?"""
        return self.kind in ("ar", "llm")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def max_stack(self) -> int:
        """The most words that one pass predicts one after the other."""
        return max(depths_of(self.strides[: self.num_levels])) + 1 if self.order == "cell" else 1

    @property
    def num_chunks(self) -> int:
        return -(-self.num_bits // self.chunk_bits)

    def check(self, geometry: Geometry) -> Geometry:
        """``geometry`` without its rate, of which words say nothing.

        Raises ValueError for other grids, a clip larger than the prior has met, or a part from within a video.
        """
        if geometry.strides != self.strides:
            raise ValueError(f"this prior knows the grids of strides {self.strides}, got {geometry.strides}")
        sides = [(getattr(geometry, name), getattr(self, name)) for name in ("frames", "height", "width")]
        if any(asked > known for asked, known in sides):
            asked, known = (f"{f} frames of {w}x{h}" for f, h, w in zip(*sides, strict=True))
            raise ValueError(f"this prior has learned clips of up to {known}, asked for {asked}")
        if geometry.first_step:
            raise ValueError(f"a prior knows clips from their first frame on, got one from step {geometry.first_step}")
        return replace(geometry, fps=None)
