from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from pyratok.nn.lora import LoRAConfig, inject
from pyratok.train.checkpoint import (
    checkpoint_to_resume,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    trainable_state,
)
from pyratok.train.optim import OptimConfig, build_optimizers
from pyratok.vae import hub
from tiny import tiny_pyratok
from tiny_training import OPTIM, tiny_objective

Optimizers = list[torch.optim.Optimizer]


def trained(optim: OptimConfig = OPTIM, steps: int = 2) -> tuple[nn.Module, Optimizers]:
    model = tiny_objective().model
    optimizers = build_optimizers(model.named_parameters(), optim)
    for step in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) * (step + 1)
        for optimizer in optimizers:
            optimizer.step()
    return model, optimizers


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_round_trip_of_weights_and_optimisers(tmp_path: Path, name: str) -> None:
    optim = OptimConfig(name=name)
    model, optimizers = trained(optim)
    path = save_checkpoint(tmp_path, 2, model, model, optimizers, {"seed": 7})
    fresh, empty = trained(optim, steps=0)
    average, _ = trained(optim, steps=0)
    assert load_checkpoint(path, fresh, average, empty)["seed"] == 7

    for copy in (fresh, average):
        for a, b in zip(model.parameters(), copy.parameters(), strict=True):
            assert torch.equal(a, b)
            assert a.stride() == b.stride()
    for ours, theirs in zip(optimizers, empty, strict=True):
        for a, b in zip(_parameters(ours), _parameters(theirs), strict=True):
            assert ours.state[a].keys() == theirs.state[b].keys()
            for key, value in ours.state[a].items():
                assert torch.equal(value, theirs.state[b][key])
                assert value.stride() == theirs.state[b][key].stride()
                assert theirs.state[b][key].dtype == torch.float32


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def test_frozen_weights_are_not_written(tmp_path: Path) -> None:
    model = tiny_pyratok()
    model.vae.requires_grad_(False)
    inject(model.vae.encoder, LoRAConfig(rank=2))
    names = set(trainable_state(model))
    assert not any(name.startswith("vae.decoder") or name.endswith(".original") for name in names)
    assert any(name.endswith("weight.0.up") for name in names)
    assert any(name.startswith("lapq.") for name in names)
    path = save_checkpoint(tmp_path, 1, model, model, [], {})
    assert (path / "model.safetensors").stat().st_size < sum(p.numel() for p in model.parameters()) * 4
    load_checkpoint(path, model, model, [])


def test_newest_are_kept_and_nothing_else(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    assert latest_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / ".step-00000099.1234").mkdir()  # left by a process that was killed while writing
    for step in (8, 9, 10, 100):
        assert save_checkpoint(tmp_path, step, model, model, [], {}) == latest_checkpoint(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]


