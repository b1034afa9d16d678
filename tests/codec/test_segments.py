"""Files that grow: any cut of the tokens, of the file, and any damage to it."""

from __future__ import annotations

import json
import os
import warnings
import zlib
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyratok.codec import layout, writer
from pyratok.codec.container import (
    PyraFileError,
    PyraReader,
    PyraWriter,
    bits_on_disk,
    load_tokens,
    open_tokens,
    read_header,
    save_tokens,
)
from pyratok.types import Geometry, ModelId, TokenPyramid

STRIDES = ((1, 8, 8), (2, 8, 4), (4, 4, 4))
FRONT, TRAILER = 20, 12
HEADER = 16 + 12 * len(STRIDES)
"""Bytes of the header of a segment."""


def make_tokens(steps: int = 7, missing: int = 2, num_bits: int = 16, batch: int = 1, **changes: Any) -> TokenPyramid:
    """``steps`` latent steps whose last one lacks ``missing`` of its frames."""
    start = changes.get("first_step", 0)
    frames = 4 * steps - (0 if start else 3) - missing
    fields: dict[str, Any] = {"frames": max(1, frames), "height": 8, "width": 7, "strides": STRIDES, "fps": 25.0}
    geometry = Geometry(**fields | changes)
    generator = torch.Generator().manual_seed(steps)
    levels = tuple(
        torch.randint(0, 1 << num_bits, (batch, *geometry.grid(level)), generator=generator).to(torch.int32)
        for level in range(len(STRIDES))
    )
    return TokenPyramid(levels, geometry, ModelId(name="nano", fingerprint="0123abcd"), num_bits)


def cut(tokens: TokenPyramid, places: Iterable[int]) -> list[TokenPyramid]:
    """The parts between these latent steps."""
    steps = tokens.geometry.latent_steps
    bounds = [0, *sorted({place for place in places if 0 < place < steps}), steps]
    return [tokens.time_slice(a, b) for a, b in pairwise(bounds)]


def write(path: Path, parts: Iterable[TokenPyramid], segment_steps: int = 3) -> bytes:
    with PyraWriter(path, segment_steps=segment_steps, overwrite=True) as file:
        for part in parts:
            file.append(part)
    return path.read_bytes()


def leave(file: PyraWriter) -> None:
    """What a killed process does: it closes its files and nothing else."""
    file._file.close()


def load_quietly(path: Path) -> TokenPyramid:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_tokens(path)


def flipped(data: bytes, position: int, bits: int = 1) -> bytes:
    return data[:position] + bytes([data[position] ^ bits]) + data[position + 1 :]


def bytes_to_try(path: Path) -> list[int]:
    """Every byte of a file, but few of its header, whose damage is tested with the file that is written whole."""
    start = read_header(path)["header_size"]
    return [*range(0, start, 9), *range(start, path.stat().st_size)]


def ends(reader: PyraReader) -> list[int]:
    return [segment.end() for segment in reader.segments]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def tokens() -> TokenPyramid:
    """Seven latent steps: segments of 3, 3 and 1."""
    return make_tokens()


@pytest.fixture
def path(tokens: TokenPyramid, tmp_path: Path) -> Path:
    target = tmp_path / "live.pyra"
    write(target, [tokens])
    return target


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(
    steps=st.integers(1, 9),
    missing=st.integers(0, 3),
    num_bits=st.sampled_from([16, 5]),
    batch=st.integers(1, 2),
    first_step=st.sampled_from([0, 4]),
    fps=st.sampled_from([None, 25, 30000 / 1001]),
    places=st.sets(st.integers(1, 8)),
    flushes=st.sets(st.integers(0, 8)),
    segment_steps=st.integers(1, 10),
    data=st.data(),
)
def test_any_cut_gives_back_the_pyramid_and_every_slice(
    tmp_path: Path, places: set[int], flushes: set[int], segment_steps: int, data: st.DataObject, **choice: Any
) -> None:
    tokens, path = make_tokens(**choice), tmp_path / "live.pyra"
    whole = write(path, [tokens], segment_steps)
    assert write(path, cut(tokens, places), segment_steps) == whole
    with PyraWriter(path, segment_steps=segment_steps, overwrite=True) as file:
        for number, part in enumerate(cut(tokens, places)):
            file.append(part)
            if number in flushes:
                file.flush()
    reader = open_tokens(path)
    assert reader.complete
    assert (reader.geometry, reader.model) == (tokens.geometry, tokens.model)
    assert load_tokens(path) == reader.read() == tokens
    start = data.draw(st.integers(0, reader.num_steps - 1))
    stop = data.draw(st.integers(start + 1, reader.num_steps))
    levels = data.draw(st.integers(1, 3))
    assert load_tokens(path, levels, start, stop) == tokens.time_slice(start, stop).prefix(levels)


