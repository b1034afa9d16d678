from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyratok.eval.ablation import MEASURES, AblationRecord, VariantRun, tabulate
from pyratok.recipes import compare

Command = Callable[..., int]


def runs(ablation: Any, seeds: int) -> list[VariantRun]:
    """As many results as are wanted; none of ``vocabulary``, which someone stops."""
    values = dict.fromkeys(MEASURES, 0.5)
    return [
        VariantRun(variant=name, seed=seed, steps=7, parameters=1, bits_per_pixel=0.2, values=values)
        for name in ablation.variants
        for seed in range(seeds)
        if ablation.name != "vocabulary"
    ]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the command asks for; nothing is trained."""
    calls: list[dict[str, Any]] = []

    def fake(ablation: Any, base: Any, roots: Any, out: Path, **options: Any) -> AblationRecord:
        calls.append({"ablation": ablation.name, "base": base, **options})
        record = AblationRecord(
            name=ablation.name,
            title=ablation.title,
            reference=ablation.reference,
            protocol=options["protocol"],
            clips=(),
            held_out="nothing",
            seeds=options["seeds"],
            rows=tabulate(ablation.variants, ablation.reference, runs(ablation, options["seeds"])),
        )
        options["on_record"](record)
        return record

    monkeypatch.setattr(compare, "run_ablation", fake)
    return calls


def test_ablate_writes_a_table_for_each_name(
    asked: list[dict[str, Any]], tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--steps", 7, "--seeds", 3, "--set", "train.batch_size=4", "--only", "full", "--clips", 50]
    assert pyratok("ablate", "blocks", "losses", "--data", tmp_path, "--out", out, *options) == 0
    assert [call["ablation"] for call in asked] == ["blocks", "losses"]
    for call in asked:
        assert (call["base"].train.steps, call["base"].train.batch_size, call["seeds"]) == (7, 4, 3)
        assert (call["only"], call["protocol"].language.clips) == (["full"], 50)
    assert sorted(path.name for path in out.iterdir()) == ["blocks.html", "blocks.json", "losses.html", "losses.json"]
    assert json.loads((out / "blocks.json").read_text())["ablation"] == "blocks"
    assert "without drift" in capsys.readouterr().out


def test_nothing_begins_after_a_stop(
    asked: list[dict[str, Any]], tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pyratok("ablate", "blocks", "vocabulary", "losses", "--data", tmp_path, "--out", tmp_path / "out") == 0
    assert [call["ablation"] for call in asked] == ["blocks", "vocabulary"]
    assert "the same command goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["block"], "did you mean 'blocks'"),
        (["quantizers", "--only", "rwq"], "did you mean 'rvq'"),
        (["blocks", "--set", "train.stepss=1"], "did you mean 'steps'"),
    ],
)
def test_unknown_names_end_with_the_nearest(
    asked: list[dict[str, Any]], arguments: list[str], message: str, tmp_path: Path, pyratok: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert pyratok("ablate", *arguments, "--data", tmp_path, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not asked
    assert not (tmp_path / "out").exists()