def test_what_a_person_left_there_is_no_checkpoint(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    path = save_checkpoint(tmp_path, 1, model, model, [], {})
    (tmp_path / "step-notes.txt").write_text("lr was too high")
    (tmp_path / "step-zero-to-keep").mkdir()
    (tmp_path / "step-99999999").write_text("a file")
    assert latest_checkpoint(tmp_path) == path
    for step in (2, 3):
        path = save_checkpoint(tmp_path, step, model, model, [], {})
    assert latest_checkpoint(tmp_path) == path
    left = ["step-00000002", "step-00000003", "step-99999999", "step-notes.txt", "step-zero-to-keep"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(hub, "sync", lambda path: synced.append(path.name))
    move = Path.replace

    def replace(self: Path, target: Path) -> Path:
        synced.append(f"-> {target.name}")
        return move(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    model = nn.Linear(2, 2)
    save_checkpoint(tmp_path, 1, model, model, [], {})
    *files, folder, name, parent = synced
    assert sorted(files) == ["average.safetensors", "model.safetensors", "state.json"]
    assert folder.startswith(".step-00000001")
    assert (name, parent) == ("-> step-00000001", tmp_path.name)


def test_the_same_step_may_be_written_again(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    save_checkpoint(tmp_path, 1, model, model, [], {})
    nn.init.ones_(model.weight)
    path = save_checkpoint(tmp_path, 1, model, model, [], {})
    fresh = nn.Linear(2, 2)
    load_checkpoint(path, fresh, fresh, [])
    assert torch.equal(fresh.weight, model.weight)


def test_going_on_must_be_asked_for(tmp_path: Path) -> None:
    assert checkpoint_to_resume(tmp_path, resume=False) is None
    assert checkpoint_to_resume(tmp_path, resume=True) is None
    model = nn.Linear(2, 2)
    path = save_checkpoint(tmp_path / "checkpoints", 1, model, model, [], {})
    assert checkpoint_to_resume(tmp_path, resume=True) == path
    with pytest.raises(ValueError, match="pass --resume"):
        checkpoint_to_resume(tmp_path, resume=False)


def test_the_first_setting_that_differs_is_named(tmp_path: Path) -> None:
    origin = {"name": "a", "data": {"zoom": [1.0, 2.0]}, "lora": None, "train": {"lr": 0.1, "seed": 0}}
    model = nn.Linear(2, 2)
    path = save_checkpoint(tmp_path / "checkpoints", 1, model, model, [], {"origin": origin})
    assert checkpoint_to_resume(tmp_path, True, origin | {"data": {"zoom": [1, 2], "new": 1}}) == path
    for change, words in (
        ({"lora": {"rank": 3}, "name": "b"}, "name = 'a', not 'b'"),
        ({"train": {"lr": 0.2, "seed": 1}}, "train.lr = 0.1, not 0.2"),
        ({"lora": {"rank": 3}}, "lora = None, not {'rank': 3}"),
        ({"data": {"zoom": [1.0, 3.0]}}, "data.zoom = [1.0, 2.0], not [1.0, 3.0]"),
    ):
        with pytest.raises(ValueError, match="this run was begun with") as error:
            checkpoint_to_resume(tmp_path, True, origin | change)
        assert f"with {words}; " in str(error.value)


def test_checkpoints_of_before_say_nothing_of_their_run(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    path = save_checkpoint(tmp_path / "checkpoints", 1, model, model, [], {})
    assert checkpoint_to_resume(tmp_path, True, {"name": "a"}) == path


class TestRefusal:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return save_checkpoint(tmp_path, 2, *(trained()[0],) * 2, trained()[1], {})

    def refusal(self, path: Path, model: nn.Module, optimizers: Optimizers) -> str:
        with pytest.raises(ValueError, match="cannot go on from this checkpoint") as error:
            load_checkpoint(path, model, model, optimizers)
        assert str(path) in str(error.value)
        return str(error.value)

    def test_another_model(self, path: Path) -> None:
        assert "missing ['weight'], foreign ['lapq" in self.refusal(path, nn.Linear(2, 2, bias=False), [])

    @pytest.mark.parametrize(
        "text", ["[]", "null", "{", '{"groups": []}', '{"step": "2", "groups": []}', '{"step": 2, "groups": 5}']
    )
    def test_state_of_another_kind(self, path: Path, text: str) -> None:
        (path / "state.json").write_text(text)
        self.refusal(path, *trained(steps=0))

    def test_another_optimiser(self, path: Path) -> None:
        model, optimizers = trained(OptimConfig(name="adamw"), steps=0)
        self.refusal(path, model, optimizers)
        self.refusal(path, model, [*optimizers, *optimizers, *optimizers])

    @pytest.mark.parametrize("name", ["model.safetensors", "optimizer-1.safetensors", "state.json"])
    def test_damaged_files(self, path: Path, name: str) -> None:
        (path / name).write_bytes((path / name).read_bytes()[:100])
        self.refusal(path, *trained(steps=0))
        (path / name).unlink()
        self.refusal(path, *trained(steps=0))


def test_state_is_json_and_says_the_step(tmp_path: Path) -> None:
    model, optimizers = trained()
    path = save_checkpoint(tmp_path, 2, model, model, optimizers, {"seed": 3, "pending": [{"l1": 0.1}]})
    state = json.loads((path / "state.json").read_text())
    assert (state["step"], state["seed"], state["pending"]) == (2, 3, [{"l1": 0.1}])