def test_layout_is_the_documented_one(path: Path, tokens: TokenPyramid) -> None:
    data = path.read_bytes()
    start = FRONT + int.from_bytes(data[12:16], "little")
    header = json.loads(data[FRONT:start])
    assert data[:12] == b"\x89PYR\r\n\x1a\n\x01\x00\x02\x00"
    assert header == {
        "batch_size": 1,
        "geometry": {"first_step": 0, "fps": 25.0, "height": 8, "strides": [list(s) for s in STRIDES], "width": 7},
        "model": {"name": "nano", "fingerprint": "0123abcd"},
        "num_bits": 16,
        "num_levels": 3,
        "segment_steps": 3,
    }
    assert read_header(path) == header | {"version": 1, "header_size": start}
    headers, position = b"", start
    for first, stop, frames in ((0, 3, 9), (3, 6, 12), (6, 7, 2)):
        payloads = [ids.numpy().astype("<u2").tobytes() for ids in tokens.time_slice(first, stop).levels]
        head = b"PYRS" + first.to_bytes(4, "little") + frames.to_bytes(4, "little")
        for payload in payloads:
            head += len(payload).to_bytes(8, "little") + zlib.crc32(payload).to_bytes(4, "little")
        head += zlib.crc32(head).to_bytes(4, "little")
        segment = head + b"".join(payloads)
        assert len(head) == HEADER
        assert data[position : position + len(segment)] == segment
        headers, position = headers + head, position + len(segment)
    count = (3).to_bytes(4, "little")
    assert data[position:] == headers + count + zlib.crc32(headers + count).to_bytes(4, "little") + b"PYRE"


def test_file_cut_at_every_byte_gives_its_whole_segments(path: Path, tokens: TokenPyramid) -> None:
    whole, bounds = path.read_bytes(), ends(open_tokens(path))
    for size in bytes_to_try(path):
        path.write_bytes(whole[:size])
        steps = sum(1 if last == bounds[-1] else 3 for last in bounds if last <= size)
        if not steps:
            with pytest.raises(PyraFileError, match=r"live\.pyra"):
                open_tokens(path)
            continue
        reader = open_tokens(path)
        assert (reader.complete, reader.num_steps) == (False, steps)
        assert reader.read() == tokens.time_slice(0, steps)


def test_resuming_after_any_cut_gives_the_uninterrupted_bytes(path: Path, tokens: TokenPyramid) -> None:
    whole = path.read_bytes()
    for size in [*bytes_to_try(path), len(whole)]:
        path.write_bytes(whole[:size])
        with PyraWriter.resume(path, segment_steps=3) as file:
            if file.next_step < 7:
                for part in cut(tokens.time_slice(file.next_step, 7), {2, 3}):
                    file.append(part)
        assert path.read_bytes() == whole


def test_every_flipped_bit_is_found_and_none_gives_a_wrong_result(path: Path, tokens: TokenPyramid) -> None:
    whole, index = path.read_bytes(), ends(open_tokens(path))[-1]
    for position in bytes_to_try(path):
        path.write_bytes(flipped(whole, position, 1 << position % 8))
        if position < index:
            with pytest.raises(PyraFileError, match=r"live\.pyra"):
                load_tokens(path)
        else:  # the index is gone, the segments are whole
            assert not open_tokens(path).complete
            assert load_quietly(path) == tokens


