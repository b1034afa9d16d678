from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pyratok.model import adapters
from pyratok.model.adapters import CONFIG, WEIGHTS, load_adapters, save_adapters
from pyratok.nn.lora import LoRAConfig, adapted_layers, adapter, inject, merge, unmerge
from tiny import random_video, tiny_pyratok

LORA = LoRAConfig(rank=3, alpha=6.0)
TARGETS = ("conv_in", "down_blocks", "mid_block")


class Net(nn.Module):
    """Every kind of layer that can be adapted."""

    name = "net"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.volume = nn.Conv3d(2, 4, 3, padding=1)
        self.inner = nn.ModuleDict({"point": nn.Conv3d(4, 4, 1), "frame": nn.Conv2d(4, 5, (1, 3), stride=2)})
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.inner["point"](self.volume(x)).mean(2)
        out: Tensor = self.head(self.inner["frame"](frames).mean((2, 3)))
        return out


def video() -> Tensor:
    return torch.randn(2, 2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def trained(module: nn.Module) -> nn.Module:
    """As if training had moved the adapters."""
    for layer in adapted_layers(module).values():
        nn.init.normal_(adapter(layer).up, std=0.3)
    return module


def adapted(config: LoRAConfig = LORA, targets: tuple[str, ...] = ("",)) -> nn.Module:
    net = Net()
    inject(net, config, targets)
    return trained(net)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_adapters(adapted(), tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(values | changes))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Another file of weights, without the fingerprint."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def refusal(model: nn.Module, folder: Path) -> str:
    """The line with which a folder is refused; the model stays as it was."""
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=str(folder)) as error:
        load_adapters(model, folder)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_round_trip_into_a_plain_and_an_adapted_model(tmp_path: Path) -> None:
    model = adapted()
    nn.init.normal_(adapter(model.get_submodule("head")).up)
    save_adapters(model, tmp_path / "adapter")
    for other in (Net(), adapted()):
        assert not torch.allclose(other(video()), model(video()))
        assert sorted(load_adapters(other, tmp_path / "adapter")) == sorted(adapted_layers(model))
        assert adapted_layers(other).keys() == adapted_layers(model).keys()
        assert torch.equal(other(video()), model(video()))


def test_a_tokenizer_gets_its_ids_back(tmp_path: Path) -> None:
    model, clip = tiny_pyratok(), random_video()
    inject(model.vae.encoder, LORA, TARGETS)
    trained(model)
    save_adapters(model, tmp_path / "adapter")
    loaded = tiny_pyratok()
    plain = loaded.pin_fingerprint()
    names = load_adapters(loaded, tmp_path / "adapter")
    assert loaded.model_id == model.model_id
    assert loaded.model_id.fingerprint != plain
    assert not loaded.training
    assert all(name.startswith("vae.encoder.") for name in names)
    for level, other in zip(model.encode(clip).levels, loaded.encode(clip).levels, strict=True):
        assert torch.equal(level, other)
    assert json.loads((tmp_path / "adapter" / CONFIG).read_text())["base_model_name_or_path"] == "tiny"
    sizes = [path.stat().st_size for path in (tmp_path / "adapter").iterdir()]
    assert sum(sizes) < sum(p.numel() * 4 for p in model.parameters())


def test_files_are_in_the_layout_of_peft(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG, WEIGHTS]
    shapes = {name: tuple(value.shape) for name, value in load_file(saved / WEIGHTS).items()}
    assert shapes == {
        "base_model.model.volume.lora_A.weight": (3, 2, 3, 3, 3),
        "base_model.model.volume.lora_B.weight": (4, 3, 1, 1, 1),
        "base_model.model.inner.point.lora_A.weight": (3, 4, 1, 1, 1),
        "base_model.model.inner.point.lora_B.weight": (4, 3, 1, 1, 1),
        "base_model.model.inner.frame.lora_A.weight": (3, 4, 1, 3),
        "base_model.model.inner.frame.lora_B.weight": (5, 3, 1, 1),
        "base_model.model.head.lora_A.weight": (3, 5),
        "base_model.model.head.lora_B.weight": (2, 3),
    }
    config = json.loads((saved / CONFIG).read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 6.0)
    assert config["target_modules"] == ["volume", "inner.point", "inner.frame", "head"]
    assert config["base_model_name_or_path"] == "net"


def test_saving_again_replaces_and_leaves_nothing_else(saved: Path) -> None:
    model = adapted(LoRAConfig(rank=2))
    save_adapters(model, saved)
    loaded = Net()
    load_adapters(loaded, saved)
    assert torch.equal(loaded(video()), model(video()))
    assert sorted(path.name for path in saved.parent.rglob("*")) == ["adapter", CONFIG, WEIGHTS]


