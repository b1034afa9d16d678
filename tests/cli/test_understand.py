"""segment, localize, classify, search and ask on tokens whose meaning is planted: colours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from fakes import FakeTokenizer
from planted_colours import ColourTokenizer, coloured
from pyratok.cli import common
from pyratok.codec.container import save_tokens
from pyratok.data.video_io import load_video, probe, save_video
from pyratok.model import companions
from pyratok.tasks.qa import AnswererReader, TokenLMReader
from pyratok.tasks.retrieval import INDEX_FILE
from pyratok.types import Video

Command = Callable[..., int]


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> ColourTokenizer:
    """In place of the tokenizer of the other commands' tests: one with language, with which no reader ships."""
    reader = ColourTokenizer()
    monkeypatch.setattr(companions, "shipped_companion", lambda model, name: None)
    monkeypatch.setattr(common, "load_model", lambda name_or_path: reader)
    return reader


def halves(frames: int = 9) -> Video:
    """Red on the left, blue on the right."""
    left, right = (coloured((name, frames), size=64).plain() for name in ("red", "blue"))
    return Video(torch.cat([left[..., :32], right[..., 32:]], dim=-1), fps=10.0)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    save_video(halves(), tmp_path / "clip.mp4")
    return tmp_path / "clip.mp4"


@pytest.fixture
def tokens(tmp_path: Path, model: ColourTokenizer) -> Path:
    save_tokens(model.encode(halves()), tmp_path / "clip.pyra")
    return tmp_path / "clip.pyra"


@pytest.fixture
def long(tmp_path: Path, model: ColourTokenizer) -> Path:
    """Red from second 4 to 7, green from 13 to 16.1."""
    video = coloured(("blue", 40), ("red", 30), ("blue", 60), ("green", 31), ("blue", 40))
    save_tokens(model.encode(video), tmp_path / "long.pyra")
    return tmp_path / "long.pyra"


@pytest.fixture
def folder(tmp_path: Path, model: ColourTokenizer) -> Path:
    home = tmp_path / "clips"
    home.mkdir()
    for name in ("red", "green"):
        save_tokens(model.encode(coloured((name, 5))), home / f"{name}.pyra")
    save_tokens(model.encode(coloured(("blue", 197), ("white", 104), ("blue", 100))), home / "long.pyra")
    part = model.encode(coloured(("green", 4), ("red", 9))).time_slice(1, 4)
    save_tokens(part, home / "part.pyra")
    return home