def test_a_flipped_bit_in_an_unfinished_file_gives_less_or_an_error(path: Path, tokens: TokenPyramid) -> None:
    reader = open_tokens(path)
    unfinished = path.read_bytes()[: ends(reader)[-1]]
    for position in range(reader.header_size, len(unfinished)):
        path.write_bytes(flipped(unfinished, position, 1 << position % 8))
        try:
            found = load_quietly(path)
        except PyraFileError:
            continue
        assert position >= ends(reader)[1]  # only in the header of the last segment, which then does not count
        assert found == tokens.time_slice(0, 6)


class TestDamage:
    def test_in_one_segment_spares_the_others_and_the_levels_in_front(self, path: Path, tokens: TokenPyramid) -> None:
        middle = open_tokens(path).segments[1]
        path.write_bytes(flipped(path.read_bytes(), middle.end(1)))
        for start, stop in ((0, 3), (6, 7)):
            assert load_tokens(path, start=start, stop=stop) == tokens.time_slice(start, stop)
        assert load_tokens(path, levels=1) == tokens.prefix(1)
        said = r"damaged in level 2 of segment 2 \(latent steps 3:6\): levels=1 can be read"
        with pytest.raises(PyraFileError, match=said):
            load_tokens(path, start=5, stop=6)
        before = path.read_bytes()
        with pytest.raises(PyraFileError, match=said):
            PyraWriter.resume(path)
        assert path.read_bytes() == before

    @pytest.mark.parametrize("inside", [0, HEADER], ids=["header", "levels"])
    def test_in_the_middle_of_an_unfinished_file_is_not_taken_for_its_end(self, path: Path, inside: int) -> None:
        reader = open_tokens(path)
        damaged = flipped(path.read_bytes()[: ends(reader)[-1]], ends(reader)[0] + inside) + bytes(40)
        path.write_bytes(damaged)
        with pytest.raises(PyraFileError, match=r"damaged"):
            load_quietly(path)
        with pytest.raises(PyraFileError, match=r"damaged"):
            PyraWriter.resume(path)
        assert path.read_bytes() == damaged

    def test_at_the_end_of_an_unfinished_file_is_cut_off(self, path: Path, tokens: TokenPyramid) -> None:
        whole, last = path.read_bytes(), open_tokens(path).segments[-1]
        path.write_bytes(flipped(whole[: last.end()], last.offset))
        with pytest.raises(PyraFileError, match=r"level 1 of segment 3 \(latent steps 6:7\)"):
            load_quietly(path)
        assert load_tokens(path, stop=6) == tokens.time_slice(0, 6)
        with PyraWriter.resume(path) as file:
            assert file.next_step == 6
            file.append(tokens.time_slice(6, 7))
        assert path.read_bytes() == whole

    @pytest.mark.parametrize("tail", [b"\n", bytes(300), b"PYRS" * 30])
    def test_behind_the_end_is_noticed(self, path: Path, tokens: TokenPyramid, tail: bytes) -> None:
        whole = path.read_bytes()
        path.write_bytes(whole + tail)
        assert not open_tokens(path).complete
        with pytest.warns(UserWarning, match=r"live\.pyra is unfinished.*first 7 latent steps \(23 frames\)"):
            assert load_tokens(path) == tokens
        PyraWriter.resume(path).close()
        assert path.read_bytes() == whole

    def test_a_file_that_shrinks_while_it_is_open_is_truncated(self, path: Path) -> None:
        reader = open_tokens(path)
        path.write_bytes(path.read_bytes()[: reader.segments[1].end(2)])
        assert reader.read(levels=2, stop=6).geometry.latent_steps == 6
        with pytest.raises(PyraFileError, match=r"truncated, it has .*levels=2 can be read"):
            reader.read(3, 6)


@pytest.mark.parametrize(
    "change",
    [
        {"num_levels": 4},
        {"num_levels": 0},
        {"segment_steps": 0},
        {"segment_steps": "3"},
        {"geometry": []},
        {"model": 1},
    ],
)
def test_nonsense_in_the_header_is_refused(path: Path, change: dict[str, Any]) -> None:
    start = read_header(path)["header_size"]
    data = path.read_bytes()
    fields = json.loads(data[FRONT:start]) | change
    path.write_bytes(layout.front_bytes(fields, layout.SEGMENTED) + data[start:])
    with pytest.raises(PyraFileError, match="makes no sense"):
        open_tokens(path)


