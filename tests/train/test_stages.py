"""Plans: stages one after another."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pyratok.data.mixes import DataConfig
from pyratok.model.pretrained import from_pretrained
from pyratok.train.run import Recipe
from pyratok.train.stages import Plan, run_plan
from tiny import CONFIG
from tiny_training import settings

VAE = Recipe(name="first", stage="vae", model=CONFIG, train=settings(steps=2))
TOKENS = Recipe(name="second", stage="tokenizer", model=CONFIG, train=settings(steps=3))
PLAN = Plan(name="both", stages=(VAE, TOKENS))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "photo.jpg"), rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    return tmp_path / "photos"


def assert_same_weights(a: Path, b: Path) -> None:
    """Up to rounding: where a tensor lies in memory decides the order of some sums."""
    torch.testing.assert_close(from_pretrained(a).state_dict(), from_pretrained(b).state_dict(), rtol=1e-3, atol=1e-4)


def test_each_stage_starts_from_the_one_before(photos: Path, tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    (tmp_path / "out" / "lm").mkdir(parents=True)  # of another plan, over other tokens
    model = run_plan(PLAN, [photos], tmp_path / "out", on_log=records.append)
    assert model == tmp_path / "out" / "model"
    assert [record["stage"] for record in records] == ["first"] * 2 + ["second"] * 3
    last = from_pretrained(tmp_path / "out" / "2-second" / "model")
    assert from_pretrained(model).model_id == last.model_id
    recipe = (tmp_path / "out" / "2-second" / "recipe.json").read_text()
    assert '"tokenizer"' in recipe
    assert not (tmp_path / "out" / "lm").exists()


def test_a_stage_without_clips_is_found_before_the_first(photos: Path, tmp_path: Path) -> None:
    footage = replace(PLAN, stages=(VAE, replace(TOKENS, data=DataConfig(photos=0.0))))
    wanted = "stage second: nothing to make clips of: add videos; or choose among the stages by --stage"
    with pytest.raises(ValueError, match=f"^{wanted}$"):
        run_plan(footage, [photos], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_resuming_leaves_finished_stages_alone(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = run_plan(PLAN, [photos], tmp_path / "whole")
    run_plan(replace(PLAN, stages=(VAE,)), [photos], out)
    stages: list[int] = []
    resumed = run_plan(PLAN, [photos], out, resume=True, on_stage=stages.append)
    assert stages == [1]
    assert_same_weights(resumed, whole)
    with pytest.raises(ValueError, match="already holds checkpoints; pass --resume"):
        run_plan(PLAN, [photos], out)
    other = replace(PLAN, stages=(replace(VAE, train=replace(VAE.train, seed=1)), TOKENS))
    with pytest.raises(ValueError, match=r"1-first: this run was begun with train\.seed = 0, not 1"):
        run_plan(other, [photos], out, resume=True)


def test_a_stage_cut_short_ends_the_run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(record: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    model = run_plan(PLAN, [photos], tmp_path / "out", on_log=stop)
    assert model == tmp_path / "out" / "1-first" / "model"
    assert not (tmp_path / "out" / "model").exists()
    whole = run_plan(PLAN, [photos], tmp_path / "whole")
    assert_same_weights(run_plan(PLAN, [photos], tmp_path / "out", resume=True), whole)


@pytest.mark.parametrize("stages", [(), (VAE, VAE)])
def test_stage_names_tell_stages_apart(stages: tuple[Recipe, ...]) -> None:
    with pytest.raises(ValueError, match="different names"):
        Plan(name="wrong", stages=stages)
