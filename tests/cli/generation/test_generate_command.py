"""generate with a tiny tokenizer and tiny priors on disk, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asked_priors import KINDS, Command, interrupt_after, numbers, prior_of
from pyratok.codec.container import load_tokens
from pyratok.data.video_io import probe
from pyratok.model.pyratok import PyraTok
from pyratok.tasks.generation.clips import generate_clip
from pyratok.tasks.generation.config import NO_TEXT
from pyratok.tasks.generation.files import load_prior, save_prior
from pyratok.tasks.generation.prompts import example_prompts, save_examples, unseen_words
from pyratok.types import ModelId


def _no_text_package(captions: object, *args: Any) -> None:
    if captions is not None:
        raise ImportError("pip install 'pyratok[text]'")


class TestGenerate:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_video_and_its_tokens(self, kind: str, model: PyraTok, tmp_path: Path, pyratok: Command) -> None:
        folder = tmp_path / kind
        save_prior(prior_of(model, kind), folder)
        options = ["--prior", folder, "--seed", 3, "--guidance", 2, "--steps", 2, "--fps", 10]
        assert pyratok("generate", "a red ball", "-o", tmp_path / "x.mp4", *options, "--json", tmp_path / "x.json") == 0
        info = probe(tmp_path / "x.mp4")
        assert (info.frames, info.height, info.width, info.fps) == (9, 16, 16, 10)
        said = numbers(tmp_path / "x.json")
        assert (said["prompt"], said["seed"], said["prior"]["kind"]) == ("a red ball", 3, kind)
        assert pyratok("generate", "a red ball", "-o", tmp_path / "x.pyra", *options) == 0
        loaded = load_prior(folder, model.model_id)
        wanted = generate_clip(model, loaded, "a red ball", seed=3, guidance=2.0, steps=2, fps=10.0, temperature=0.8)
        assert load_tokens(tmp_path / "x.pyra") == wanted
        assert wanted != generate_clip(
            model, loaded, "a star", seed=3, guidance=2.0, steps=2, fps=10.0, temperature=0.8
        )

    def test_sizes_seeds_and_settings_by_level(
        self, model: PyraTok, prior: Path, tmp_path: Path, pyratok: Command
    ) -> None:
        command = ["generate", "-o", tmp_path / "x.pyra", "--prior", prior, "--frames", 5, "--size", "8x16"]
        assert pyratok(*command, "--count", 2, "--seed", 4, "--temperature", "0.5,1,1,1", "--top-k", 9) == 0
        first, second = (load_tokens(tmp_path / f"x-{number}.pyra") for number in (1, 2))
        geometry = first.geometry
        assert (geometry.frames, geometry.height, geometry.width) == (5, 8, 16)
        assert first != second
        assert pyratok(*command, "--seed", 5, "--temperature", "0.5,1,1,1", "--top-k", 9) == 0
        assert load_tokens(tmp_path / "x.pyra") == second

    def test_first_levels_alone(self, model: PyraTok, tmp_path: Path, pyratok: Command) -> None:
        save_prior(prior_of(model, levels=2), tmp_path / "prior")
        command = ["generate", "a ball", "--prior", tmp_path / "prior", "-o"]
        assert pyratok(*command, tmp_path / "x.mp4") == 0
        assert probe(tmp_path / "x.mp4").frames == 9
        assert pyratok(*command, tmp_path / "x.pyra") == 0
        assert len(load_tokens(tmp_path / "x.pyra").levels) == 2

    def test_an_image(self, prior: Path, tmp_path: Path, pyratok: Command) -> None:
        command = ["generate", "a ball", "--prior", prior, "--frames", 1, "-o"]
        assert pyratok(*command, tmp_path / "x.png") == 0
        assert probe(tmp_path / "x.png").is_image
        assert pyratok(*command, tmp_path / "x.mp4") == 2

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["  "], "the prompt is empty"),
            (["--seed", -1], "--seed"),
            (["--frames", 17], "clips of up to 9 frames of 16x16, asked for 17 frames of 16x16"),
            (["--size", 64], "clips of up to 9 frames of 16x16, asked for 9 frames of 64x64"),
            (["--size", "64x"], "height x width as in 48x64"),
            (["--temperature", "hot"], "--temperature is a number"),
            (["--temperature", "1,1"], "one for each of 4 levels"),
            (["--top-p", 0], "top_p is out of range"),
            (["--guidance", -1], "guidance must be a number of at least 0"),
            (["--prior", "nowhere"], "no such folder"),
            (["-o", "x.txt"], "cannot write .txt"),
        ],
    )
    def test_refused(
        self,
        options: list[Any],
        message: str,
        prior: Path,
        tmp_path: Path,
        pyratok: Command,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert pyratok("generate", "-o", tmp_path / "x.mp4", "--prior", prior, *options) == 2
        assert message in capsys.readouterr().err
        assert not list(tmp_path.glob("x*"))

    def test_priors_that_ship_with_a_model(
        self, model: PyraTok, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model.save_pretrained(tmp_path / "model")
        for kind in ("ar", "masked"):
            save_prior(prior_of(model, kind), tmp_path / "model" / f"prior-{kind}")
        command = ["generate", "a ball", "--model", tmp_path / "model", "-o", tmp_path / "x.pyra"]
        for options, kind in (([], "ar"), (["--prior", "ar"], "ar"), (["--prior", "masked"], "masked")):
            assert pyratok(*command, *options, "--json", tmp_path / "x.json") == 0
            prior = numbers(tmp_path / "x.json")["prior"]
            assert (prior["kind"], Path(prior["folder"]).name) == (kind, f"prior-{kind}")
        capsys.readouterr()
        assert pyratok(*command, "--prior", "scale") == 2
        assert f"no scale prior ships with {tmp_path / 'model'}" in capsys.readouterr().err

    def test_what_goes_on_with_a_video_by_default(
        self, model: PyraTok, small: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The prior of footage, which cannot be told anything; where there is none, that of the prompts."""
        model.save_pretrained(tmp_path / "model")
        save_prior(prior_of(model), tmp_path / "model" / "prior-ar")
        command = ["continue", small, "--model", tmp_path / "model", "-o", tmp_path / "x.pyra"]
        for name in ("ar", "footage"):
            assert pyratok(*command, "--json", tmp_path / "x.json") == 0
            assert Path(numbers(tmp_path / "x.json")["prior"]["folder"]).name == f"prior-{name}"
            save_prior(prior_of(model, text_dim=NO_TEXT), tmp_path / "model" / "prior-footage")
        assert pyratok(*command, "--caption", "a ball", "--json", tmp_path / "x.json") == 0
        assert Path(numbers(tmp_path / "x.json")["prior"]["folder"]).name == "prior-ar"
        assert pyratok(*command, "--prior", "footage", "--caption", "a ball") == 2
        assert "without captions" in capsys.readouterr().err

    def test_the_demo_shows_what_a_shipped_prior_makes(
        self, model: PyraTok, small: Path, tmp_path: Path, pyratok: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model.save_pretrained(tmp_path / "model")
        folder = tmp_path / "model" / "prior-ar"
        save_prior(prior_of(model), folder)
        save_examples(folder, ["a red ball", "a ball"])
        command = ["demo", "--input", small, "--model", tmp_path / "model", "--out", tmp_path / "out", "--size", 16]
        assert pyratok(*command, "--json", tmp_path / "x.json") == 0
        assert numbers(tmp_path / "x.json")["imagined"] == ["a red ball", "a ball"]
        assert "&ldquo;a red ball&rdquo;" in (tmp_path / "out" / "report.html").read_text()
        monkeypatch.setattr(model, "embed_captions", _no_text_package)
        assert pyratok(*command, "--json", tmp_path / "x.json") == 0
        assert numbers(tmp_path / "x.json")["imagined"] == []
        assert "install <code>pyratok[text]</code>" in (tmp_path / "out" / "report.html").read_text()
        save_examples(folder, [])
        assert pyratok(*command) == 0
        assert 'id="imagined"' not in (tmp_path / "out" / "report.html").read_text()

    @pytest.mark.parametrize("content", ["{", '{"a": 1}', "[1, 2]"])
    def test_damaged_lists_beside_a_prior(self, content: str, tmp_path: Path) -> None:
        for name, read in (
            ("words.json", lambda folder: unseen_words(folder, "a ball")),
            ("prompts.json", example_prompts),
        ):
            assert read(tmp_path) == []
            (tmp_path / name).write_text(content)
            with pytest.raises(ValueError, match=f"{name}: no list of texts"):
                read(tmp_path)

    def test_a_prior_of_another_tokenizer(
        self, model: PyraTok, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
    ) -> None:
        save_prior(prior_of(model, tokenizer=ModelId(name="other", fingerprint="f" * 16)), tmp_path / "prior")
        assert pyratok("generate", "a ball", "-o", tmp_path / "x.mp4", "--prior", tmp_path / "prior") == 2
        error = capsys.readouterr().err
        assert "learned the tokens of other" in error
        assert str(model.model_id) in error

    def test_captions_of_another_width(
        self, model: PyraTok, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
    ) -> None:
        save_prior(prior_of(model, text_dim=2), tmp_path / "prior")
        command = ["-o", tmp_path / "x.pyra", "--prior", tmp_path / "prior"]
        assert pyratok("generate", "a ball", *command) == 2
        assert "learned captions of width 2, the text encoder of the model gives 12" in capsys.readouterr().err
        assert pyratok("generate", *command) == 0

    def test_long_prompts_and_new_words_are_warned_of(
        self, prior: Path, tmp_path: Path, pyratok: Command, recwarn: pytest.WarningsRecorder
    ) -> None:
        """The encoder reads 32 letters."""
        for prompt, warning in [
            ("A red ball", None),
            ("a " * 14 + "ball", None),
            ("a " * 15 + "ball", "the prompt is cut: no more is read than its first 32 tokens"),
            ("Ein roter Ball", "no caption that this prior was trained on has ein, roter"),
        ]:
            recwarn.clear()
            assert pyratok("generate", prompt, "-o", tmp_path / "x.pyra", "--prior", prior) == 0
            assert [str(one.message) for one in recwarn] == ([] if warning is None else [warning])

    @pytest.mark.parametrize(("reads", "frames"), [(25, 1), (45, 5), (5, 0)])
    @pytest.mark.parametrize("suffix", [".pyra", ".mp4"])
    def test_what_is_final_is_kept_when_interrupted(
        self,
        reads: int,
        frames: int,
        suffix: str,
        model: PyraTok,
        prior: Path,
        tmp_path: Path,
        pyratok: Command,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """5 words are sampled for the first frame, 24 for each of the two steps behind it."""
        whole = generate_clip(model, load_prior(prior), "a ball", temperature=0.8, guidance=4.0)
        interrupt_after(reads, monkeypatch)
        output = tmp_path / f"x{suffix}"
        assert pyratok("generate", "a ball", "-o", output, "--prior", prior) == 130
        error = capsys.readouterr().err
        assert output.exists() == bool(frames)
        assert (f"the first {frames} frames, which were final" in error) == bool(frames)
        if frames and suffix == ".pyra":
            assert load_tokens(output) == whole.time_slice(0, 1 + (frames - 1) // 4)
        elif frames:
            assert probe(output).frames == frames