def test_sizes_count_header_segments_and_index(path: Path) -> None:
    reader, size = open_tokens(path), path.stat().st_size
    assert reader.num_bytes() * 8 == bits_on_disk(path) == size * 8
    assert reader.num_bytes(1) == size - sum(reader.level_bytes[1:])
    assert size == reader.header_size + sum(reader.level_bytes) + 2 * 3 * HEADER + TRAILER


class TestWriter:
    def test_what_was_written_can_be_read_at_once(self, tmp_path: Path, tokens: TokenPyramid) -> None:
        path = tmp_path / "live.pyra"
        with PyraWriter(path, segment_steps=3) as file:
            for step in range(7):
                assert file.next_step == step
                file.append(tokens.time_slice(step, step + 1))
                if step < 2:
                    assert path.stat().st_size == 0
                else:
                    assert load_quietly(path) == tokens.time_slice(0, (step + 1) // 3 * 3)
            file.flush()
            assert load_tokens(path, stop=7) == tokens
            with pytest.warns(UserWarning, match="unfinished"):
                load_tokens(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert load_tokens(path) == tokens

    def test_a_killed_writer_loses_no_more_than_the_segment_it_gathers(
        self, tmp_path: Path, tokens: TokenPyramid
    ) -> None:
        path = tmp_path / "live.pyra"
        file = PyraWriter(path, segment_steps=3)
        file.append(tokens.time_slice(0, 5))
        leave(file)
        assert load_quietly(path) == tokens.time_slice(0, 3)

    def test_an_error_keeps_what_was_appended_for_the_next_run(self, tmp_path: Path, tokens: TokenPyramid) -> None:
        path = tmp_path / "live.pyra"

        def source() -> Iterator[TokenPyramid]:
            yield tokens.time_slice(0, 5)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write(path, source())
        assert load_quietly(path) == tokens.time_slice(0, 5)
        with PyraWriter.resume(path) as file:
            file.append(tokens.time_slice(5, 7))
        assert open_tokens(path).complete
        assert load_tokens(path) == tokens

    def test_a_complete_file_can_go_on(self, tmp_path: Path) -> None:
        tokens, path = make_tokens(missing=0), tmp_path / "live.pyra"
        write(path, [tokens.time_slice(0, 4)])
        with PyraWriter.resume(path) as file:
            assert (file.next_step, file.segment_steps) == (4, 3)
            file.append(tokens.time_slice(4, 7))
        assert load_tokens(path) == tokens

    def test_parts_that_do_not_continue_the_file_are_refused(self, path: Path, tmp_path: Path) -> None:
        tokens = make_tokens(missing=0)
        write(path, [tokens.time_slice(0, 4)])
        before, rest = load_tokens(path), tokens.time_slice(4, 7)
        stranger = TokenPyramid(rest.levels, rest.geometry, ModelId(name="other", fingerprint="9"))
        faster = make_tokens(3, 0, first_step=4, fps=30.0)
        larger = make_tokens(3, 0, first_step=4, width=30)
        with PyraWriter.resume(path) as file:
            for part, said in (
                (stranger, "model nano .* and other"),
                (faster, "fps 25.0 and 30.0"),
                (larger, "width 7 and 30"),
                (rest.prefix(1), "1 levels"),
                (tokens.time_slice(5, 7), "begin at latent step 4, this one begins at 5"),
            ):
                with pytest.raises(ValueError, match=said):
                    file.append(part)
            assert file.next_step == 4
        assert load_tokens(path) == before

    def test_nothing_follows_a_step_that_is_not_full(self, path: Path) -> None:
        with PyraWriter.resume(path) as file, pytest.raises(ValueError, match="nothing can follow latent step 6"):
            file.append(make_tokens(1, 0, first_step=7))

    def test_files_that_cannot_grow_are_refused_and_left(self, tmp_path: Path, tokens: TokenPyramid) -> None:
        whole, foreign = tmp_path / "whole.pyra", tmp_path / "foreign.pyra"
        save_tokens(tokens, whole)
        foreign.write_bytes(b"not tokens at all")
        for path, said in ((whole, "written whole and cannot grow"), (foreign, "text")):
            before = path.read_bytes()
            with pytest.raises(PyraFileError, match=said):
                PyraWriter.resume(path)
            assert path.read_bytes() == before
        with pytest.raises(FileNotFoundError, match=r"none\.pyra"):
            PyraWriter.resume(tmp_path / "none.pyra")
        assert len(list(tmp_path.iterdir())) == 2

    def test_a_file_that_is_there_is_kept_until_there_are_tokens(self, path: Path, tokens: TokenPyramid) -> None:
        before = path.read_bytes()
        with pytest.raises(FileExistsError, match=r"overwrite=True replaces it.*live\.pyra"):
            PyraWriter(path)
        with PyraWriter(path, overwrite=True) as file:
            file.append(tokens.time_slice(0, 1))
            assert path.read_bytes() == before
            file.flush()
            assert load_quietly(path) == tokens.time_slice(0, 1)
        assert load_tokens(path) == tokens.time_slice(0, 1)

    def test_two_writers_at_one_file_are_refused(self, tmp_path: Path, tokens: TokenPyramid) -> None:
        pytest.importorskip("fcntl")
        path = tmp_path / "live.pyra"
        with PyraWriter(path) as file:
            file.append(tokens)
            for again in (lambda: PyraWriter(path, overwrite=True), lambda: PyraWriter.resume(path)):
                with pytest.raises(ValueError, match=r"live\.pyra: another writer is at work"):
                    again()
        PyraWriter.resume(path).close()
        assert load_tokens(path) == tokens

    def test_without_tokens_there_is_no_file(self, tmp_path: Path) -> None:
        path = tmp_path / "live.pyra"
        with pytest.raises(ValueError, match="no tokens were appended"), PyraWriter(path):
            pass
        with pytest.raises(KeyError), PyraWriter(path):
            raise KeyError
        with pytest.raises(ValueError, match="segment_steps = 0"):
            PyraWriter(path, segment_steps=0)
        assert not list(tmp_path.iterdir())

    def test_a_closed_writer_takes_nothing(self, path: Path, tokens: TokenPyramid) -> None:
        file = PyraWriter(path, overwrite=True)
        file.append(tokens)
        file.close()
        file.close()
        for use in (file.flush, lambda: file.append(tokens)):
            with pytest.raises(ValueError, match="is closed"):
                use()
        assert load_tokens(path) == tokens

    def test_a_full_disk_costs_nothing_that_was_appended(
        self, path: Path, tokens: TokenPyramid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class FullDisk:
            def __init__(self, file: Any) -> None:
                self.file = file

            def __getattr__(self, name: str) -> Any:
                return getattr(self.file, name)

            def write(self, data: memoryview) -> int:
                if len(data) <= 50:
                    raise OSError(28, "No space left on device")
                return int(self.file.write(data[:50]))

        whole = path.read_bytes()
        with PyraWriter(path, segment_steps=3, overwrite=True) as file:
            file.append(tokens.time_slice(0, 4))
            with monkeypatch.context() as patched:
                patched.setattr(file, "_file", FullDisk(file._file))
                with pytest.raises(OSError, match=r"No space left.*live\.pyra"):
                    file.append(tokens.time_slice(4, 7))
            assert path.read_bytes() == whole[: open_tokens(path).segments[0].end()]
            file._store(3)
        assert path.read_bytes() == whole

    @pytest.mark.parametrize(("seconds", "times"), [(1e9, 1), (0.0, 3)])
    def test_the_disk_is_waited_for_at_a_bounded_rate(
        self, path: Path, tokens: TokenPyramid, monkeypatch: pytest.MonkeyPatch, seconds: float, times: int
    ) -> None:
        synced: list[int] = []
        monkeypatch.setattr(os, "fsync", synced.append)
        monkeypatch.setattr(writer, "SYNC_SECONDS", seconds)
        write(path, cut(tokens, range(7)))
        assert len(synced) == times + (seconds == 0.0)

    def test_what_the_format_cannot_hold_is_not_written(self, tmp_path: Path) -> None:
        tokens = make_tokens()
        nameless = TokenPyramid(tokens.levels, tokens.geometry, ModelId(name="n" * layout.MAX_HEADER, fingerprint=""))
        with pytest.raises(ValueError, match="shorten the model name"):
            write(tmp_path / "x.pyra", [nameless])
        assert not list(tmp_path.iterdir())