def numbers(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


class TestSegment:
    @pytest.mark.parametrize("kind", ["clip", "tokens"])
    def test_masks_are_told_and_shown(
        self, kind: str, tmp_path: Path, pyratok: Command, request: pytest.FixtureRequest
    ) -> None:
        source, video, facts = request.getfixturevalue(kind), tmp_path / "out.mp4", tmp_path / "out.json"
        assert pyratok("segment", source, "red", "a green thing", "-o", video, "--json", facts) == 0
        found = numbers(facts)
        assert found["model"]["name"] == "fake"
        red, green = found["words"]
        assert red["share"] == pytest.approx(0.5, abs=0.08)
        assert red["best_score"] > 0.95
        assert (green["word"], green["share"]) == ("a green thing", 0)
        (tube,) = found["instances"]
        assert (tube["word"], tube["first_frame"], tube["last_frame"]) == ("red", 0, 8)
        assert tube["box"] == pytest.approx([0, 0, 32, 64], abs=5)
        assert probe(video).width == 256
        assert load_video(video).shape[2] == 9

    def test_an_image_gives_an_image(self, tmp_path: Path, pyratok: Command) -> None:
        save_video(halves(1), tmp_path / "x.png")
        assert pyratok("segment", tmp_path / "x.png", "red", "-o", tmp_path / "y.png") == 0
        assert load_video(tmp_path / "y.png").shape[2:3] == (1,)

    def test_the_choices_reach_the_task(self, tokens: Path, tmp_path: Path, pyratok: Command) -> None:
        def shares(*options: str | float, words: tuple[str, ...] = ("red", "blue")) -> list[float]:
            assert pyratok("segment", tokens, *words, "--json", tmp_path / "n.json", *options) == 0
            return [word["share"] for word in numbers(tmp_path / "n.json")["words"]]

        assert sum(shares("--background", -1)) == pytest.approx(1)
        assert sum(shares("--background", 1)) == 0
        assert shares("--level", "fused", words=("red",)) < shares("--level", 1, words=("red",))
        assert shares("--crf") == pytest.approx([0.5, 0.5], abs=0.05)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["red", "..."], "word 2 has no letters"),
            (["red", "Red"], "word 1 and word 2 are the same"),
            (["red", "--level", "0"], "--level is a number from 1, or fused, got '0'"),
            (["red", "--level", "9"], "there are 3 levels, asked for level 9"),
            (["red", "--background", "3"], "background must be a cosine"),
            (["red", "--size", "32"], "holds tokens already"),
            (["red", "-o", "x.png"], "single image only"),
            (["red", "-o", "no/x.mp4"], "no folder"),
            (["red", "-o", "clip.pyra"], "is the input itself"),
        ],
    )
    def test_bad_requests_leave_nothing(
        self, arguments: list[str], message: str, tokens: Path, pyratok: Command, refused: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.chdir(tokens.parent)
        refused(["segment", tokens.name, *arguments], message)

    def test_a_clip_beyond_memory_is_refused(
        self, tokens: Path, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(common, "available_memory", lambda: 1000)
        refused(["segment", tokens, "red"], "pyratok decode --to")


class TestLocalize:
    @pytest.mark.parametrize("suffix", [".svg", ".png"])
    def test_spans_are_told_and_drawn(self, suffix: str, long: Path, tmp_path: Path, pyratok: Command) -> None:
        picture, facts = tmp_path / f"out{suffix}", tmp_path / "out.json"
        assert pyratok("localize", long, "red", "green", "dog", "-o", picture, "--json", facts) == 0
        found = numbers(facts)
        times = {span["query"]: (span["start"], span["end"]) for span in found["spans"]}
        # The other colours lie below the ground, so that the window takes a little off both ends.
        assert times["red"] == pytest.approx((4.0, 7.0), abs=0.4)
        assert times["green"] == pytest.approx((13.0, 16.1), abs=0.4)
        assert [track["query"] for track in found["steps"]] == ["red", "green", "dog"]
        assert len(found["step_edges"]) == len(found["steps"][0]["scores"]) + 1 == 52
        if suffix == ".svg":
            drawn = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
            assert len(list(drawn.iter("{http://www.w3.org/2000/svg}image"))) == 8
        else:
            assert load_video(picture).shape[-1] == 1920

    def test_a_video_is_tokenised_first(
        self, clip: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert pyratok("localize", clip, "red", "green", "-o", tmp_path / "x.svg", "--window", 1) == 0
        told = capsys.readouterr().out
        assert "0.00 s  0.90 s" in told  # red throughout
        assert "not found  green" in told
        assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "x.svg"]

    def test_a_part_keeps_its_times(self, long: Path, tmp_path: Path, model: ColourTokenizer, pyratok: Command) -> None:
        video = coloured(("blue", 80), ("red", 40), ("blue", 80))
        save_tokens(model.encode(video).time_slice(10, 40), long)
        assert pyratok("localize", long, "red", "-o", tmp_path / "x.svg", "--json", tmp_path / "n.json") == 0
        (span,) = numbers(tmp_path / "n.json")["spans"]
        assert (span["start"], span["end"]) == pytest.approx((8.0, 12.0), abs=0.4)

    def test_the_choices_reach_the_task(self, long: Path, tmp_path: Path, pyratok: Command) -> None:
        def spans(*options: str | float) -> int:
            assert pyratok("localize", long, "blue", "--json", tmp_path / "n.json", *options) == 0
            return len(numbers(tmp_path / "n.json")["spans"])

        absolute = ["--absolute", "--threshold", 0.5]
        assert spans(*absolute) == 3
        assert spans(*absolute, "--most", 1) == 1
        assert spans(*absolute[:2], 1.0, "--window", 99) == 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([" "], "query 1 has no letters"),
            (["red", "-o", "x.pdf"], "should end in .svg or .png"),
            (["red", "--absolute"], "--threshold"),
            (["red", "--threshold", "2"], "a share in"),
        ],
    )
    def test_bad_requests_leave_nothing(
        self, arguments: list[str], message: str, long: Path, refused: Callable[..., None]
    ) -> None:
        refused(["localize", long, *arguments], message)

    def test_an_image_has_no_times(self, image: Path, refused: Callable[..., None]) -> None:
        refused(["localize", image, "red"], "a single image")


