"""Files are there whole or not at all, and what cannot be written is called by its own name."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pyratok.files import alone_in, replacing, sync, write_atomically


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content in ("old", b"new"):
        write_atomically(path, content)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_utf8_as_it_is(tmp_path: Path) -> None:
    write_atomically(tmp_path / "x", "ü\r\n")
    assert (tmp_path / "x").read_bytes() == b"\xc3\xbc\r\n"


def test_a_failed_write_leaves_the_old_file_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_atomically(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space") as caught:
        write_atomically(path, "new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "kind"), [("no/x.json", FileNotFoundError), ("x.json/x.json", NotADirectoryError)])
def test_a_place_that_is_none_is_named(tmp_path: Path, name: str, kind: type[OSError]) -> None:
    (tmp_path / "x.json").write_text("old")
    with pytest.raises(kind) as caught:
        write_atomically(tmp_path / name, "new")
    assert caught.value.filename == str(tmp_path / name)


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "x") as temporary:
        temporary.write_bytes((tmp_path / "source").read_bytes())
    assert str(caught.value.filename) == str(tmp_path / "source")


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_an_interrupted_writer_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def interrupted() -> None:
        with replacing(tmp_path / "x") as temporary:
            temporary.write_text("half")
            assert temporary.parent == tmp_path
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_files_and_folders_are_brought_to_the_disk(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("content")
    sync(tmp_path / "x")
    sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "y")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    for _ in range(2):  # and the next when it is done
        with alone_in(tmp_path), pytest.raises(ValueError, match="another run works in"), alone_in(tmp_path):
            pass
