"""What goes wrong ends with the documented exit code, one line that says what, and nothing written."""

from __future__ import annotations

import errno
import os
import signal
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fakes import FakeTokenizer, moving_video
from pyratok.cli import app, common
from pyratok.codec.container import save_tokens
from pyratok.types import ModelId
from subprocesses import run_python

Command = Callable[..., int]


def assert_refused(code: int, capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """Exit code 2 and a single line that names file and cause."""
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.startswith("pyratok: error: ")
    assert printed.err.count("\n") == 1
    for word in words:
        assert word in printed.err


@pytest.fixture
def broken(tmp_path: Path, clip: Path) -> dict[str, Path]:
    """Files that are no clips, by name."""
    whole = clip.read_bytes()
    contents = {"empty.mp4": b"", "text.mp4": b"not a video\n" * 50, "cut.mp4": whole[: len(whole) // 3]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {name: tmp_path / name for name in (*contents, "missing.mp4")}


@pytest.mark.parametrize("verb", ["encode", "reconstruct", "info", "demo", "evaluate"])
@pytest.mark.parametrize("name", ["missing.mp4", "empty.mp4", "text.mp4", "cut.mp4"])
def test_what_is_no_clip_is_refused(
    name: str, verb: str, broken: dict[str, Path], tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    source = broken[name]
    arguments = {
        "encode": [source, "-o", tmp_path / "x.pyra"],
        "reconstruct": [source, "-o", tmp_path / "x.mp4"],
        "info": [source],
        "demo": ["--input", source, "--out", tmp_path / "demo"],
        "evaluate": ["reconstruction", "--data", source],
    }[verb]
    before = sorted(tmp_path.rglob("*"))
    assert_refused(pyratok(verb, *arguments), capsys, name)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_that_is_the_input_is_refused(
    clip: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    content = clip.read_bytes()
    (tmp_path / "link.mp4").symlink_to(clip)
    for output in (clip, tmp_path / "link.mp4", tmp_path / "." / "clip.mp4"):
        assert_refused(pyratok("reconstruct", clip, "-o", output), capsys, "is the input")
    assert clip.read_bytes() == content


def test_json_never_replaces_what_the_command_works_on(
    clip: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    video, tokens, new = clip.read_bytes(), tmp_path / "x.pyra", tmp_path / "new"
    assert pyratok("encode", clip, "-o", tokens) == 0
    held = tokens.read_bytes()
    capsys.readouterr()
    for arguments in (
        ["info", clip, "--json", clip],
        ["encode", clip, "-o", new, "--json", clip],
        ["encode", clip, "-o", new, "--json", new],
        ["encode", clip, "-o", new, "--json", tmp_path / "." / "new"],
        ["decode", tokens, "-o", new.with_suffix(".mp4"), "--json", tokens],
        ["decode", tokens, "-o", new.with_suffix(".mp4"), "--json", new.with_suffix(".mp4")],
        ["reconstruct", clip, "-o", new.with_suffix(".mp4"), "--json", clip],
        ["evaluate", "reconstruction", "--data", tmp_path, "--json", clip],
        ["encode", clip, "-o", new, "--model", tmp_path, "--json", tokens],
    ):
        assert_refused(pyratok(*arguments), capsys, "--json", "would replace")
    assert pyratok("demo", "--input", clip, "--out", tmp_path, "--json", tmp_path / "report.html") == 2
    assert "would replace" in capsys.readouterr().err
    assert (clip.read_bytes(), tokens.read_bytes()) == (video, held)
    assert sorted(tmp_path.iterdir()) == [clip, tokens]


def test_json_beside_the_media_is_written_again(clip: Path, tmp_path: Path, pyratok: Command) -> None:
    for _ in range(2):
        options = ["--data", tmp_path, "--size", 32, "--frames", 1, "--json", tmp_path / "numbers.json"]
        assert pyratok("evaluate", "reconstruction", *options, "--model", tmp_path) == 0


def test_only_regular_files_are_replaced(
    clip: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for output in (tmp_path / "pipe", "/dev/null"):
        assert_refused(pyratok("encode", clip, "-o", output), capsys, "not a regular file")
        assert_refused(pyratok("info", clip, "--json", output), capsys, "not a regular file")
    assert_refused(pyratok("encode", clip, "-o", "-"), capsys, "standard output")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("no/such/x.mp4", ["no folder"]),
        (".", ["is a folder"]),
        ("x.xyz", [".xyz"]),
        ("x", ["suffix"]),
        ("x.png", ["single image"]),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_any_work(
    output: str,
    words: list[str],
    clip: Path,
    tmp_path: Path,
    pyratok: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(common, "load_model", lambda name: pytest.fail("the model was loaded"))
    assert_refused(pyratok("reconstruct", clip, "-o", tmp_path / output), capsys, *words)
    assert list(tmp_path.iterdir()) == [clip]


def test_an_image_does_not_become_a_video(
    image: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(pyratok("reconstruct", image, "-o", tmp_path / "x.mp4"), capsys, "single image", ".png")


def test_tokens_of_another_model_are_refused_with_both_names(
    tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str], model: FakeTokenizer
) -> None:
    foreign = replace(model.encode(moving_video()), model=ModelId(name="other", fingerprint="feed"))
    save_tokens(foreign, tmp_path / "x.pyra")
    code = pyratok("decode", tmp_path / "x.pyra", "-o", tmp_path / "x.mp4")
    assert_refused(code, capsys, "other", "fake")
    assert not (tmp_path / "x.mp4").exists()


def test_damaged_tokens_are_refused(
    clip: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.pyra"
    pyratok("encode", clip, "-o", path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    capsys.readouterr()
    assert_refused(pyratok("decode", path, "-o", tmp_path / "x.mp4"), capsys, "x.pyra", "damaged")
    assert_refused(pyratok("info", path), capsys, "x.pyra", "damaged")
    assert not (tmp_path / "x.mp4").exists()


def test_a_model_that_cannot_be_loaded_leaves_nothing_behind(
    clip: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str | None) -> None:
        raise ValueError(f"{name}: no such model")

    monkeypatch.setattr(common, "load_model", refuse)
    assert pyratok("demo", "--input", clip, "--out", tmp_path / "out", "--model", "nowhere") == 2
    assert capsys.readouterr().err.endswith("pyratok: error: nowhere: no such model\n")
    assert list(tmp_path.iterdir()) == [clip]


def test_too_many_levels_are_refused(
    clip: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(pyratok("reconstruct", clip, "-o", tmp_path / "x.mp4", "--levels", 9), capsys, "levels")
    assert list(tmp_path.iterdir()) == [clip]


def test_a_clip_beyond_memory_is_refused(
    clip: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "available_memory", lambda: 1000)
    assert_refused(pyratok("encode", clip, "-o", tmp_path / "x.pyra"), capsys, "memory", "--frames")
    assert_refused(pyratok("evaluate", "reconstruction", "--data", clip), capsys, "clip.mp4", "memory")


def test_tokens_beyond_memory_are_refused(
    clip: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pyratok("encode", clip, "-o", tmp_path / "x.pyra") == 0
    capsys.readouterr()
    monkeypatch.setattr(common, "available_memory", lambda: 1000)
    code = pyratok("decode", tmp_path / "x.pyra", "-o", tmp_path / "x.mp4")
    assert_refused(code, capsys, "x.pyra", "9 frames of 64x48", "memory")


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["encode"],
        ["encode", "a", "-o", "b", "--size", "0"],
        ["decode", "a", "-o", "b", "--levels", "many"],
        ["reconstruct", "a"],
        ["train", "nano", "--out", "x", "--data", ".", "--set", "novalue"],
        ["train", "nano", "--out", "x", "--data", ".", "--set", "train.stepz=1"],
        ["train", "nana", "--out", "x", "--data", "."],
        ["train", "nano", "--out", "x", "--data", "nowhere", "--init", "nowhere"],
        ["evaluate", "reconstruction", "--data", ".", "--levels", "0"],
        ["info", "a", "--model", "b"],
    ],
)
def test_usage_errors(arguments: list[str], pyratok: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(pyratok(*arguments), capsys)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), app.EXIT_INTERRUPTED),
        (RuntimeError("shapes differ"), app.EXIT_INTERNAL),
        (AssertionError("an invariant"), app.EXIT_INTERNAL),
        (MemoryError(), app.EXIT_BAD_INPUT),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), app.EXIT_BAD_INPUT),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), app.EXIT_BAD_INPUT),
    ],
)
def test_every_kind_of_failure_has_its_code(
    error: BaseException,
    code: int,
    clip: Path,
    tmp_path: Path,
    pyratok: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    model: FakeTokenizer,
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.delenv("PYRATOK_DEBUG", raising=False)
    monkeypatch.setattr(model, "encode", fail)
    assert pyratok("encode", clip, "-o", tmp_path / "x.pyra") == code
    printed = capsys.readouterr().err
    assert printed.startswith("pyratok: error: ")
    assert "Traceback" not in printed
    assert list(tmp_path.iterdir()) == [clip]


def test_an_error_of_a_loader_process_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    carried = ["Caught VideoError in DataLoader worker process 0.", "Original Traceback (most recent call last):"]
    cause = "pyratok.data.video_base.VideoError: a.mp4: damaged at 0.40 s"
    assert app._report(ValueError("\n".join([*carried, '  File "x.py", line 3, in f', cause, ""]))) == 2
    assert capsys.readouterr().err == "pyratok: error: a.mp4: damaged at 0.40 s\n"


def test_a_file_that_cannot_be_written_is_called_by_its_name(
    clip: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    out = tmp_path / "x.pyra"
    assert_refused(pyratok("encode", clip, "-o", out), capsys, f"{out}: cannot be written (No space left on device)")


INTERRUPTED = """
import os, signal, sys
from pyratok.cli import app, common

def check(*arguments):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise RecursionError("what the import of torch makes of it") from None

# A shell that starts the tests in the background has interrupts ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
common.check_output = check
sys.exit(app.run(["info", "--json", "numbers.json"]))
"""


def test_an_interrupt_that_turns_into_another_error_is_one(tmp_path: Path) -> None:
    done = run_python("-c", INTERRUPTED, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (app.EXIT_INTERRUPTED, "pyratok: error: interrupted\n")


def test_interrupts_and_warnings_are_python_s_own_again(pyratok: Command) -> None:
    before = signal.getsignal(signal.SIGINT), warnings.formatwarning
    pyratok("--version")
    assert (signal.getsignal(signal.SIGINT), warnings.formatwarning) == before


WARNED = """
import warnings
from pyratok.cli import app, common

common.check_output = lambda *arguments: warnings.warn("written without sound", stacklevel=2)
app.run(["info", "nowhere.mp4", "--json", "numbers.json"])
"""


def test_warnings_are_for_people(tmp_path: Path) -> None:
    done = run_python("-c", WARNED, cwd=tmp_path)
    assert done.stderr.splitlines()[0] == "pyratok: warning: written without sound"


def test_debug_shows_the_traceback(
    pyratok: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYRATOK_DEBUG", "1")
    assert pyratok("info", "missing.mp4") == 2
    assert "Traceback" in capsys.readouterr().err


def test_help_and_version_answer_without_torch() -> None:
    code = "import sys; from pyratok.cli import app; app.run({}); assert 'torch' not in sys.modules"
    for arguments in (["--help"], ["--version"], ["encode", "--help"], ["bogus"]):
        done = run_python("-c", code.format(arguments))
        assert done.returncode == 0, done.stderr


def test_module_and_command_are_the_same() -> None:
    done = run_python("-m", "pyratok", "--version")
    assert done.returncode == 0
    assert done.stdout.startswith("pyratok ")
