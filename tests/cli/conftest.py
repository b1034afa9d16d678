from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fakes import FakeTokenizer, moving_video
from pyratok.cli import app, common
from pyratok.data.video_io import save_video
from pyratok.tasks.generation import files


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> FakeTokenizer:
    """Every command meets the fake tokenizer instead of the one in the package, and no prior, which has learned the
    tokens of that one."""
    fake = FakeTokenizer()
    monkeypatch.setattr(common, "load_model", lambda name_or_path: fake)
    monkeypatch.setattr(files, "shipped_prior", lambda model, name="ar": None)
    return fake


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Nine frames of 64x48 at 12 frames per second."""
    path = tmp_path / "clip.mp4"
    save_video(moving_video(), path, fps=12.0)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    save_video(moving_video(frames=1, fps=None), path)
    return path


@pytest.fixture
def pyratok() -> Callable[..., int]:
    """Runs a command in this process and returns its exit code."""
    return lambda *arguments: app.run([str(argument) for argument in arguments])
