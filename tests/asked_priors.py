"""Priors on disk for a tiny tokenizer that reads captions, as the commands' tests ask them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pyratok.model.pyratok import PyraTok
from pyratok.tasks.generation.autoregressive import ARPrior
from pyratok.tasks.generation.config import PriorConfig
from pyratok.tasks.generation.generate import build_prior
from pyratok.tasks.generation.prior import Prior
from tiny import LAPQ

Command = Callable[..., int]
KINDS: dict[str, dict[str, Any]] = {"ar": {"order": "time"}, "scale": {}, "masked": {}}
WORDS = ("a", "red", "ball")
READ = ARPrior.read


def prior_of(model: PyraTok, kind: str = "ar", **changes: Any) -> Prior:
    torch.manual_seed(0)
    shape = PriorConfig(
        kind="ar",
        tokenizer=model.model_id,
        strides=LAPQ.strides,
        frames=9,
        height=16,
        width=16,
        text_dim=LAPQ.text_dim,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
    )
    prior = build_prior(replace(shape, **{"kind": kind, **KINDS[kind], **changes}))
    for weight in prior.parameters():
        if weight.ndim > 1:  # far enough from 0 to tell inputs apart
            torch.nn.init.normal_(weight, std=0.4)
    return prior.eval()


def numbers(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def interrupt_after(reads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when the prior is asked once more."""
    asked = [0]

    def counted(self: ARPrior, *arguments: Any) -> Any:
        asked[0] += 1
        if asked[0] > reads:
            raise KeyboardInterrupt
        return READ(self, *arguments)

    monkeypatch.setattr(ARPrior, "read", counted)
