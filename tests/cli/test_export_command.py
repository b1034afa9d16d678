"""pyratok export: what it writes, says and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyratok.cli import common
from pyratok.cli.export import parse_size
from pyratok.model.pretrained import from_pretrained
from pyratok.runtime import export
from tiny import tiny_pyratok

Command = Callable[..., int]
FACTS = {
    "model": {"name": "tiny", "fingerprint": "0123"},
    "graphs": {"encoder": {"inputs": [{"name": "video", "shape": [1, 3, 17, "16*rows", 32]}]}},
    "why_fixed": None,
    "checked": {"bits": 1000, "flipped_bits": 0, "largest_pixel_error": 1e-6},
}


@pytest.fixture(autouse=True)
def tiny(model: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packaged model is a tiny one, folders are loaded."""
    monkeypatch.setattr(common, "load_model", lambda name: tiny_pyratok() if name is None else from_pretrained(name))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the exporter was asked for."""
    seen: dict[str, Any] = {}

    def export_graphs(model: Any, folder: Path, format: str, **options: Any) -> dict[str, Any]:
        seen.update(format=format, **options)
        return FACTS | {"why_fixed": "the exporter gave up"}

    monkeypatch.setattr(export, "export_graphs", export_graphs)
    return seen


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_sizes_reach_the_exporter(
    kind: str, asked: dict[str, Any], tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pyratok("export", kind, "-o", tmp_path / "out") == 0
    assert asked == {"format": kind, "frames": None, "size": None}
    assert pyratok("export", kind, "-o", tmp_path / "out", "--frames", 17, "--size", "256x448") == 0
    assert asked == {"format": kind, "frames": 17, "size": (256, 448)}
    printed = capsys.readouterr().out
    assert "video [1, 3, 17, 16*rows, 32]" in printed
    assert "fixed, since with open ones the exporter gave up" in printed


def test_torch_programs_are_written(tmp_path: Path, pyratok: Command) -> None:
    numbers = tmp_path / "numbers.json"
    options = ["--frames", 1, "--size", "16x16", "--json", numbers]
    assert pyratok("export", "torch", "-o", tmp_path / "out", *options) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["decoder.pt2", "encoder.pt2", "export.json"]
    assert json.loads(numbers.read_text())["model"]["fingerprint"] == tiny_pyratok().model_id.fingerprint


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_weights_give_a_folder_that_every_command_takes(
    dtype: str, clip: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers, folder = tmp_path / "numbers.json", tmp_path / "small"
    assert pyratok("export", "weights", "-o", folder, "--dtype", dtype, "--json", numbers) == 0
    found = json.loads(numbers.read_text())
    assert found["fingerprint"] == from_pretrained(folder).model_id.fingerprint != found["made_from"]
    assert "a model of its own" in capsys.readouterr().out
    options = ["--data", clip, "--size", 32, "--frames", 5, "--model", folder]
    assert pyratok("evaluate", "reconstruction", *options) == 0
    assert found["fingerprint"] in capsys.readouterr().out


def test_only_models_of_our_format_are_stored(
    model: object, tmp_path: Path, pyratok: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common, "load_model", lambda name: model)
    assert pyratok("export", "weights", "-o", tmp_path / "out", "--dtype", "int8") == 2
    assert "not of pyratok's own format" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["onnx"], ["torch"], ["weights", "--dtype", "int8"]])
def test_a_folder_that_holds_something_is_refused_before_any_work(
    arguments: list[str],
    tmp_path: Path,
    pyratok: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(common, "load_model", lambda name: pytest.fail("the model was loaded"))
    (tmp_path / "mine").write_text("mine")
    for folder in (tmp_path, tmp_path / "mine", tmp_path / "no" / "out"):
        assert pyratok("export", *arguments, "-o", folder) == 2
    assert capsys.readouterr().err.count("\n") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_missing_extra_is_named(
    tmp_path: Path, pyratok: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(export.PACKAGES, "onnx", ("no_such_package",))
    assert pyratok("export", "onnx", "-o", tmp_path / "out") == 1
    assert "pip install pyratok[export]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_size_is_rows_by_columns() -> None:
    assert parse_size("256x448") == (256, 448)
    for text in ("256", "0x3", "256x", "ax3", "256x448x3", "-1x3"):
        with pytest.raises(ValueError, match="--size is rows x columns"):
            parse_size(text)


def test_sizes_that_are_not_padded_are_refused(
    tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pyratok("export", "torch", "-o", tmp_path / "out", "--frames", 30, "--size", "360x640") == 2
    assert "ask for 33 frames of 368x640" in capsys.readouterr().err
