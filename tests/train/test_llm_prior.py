"""A prior that is a pretrained language model of the real class: adapted, saved without it, read back, refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_priors_training import HEADER, log, recipe, write_toy

from pretrained import save_qwen_vl
from pyratok.cli import app
from pyratok.model.pretrained import ModelLoadError
from pyratok.recipes import PRIORS
from pyratok.tasks.generation.files import load_prior, save_prior
from pyratok.tasks.generation.generate import build_prior, generate
from pyratok.train.priors import run_prior
from tiny_priors import GEOMETRY, TOKENIZER, random_text, random_tokens

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    save_qwen_vl(folder)
    return folder


def test_adapters_learn_and_are_all_that_is_saved(qwen: Path, tmp_path: Path) -> None:
    shards = write_toy(tmp_path / "shards")
    plan = recipe("llm", steps=5, language_model=str(qwen), lora_rank=2)
    folder = run_prior(plan, shards, tmp_path / "run")
    assert log(tmp_path / "run")[-1]["step"] == 5
    held = load_file(folder / "model.safetensors")
    of_backbone = {name for name in held if name.startswith("backbone")}
    assert of_backbone
    assert all(name.endswith((".down", ".up")) for name in of_backbone)
    assert any(bool(held[name].any()) for name in of_backbone if name.endswith(".up"))  # zero before
    prior = load_prior(folder, TOKENIZER)
    text = random_text(1)
    assert generate(prior, text, GEOMETRY, seed=3) == generate(load_prior(folder), text, GEOMETRY, seed=3)


def test_the_language_model_stays_as_it_is(qwen: Path, tmp_path: Path) -> None:
    config = recipe("llm", language_model=str(qwen), lora_rank=2).config(HEADER)
    prior, same = build_prior(config), build_prior(config)
    frozen = {name: weight.clone() for name, weight in prior.named_parameters() if not weight.requires_grad}
    assert frozen
    optimizer = torch.optim.Adam([weight for weight in prior.parameters() if weight.requires_grad], 1e-2)
    prior(random_tokens(), random_text()).total.backward()
    optimizer.step()
    now = dict(prior.named_parameters())
    assert all(torch.equal(value, now[name]) for name, value in frozen.items())
    state = same.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in frozen.items())


def test_another_language_model_is_refused(qwen: Path, tmp_path: Path) -> None:
    folder = tmp_path / "qwen"
    shutil.copytree(qwen, folder)
    save_prior(build_prior(recipe("llm", language_model=str(folder), lora_rank=2).config(HEADER)), tmp_path / "prior")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("mlp.down_proj.weight") and "visual" not in name)
    save_file(weights | {name: weights[name] + 1}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadError, match="is another one"):
        load_prior(tmp_path / "prior")


def test_what_is_stored_in_16_bits_learns_in_32(qwen: Path, tmp_path: Path) -> None:
    folder = tmp_path / "qwen"
    shutil.copytree(qwen, folder)
    weights = {name: value.bfloat16() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for rank in (0, 2):
        prior = build_prior(recipe("llm", language_model=str(folder), lora_rank=rank).config(HEADER))
        assert {weight.dtype for weight in prior.parameters()} == {torch.float32}


def test_the_whole_language_model_may_learn(qwen: Path, tmp_path: Path) -> None:
    prior = build_prior(recipe("llm", language_model=str(qwen)).config(HEADER))
    assert all(weight.requires_grad for weight in prior.parameters())
    save_prior(prior.eval(), tmp_path / "prior")
    back = load_prior(tmp_path / "prior")
    tokens, text = random_tokens(), random_text()
    choices = prior.draw(2, GEOMETRY, measure=True)
    assert torch.equal(prior(tokens, text, choices).token_nll, back(tokens, text, choices).token_nll)


def test_what_does_not_fit_is_refused(qwen: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the folder of one as language_model"):
        PRIORS["t2v-llm"]().config(HEADER)
    with pytest.raises(ValueError, match="are for kind llm"):
        recipe("masked", language_model=str(qwen)).config(HEADER)
    prior = build_prior(recipe("llm", language_model=str(qwen), lora_rank=2).config(HEADER))
    save_prior(prior, tmp_path / "prior")
    text = (tmp_path / "prior/config.json").read_text()
    (tmp_path / "prior/config.json").write_text(text.replace('"lora_rank": 2', '"lora_rank": 3'))
    with pytest.raises(ModelLoadError, match="prior"):
        load_prior(tmp_path / "prior")
    (tmp_path / "prior/config.json").write_text(text.replace(str(qwen), str(tmp_path / "gone")))
    with pytest.raises(ModelLoadError, match="gone"):
        load_prior(tmp_path / "prior")


@pytest.mark.parametrize("name", ["t2v-llm", "ucf101-ar", "openvid-finetune"])
def test_full_scale_recipes_say_what_they_would_take(
    name: str, qwen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write_toy(tmp_path / "shards")
    options = ["--set", f"language_model={qwen}"] if name == "t2v-llm" else []
    arguments = ["train", name, "--dry-run", "--data", str(shards), "--set", "chunk_bits=3", *options]
    assert app.run(arguments) == 0
    assert name in capsys.readouterr().out
