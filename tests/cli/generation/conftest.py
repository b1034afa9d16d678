from __future__ import annotations

from pathlib import Path

import pytest

from asked_priors import WORDS, prior_of
from fakes import moving_video
from pyratok.cli import common
from pyratok.data.video_io import save_video
from pyratok.model.pyratok import PyraTok
from pyratok.tasks.generation.files import save_prior
from pyratok.tasks.generation.prompts import save_words
from tiny import StubText, tiny_pyratok


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> PyraTok:
    """In place of the tokenizer of the other commands' tests: one that reads captions."""
    tokenizer = tiny_pyratok()
    tokenizer.text_encoder = StubText()
    monkeypatch.setattr(common, "load_model", lambda name_or_path: tokenizer)
    return tokenizer


@pytest.fixture
def prior(model: PyraTok, tmp_path: Path) -> Path:
    folder = tmp_path / "prior"
    save_prior(prior_of(model), folder)
    save_words(folder, WORDS)
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Five frames of the size that the priors know."""
    path = tmp_path / "small.mp4"
    save_video(moving_video(frames=5, height=16, width=16), path)
    return path