class TestClassify:
    def test_names_are_ranked(self, clip: Path, long: Path, tmp_path: Path, pyratok: Command) -> None:
        facts = tmp_path / "n.json"
        assert pyratok("classify", long, "red", "blue", "green", "--json", facts) == 0
        assert numbers(facts)["ranked"][0]["name"] == "blue"
        assert pyratok("classify", clip, "green", "red", "--template", "so {}", "--size", 32, "--json", facts) == 0
        assert [one["name"] for one in numbers(facts)["ranked"]] == ["red", "green"]

    def test_bad_requests_leave_nothing(self, tokens: Path, refused: Callable[..., None]) -> None:
        refused(["classify", tokens, "red", "RED"], "are the same")
        refused(["classify", tokens, "red", "--template", "nothing"], "got 'nothing'")


class TestSearch:
    def test_hits_are_told_and_shown(self, folder: Path, tmp_path: Path, pyratok: Command) -> None:
        page, facts = tmp_path / "sheet.html", tmp_path / "n.json"
        assert pyratok("search", folder, "red", "-o", page, "--json", facts, "-k", 3) == 0
        found = numbers(facts)
        assert found["clips"] == 4
        assert [hit["path"] for hit in found["hits"]][:2] == ["red.pyra", "part.pyra"]
        text = page.read_text(encoding="utf-8")
        assert text.count("<img") == 2
        assert text.count("a part without its beginning") == 1

    def test_a_stretch_is_shown_by_its_own_first_frame(
        self, folder: Path, tmp_path: Path, pyratok: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown: list[Any] = []
        monkeypatch.setattr(
            "pyratok.report.contact_sheet.render", lambda query, folder, tiles, *rest: shown.extend(tiles) or "page"
        )
        assert pyratok("search", folder, "white", "-k", 1, "-o", tmp_path / "x.html") == 0
        (tile,) = shown
        assert tile.name == "long.pyra"
        assert tile.start == pytest.approx(19.7)
        assert tile.still.mean() > 200

    def test_the_index_is_kept_where_it_is_wanted(self, folder: Path, tmp_path: Path, pyratok: Command) -> None:
        assert pyratok("search", folder, "red", "--index", tmp_path / "index") == 0
        assert (tmp_path / "index").is_file()
        assert not (folder / INDEX_FILE).exists()
        assert pyratok("search", folder, "red") == 0
        assert (folder / INDEX_FILE).is_file()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["clips", "?"], "query 1 has no letters"),
            (["nowhere", "red"], "nowhere is no folder"),
            (["clips/red.pyra", "red"], "is no folder"),
            (["clips", "red", "-o", "x.png"], "should end in .html"),
            (["empty", "red"], "no .pyra files"),
            (["clips", "red", "--index", "clips/red.pyra"], "is no index"),
        ],
    )
    def test_bad_requests_leave_nothing(
        self, arguments: list[str], message: str, folder: Path, refused: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.chdir(folder.parent)
        (folder.parent / "empty").mkdir()
        refused(["search", *arguments], message)


def loads_planted(reader: type, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """With what a reader is loaded; it prefers the last option."""
    asked: list[Any] = []

    class Planted:
        def scores(self, model: Any, tokens: Any, question: str, options: Any) -> torch.Tensor:
            return torch.arange(float(len(options)))

    monkeypatch.setattr(reader, "load", lambda *arguments: asked.append(arguments) or Planted())
    return asked


class TestAsk:
    def test_the_best_option_answers(
        self, long: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = ["--option", "white", "--option", "blue"]
        question = "What colour is the wall?"
        assert pyratok("ask", long, question, *options, "--json", tmp_path / "n.json") == 0
        found = numbers(tmp_path / "n.json")
        assert (found["question"], found["answer"], found["option"]) == (question, "blue", 1)
        assert [option["text"] for option in found["options"]] == ["white", "blue"]
        assert found["options"][1]["score"] > found["options"][0]["score"]
        assert found["reader"] == "SimilarityReader"
        assert "blue" in capsys.readouterr().out

    @pytest.mark.parametrize(("reader", "option"), [(TokenLMReader, "--token-lm"), (AnswererReader, "--answerer")])
    def test_what_was_trained_to_answer_is_loaded(
        self,
        reader: type,
        option: str,
        long: Path,
        pyratok: Command,
        model: ColourTokenizer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        asked = loads_planted(reader, monkeypatch)
        assert pyratok("ask", long, "Where is it?", "--option", "left", "--option", "right", option, "folder") == 0
        assert asked == [("folder", model.model_id)]

    def test_what_ships_with_the_model_answers(
        self, long: Path, pyratok: Command, model: ColourTokenizer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = loads_planted(AnswererReader, monkeypatch)
        monkeypatch.setattr(companions, "shipped_companion", lambda model, name: Path("shipped") / name)
        assert pyratok("ask", long, "Where is it?", "--option", "left", "--option", "right") == 0
        assert asked == [("shipped/answerer", model.model_id)]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["?", "--option", "a", "--option", "b"], "question 1 has no letters"),
            (["What?"], "only an --lm answers freely"),
            (["What?", "--option", "a"], "two or more answers"),
            (["What?", "--option", "a", "--option", "A"], "are the same"),
            (["What?", "--lm", "x"], "go together"),
            (["What?", "--lm", "x", "--projector", "y", "--token-lm", "z"], "one of --answerer, --token-lm"),
        ],
    )
    def test_bad_requests_leave_nothing(
        self, arguments: list[str], message: str, tokens: Path, refused: Callable[..., None]
    ) -> None:
        refused(["ask", tokens, *arguments], message)


@pytest.fixture
def refused(tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Exit code 2, one line that says why, and no file more or less."""

    def check(arguments: list[Any], message: str) -> None:
        before = sorted(tmp_path.rglob("*"))
        assert pyratok(*arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("pyratok: error: ")
        assert printed.err.count("\n") == 1
        assert message in printed.err
        assert sorted(tmp_path.rglob("*")) == before

    return check


VERBS = {
    "segment": ["red", "-o", "new.mp4"],
    "localize": ["red", "-o", "new.svg"],
    "classify": ["red"],
    "ask": ["What?", "--option", "red", "--option", "blue"],
}


@pytest.mark.parametrize("verb", VERBS)
class TestEveryCommandAboutAClip:
    def test_missing_and_foreign_files_are_refused(
        self, verb: str, tmp_path: Path, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "text.mp4").write_text("no video")
        (tmp_path / "text.pyra").write_text("no tokens")
        for name in ("nowhere.mp4", "nowhere.pyra", "text.mp4", "text.pyra"):
            refused([verb, name, *VERBS[verb]], name)

    def test_several_clips_in_a_file_are_refused(
        self, verb: str, tmp_path: Path, model: ColourTokenizer, refused: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.chdir(tmp_path)
        save_tokens(model.encode(halves().plain().repeat(2, 1, 1, 1, 1)), tmp_path / "two.pyra")
        refused([verb, "two.pyra", *VERBS[verb]], "two.pyra holds 2 clips")

    def test_a_model_without_language_is_refused(
        self, verb: str, tokens: Path, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tokens.parent)
        monkeypatch.setattr(common, "load_model", lambda name: FakeTokenizer())
        refused([verb, tokens, *VERBS[verb]], "fake has no text head")


def test_search_needs_a_model_with_language(
    folder: Path, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "load_model", lambda name: FakeTokenizer())
    refused(["search", folder, "red"], "fake has no text head")


def test_json_never_replaces_the_input(tokens: Path, folder: Path, refused: Callable[..., None]) -> None:
    for verb, arguments in VERBS.items():
        refused([verb, tokens, *arguments[:1], "--json", tokens], "would replace")
    refused(["search", folder, "red", "--json", folder / "red.pyra"], "would replace")