def test_a_failed_save_leaves_the_old_files(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(adapters, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_adapters(adapted(), saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert list(saved.parent.iterdir()) == [saved]


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    merged = merge(adapted())
    for model in (Net(), merged):
        with pytest.raises(ValueError, match="no adapters to save; unmerge them"):
            save_adapters(model, tmp_path / "adapter")
    mixed = adapted(targets=("head",))
    inject(mixed, LoRAConfig(rank=2), ("volume",))
    with pytest.raises(ValueError, match=r"one rank and alpha, the model has .*rank=2.*rank=3"):
        save_adapters(mixed, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())
    save_adapters(unmerge(merged), tmp_path / "adapter")


class TestRefused:
    def test_layers_that_do_not_fit_are_named(self, saved: Path) -> None:
        partly = Net()
        partly.extra = nn.Linear(2, 2)
        inject(partly, LORA, ("extra",))
        assert "adapted in the model but missing in the file: extra" in refusal(partly, saved)
        without = Net()
        without.head = nn.Identity()  # type: ignore[assignment]
        assert "not in the model: head" in refusal(without, saved)
        wider = Net()
        wider.head = nn.Linear(5, 3)
        assert "of another shape: head" in refusal(wider, saved)
        del wider.volume
        message = refusal(wider, saved)
        assert "not in the model: volume; of another shape: head" in message

    def test_another_rank_or_alpha(self, saved: Path) -> None:
        for config in (LoRAConfig(rank=2, alpha=6.0), LoRAConfig(rank=3, alpha=3.0)):
            assert "with another rank or alpha: head, inner.frame, inner.point and 1 more" in refusal(
                adapted(config), saved
            )
        edit(saved, r=4)
        assert "of another shape" in refusal(Net(), saved)

    def test_other_base_weights(self, saved: Path) -> None:
        other = Net()
        nn.init.normal_(other.head.weight)
        assert "trained on other base weights (fingerprint" in refusal(other, saved)
        # Layers that are not adapted may differ.
        folder = saved.parent / "head"
        save_adapters(adapted(targets=("head",)), folder)
        elsewhere = Net()
        nn.init.normal_(elsewhere.volume.weight)
        assert load_adapters(elsewhere, folder) == ["head"]

    def test_without_a_fingerprint_shapes_decide(self, saved: Path) -> None:
        with safe_open(saved / WEIGHTS, "pt") as file:
            assert len(file.metadata()["base_fingerprint"]) == 16
        rewrite(saved, lambda tensors: None)
        other = Net()
        nn.init.normal_(other.head.weight)
        load_adapters(other, saved)

    def test_half_an_adapter_or_none(self, saved: Path) -> None:
        rewrite(saved, lambda tensors: tensors.pop("base_model.model.head.lora_A.weight"))
        assert "of another shape: head" in refusal(Net(), saved)
        rewrite(saved, lambda tensors: tensors.clear())
        assert "holds no adapter" in refusal(Net(), saved)

    def test_tensors_that_are_no_factors(self, saved: Path) -> None:
        rewrite(saved, lambda tensors: tensors.update({"base_model.model.head.lora_magnitude_vector": torch.ones(2)}))
        assert "head.lora_magnitude_vector, which is no LoRA factor" in refusal(Net(), saved)

    @pytest.mark.parametrize(
        "changes",
        [
            {"use_dora": True},
            {"use_rslora": True},
            {"rank_pattern": {"head": 2}},
            {"bias": "all"},
            {"modules_to_save": ["head"]},
            {"init_lora_weights": "pissa"},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_other_kinds_of_lora(self, saved: Path, changes: dict[str, Any]) -> None:
        edit(saved, **changes)
        assert f"more than plain LoRA: {next(iter(changes))} = " in refusal(Net(), saved)

    def test_other_adapters(self, saved: Path) -> None:
        edit(saved, peft_type="IA3")
        assert "a IA3 adapter" in refusal(Net(), saved)

    @pytest.mark.parametrize("changes", [{"r": "3"}, {"r": None}, {"r": 0}, {"lora_alpha": "6"}], ids=str)
    def test_wrong_types(self, saved: Path, changes: dict[str, Any]) -> None:
        edit(saved, **changes)
        refusal(Net(), saved)

    def test_damaged_or_missing_files(self, saved: Path) -> None:
        for name in (WEIGHTS, CONFIG):
            data = (saved / name).read_bytes()
            (saved / name).write_bytes(data[: len(data) // 2])
            assert name in refusal(Net(), saved)
            (saved / name).unlink()
            assert name in refusal(Net(), saved)
            (saved / name).write_bytes(data)
        assert refusal(Net(), saved.parent)


class TestPeft:
    """The same files through the library whose layout they have."""

    def test_reads_ours(self, saved: Path) -> None:
        peft = pytest.importorskip("peft")
        theirs = peft.PeftModel.from_pretrained(Net(), saved)
        ours = Net()
        load_adapters(ours, saved)
        torch.testing.assert_close(theirs(video()), ours(video()), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(theirs(video()), Net()(video()))

    def test_reads_ours_where_the_rank_is_larger_than_the_layer(self, tmp_path: Path) -> None:
        peft = pytest.importorskip("peft")
        model = adapted(LoRAConfig())
        save_adapters(model, tmp_path / "wide")
        theirs = peft.PeftModel.from_pretrained(Net(), tmp_path / "wide")
        torch.testing.assert_close(theirs(video()), model(video()), atol=1e-4, rtol=1e-4)

    def test_writes_what_we_read(self, tmp_path: Path) -> None:
        peft = pytest.importorskip("peft")
        theirs = peft.get_peft_model(
            Net(),
            peft.LoraConfig(
                r=5,
                lora_alpha=10,
                target_modules=["volume", "frame", "head"],
                init_lora_weights=False,
                lora_dropout=0.1,
            ),
        ).eval()
        theirs.save_pretrained(tmp_path / "peft")
        ours = Net()
        assert sorted(load_adapters(ours, tmp_path / "peft")) == ["head", "inner.frame", "volume"]
        torch.testing.assert_close(ours(video()), theirs(video()), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(ours(video()), Net()(video()))
