"""Priors small enough to be sampled in milliseconds, whose weights are far enough from 0 to tell inputs apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pyratok.tasks.generation.config import PriorConfig
from pyratok.tasks.generation.generate import build_prior
from pyratok.tasks.generation.prior import Prior
from pyratok.types import Geometry, ModelId, TextEmbedding, TokenPyramid

TOKENIZER = ModelId(name="tiny", fingerprint="0123456789abcdef")
STRIDES = ((2, 16, 16), (4, 8, 8), (4, 8, 8))
GEOMETRY = Geometry(frames=9, height=16, width=24, strides=STRIDES, fps=12.0)
"""Grids 5x1x2, 3x2x4 and 3x2x4, the video being padded to a width of 32."""
CONFIG = PriorConfig(
    kind="ar",
    tokenizer=TOKENIZER,
    strides=STRIDES,
    num_bits=6,
    frames=9,
    height=16,
    width=24,
    text_dim=5,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    chunk_bits=3,
)
KINDS: dict[str, dict[str, Any]] = {
    "ar": {},
    "ar by time": {"order": "time"},
    "ar by cell": {"order": "cell"},
    "scale": {"kind": "scale"},
    "masked": {"kind": "masked"},
    "llm": {"kind": "llm"},
    "llm by time": {"kind": "llm", "order": "time"},
    "llm by cell": {"kind": "llm", "order": "cell"},
}


def tiny_prior(kind: str, **changes: Any) -> Prior:
    torch.manual_seed(0)
    prior = build_prior(replace(CONFIG, **KINDS[kind], **changes))
    for weight in prior.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.4)
    return prior.eval()


def random_tokens(batch: int = 2, seed: int = 0, geometry: Geometry = GEOMETRY, num_bits: int = 6) -> TokenPyramid:
    generator = torch.Generator().manual_seed(seed)
    grids = [geometry.grid(level) for level in range(len(geometry.strides))]
    levels = [torch.randint(1 << num_bits, (batch, *grid), generator=generator, dtype=torch.int32) for grid in grids]
    return TokenPyramid(tuple(levels), geometry, TOKENIZER, num_bits)


def random_text(batch: int = 2, seed: int = 0) -> TextEmbedding:
    """Captions of four tokens, the last clip's of two."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, 4, CONFIG.text_dim, generator=generator)
    mask = torch.ones(batch, 4, dtype=torch.bool)
    mask[-1, 2:] = False
    return TextEmbedding(tokens=tokens, mask=mask, pooled=tokens.mean(1))
