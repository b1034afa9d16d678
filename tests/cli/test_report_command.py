"""``pyratok report``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pyratok.eval.language import LanguageProtocol, LanguageRecord, Score
from pyratok.types import ModelId

Command = Callable[..., int]


@pytest.fixture
def result(tmp_path: Path) -> Path:
    score = Score(name="classification", nouns="seen", value=0.5, count=20, baselines={"chance": 0.05})
    record = LanguageRecord(
        protocol=LanguageProtocol(), model=ModelId(name="nano", fingerprint="0" * 16), scores=(score,)
    )
    path = tmp_path / "results" / "language.json"
    path.parent.mkdir()
    path.write_text(json.dumps(record.to_dict()))
    return path


def test_page_csv_and_latex_are_written(
    result: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pyratok("report", result.parent, "-o", tmp_path / "page.html") == 0
    said = capsys.readouterr().out
    assert LanguageProtocol().digest in said
    assert "nano" in said
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert '"classification, seen nouns, %",50.0,' in (tmp_path / "page.csv").read_text()
    assert "classification, seen nouns, \\% & 50.0 & 5.0 \\\\" in (tmp_path / "page.tex").read_text()


def test_bad_input_writes_nothing(
    result: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "foreign.json"
    foreign.write_text("{}")
    for arguments, words in (
        ([result, foreign, "-o", tmp_path / "page.html"], "foreign.json: this is no result"),
        ([result, "-o", tmp_path / "page.txt"], "should end in .html"),
        ([result, "-o", tmp_path / "gone" / "page.html"], "there is no folder"),
        ([tmp_path / "gone.json", "-o", tmp_path / "page.html"], "gone.json: No such file"),
    ):
        assert pyratok("report", *arguments) == 2
        assert words in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign.json", "results"]
