from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyratok.codec import container, layout
from pyratok.codec.container import (
    MAGIC,
    MAX_HEADER,
    PyraFileError,
    bits_on_disk,
    load_tokens,
    open_tokens,
    pack_ids,
    packed_size,
    read_header,
    save_tokens,
    unpack_ids,
)
from pyratok.quantization.bits import ids_to_signs
from pyratok.types import Geometry, ModelId, TokenPyramid

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
STRIDES = ((1, 8, 8), (2, 8, 4), (4, 4, 4))
FRONT = 20


def make_pyramid(
    num_bits: int = 16, batch: int = 1, seed: int = 0, name: str = "nano", num_levels: int = 3, **changes: Any
) -> TokenPyramid:
    fields: dict[str, Any] = {"frames": 5, "height": 16, "width": 7, "strides": STRIDES, "fps": 30000 / 1001}
    geometry = Geometry(**fields | changes)
    generator = torch.Generator().manual_seed(seed)
    levels = tuple(
        torch.randint(0, 1 << num_bits, (batch, *geometry.grid(index)), generator=generator).to(torch.int32)
        for index in range(num_levels)
    )
    return TokenPyramid(levels, geometry, ModelId(name=name, fingerprint="0123abcd"), num_bits)


@pytest.fixture
def tokens() -> TokenPyramid:
    return make_pyramid()


@pytest.fixture
def path(tokens: TokenPyramid, tmp_path: Path) -> Path:
    target = tmp_path / "clip.pyra"
    save_tokens(tokens, target)
    return target


def forge(path: Path, header: Any, *, version: int = 1, flags: int = 0, payload: bytes = b"") -> None:
    """A file whose checksum is right and whose header says whatever the test wants."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    preamble = layout.PREAMBLE.pack(MAGIC, version, flags, len(text))
    path.write_bytes(preamble + zlib.crc32(preamble + text).to_bytes(4, "little") + text + payload)


def raw_header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    size = int.from_bytes(data[12:16], "little")
    return dict(json.loads(data[FRONT : FRONT + size]))


@settings(relaxed, max_examples=40)
@given(
    num_bits=st.integers(1, 30),
    batch=st.integers(1, 3),
    num_levels=st.integers(1, 3),
    frames=st.integers(1, 9),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    fps=st.none() | st.floats(1e-3, 1e3),
    first_step=st.integers(0, 3),
    name=st.text(max_size=20),
    seed=st.integers(0, 99),
)
def test_file_gives_back_the_pyramid_and_every_prefix(tmp_path: Path, **choice: Any) -> None:
    tokens = make_pyramid(**choice)
    path = tmp_path / "clip.pyra"
    save_tokens(tokens, path)
    loaded = load_tokens(path)
    assert loaded == tokens
    assert hash(loaded.geometry) == hash(tokens.geometry)
    for count in range(1, len(tokens.levels) + 1):
        assert load_tokens(path, levels=count) == tokens.prefix(count)


def test_a_file_written_whole_is_one_segment_of_its_steps(path: Path, tokens: TokenPyramid) -> None:
    reader = open_tokens(path)
    assert (reader.geometry, reader.model, reader.num_steps) == (tokens.geometry, tokens.model, 2)
    assert (reader.num_levels, reader.batch_size, reader.num_bits) == (3, 1, 16)
    assert (reader.complete, len(reader.segments), reader.segment_steps) == (True, 1, None)
    assert sum(reader.level_bytes) + reader.header_size == reader.num_bytes() == path.stat().st_size
    assert reader.read() == tokens
    assert reader.read(1, levels=2) == load_tokens(path, levels=2, start=1) == tokens.time_slice(1, 2).prefix(2)
    for start, stop in ((0, 0), (0, 3), (-1, 1), (2, 1)):
        with pytest.raises(PyraFileError, match=f"holds latent steps 0:2, asked for {start}:{stop}"):
            load_tokens(path, start=start, stop=stop)


def test_same_tokens_give_the_same_bytes(path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.pyra"
    save_tokens(load_tokens(path), again)
    assert again.read_bytes() == path.read_bytes()


def test_layout_is_the_documented_one(tokens: TokenPyramid, path: Path) -> None:
    data, header = path.read_bytes(), raw_header(path)
    start = FRONT + int.from_bytes(data[12:16], "little")
    assert data[:12] == b"\x89PYR\r\n\x1a\n\x01\x00\x00\x00"
    assert list(header) == sorted(header) == ["batch_size", "geometry", "levels", "model", "num_bits"]
    assert int.from_bytes(data[16:20], "little") == zlib.crc32(data[:16] + data[20:start])
    for ids, level in zip(tokens.levels, header["levels"], strict=True):
        place = start + level["offset"]
        payload = data[place : place + level["size"]]
        assert zlib.crc32(payload) == level["crc32"]
        assert payload == ids.numpy().astype("<u2").tobytes()
    assert place + level["size"] == len(data)


def test_integer_fps_loads_as_equal_geometry(tmp_path: Path) -> None:
    tokens = make_pyramid(fps=25)
    save_tokens(tokens, tmp_path / "a.pyra")
    assert load_tokens(tmp_path / "a.pyra") == tokens


@relaxed
@given(num_bits=st.integers(1, 31), data=st.data())
def test_packing_round_trip_follows_the_bit_order_of_words(num_bits: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, (1 << num_bits) - 1), max_size=40))
    ids = np.array(values, dtype=np.int32)
    stream = pack_ids(ids, num_bits)
    assert len(stream) == packed_size(len(values), num_bits)
    assert np.array_equal(unpack_ids(stream, len(values), num_bits), ids)

    expected = (ids_to_signs(torch.from_numpy(ids), num_bits, dim=-1) > 0).flatten().tolist()
    bits = [byte >> position & 1 for byte in stream for position in range(8)]
    assert bits[: len(expected)] == expected
    assert not any(bits[len(expected) :])


@pytest.mark.parametrize("num_bits", [16, 5])
@pytest.mark.parametrize("flip", [0x01, 0x80, 0x20, 0xFF])
def test_every_damaged_byte_is_noticed(tmp_path: Path, num_bits: int, flip: int) -> None:
    path = tmp_path / "clip.pyra"
    save_tokens(make_pyramid(num_bits), path)
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :])
        with pytest.raises(PyraFileError, match=r"clip\.pyra"):
            load_tokens(path)


@settings(relaxed, max_examples=300)
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_any_other_byte_anywhere_is_noticed(path: Path, tokens: TokenPyramid, position: float, value: int) -> None:
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[int(position * len(whole))] = value
    other = path.with_name("other.pyra")
    other.write_bytes(damaged)
    if bytes(damaged) == whole:
        assert load_tokens(other) == tokens
    else:
        with pytest.raises(PyraFileError):
            load_tokens(other)


def test_every_truncation_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(PyraFileError, match=r"truncated|is empty|it ends after"):
            load_tokens(path)


@pytest.mark.parametrize("tail", [b"\0", b"\n", b"more"])
def test_trailing_bytes_are_refused(path: Path, tail: bytes) -> None:
    path.write_bytes(path.read_bytes() + tail)
    with pytest.raises(PyraFileError, match=f"{len(tail)} bytes of something else"):
        load_tokens(path)


@pytest.mark.parametrize("count", [1, 2])
def test_prefix_needs_nothing_behind_it(path: Path, tokens: TokenPyramid, count: int) -> None:
    whole, header = path.read_bytes(), read_header(path)
    end = header["header_size"] + header["levels"][count]["offset"]
    for rest in (b"", whole[end:-1], bytes(255 - byte for byte in whole[end:]), whole[end:] + b"tail"):
        path.write_bytes(whole[:end] + rest)
        assert load_tokens(path, levels=count) == tokens.prefix(count)
    path.write_bytes(whole[:end])
    with pytest.raises(PyraFileError, match=f"truncated, it has {end} of {len(whole)} bytes.*levels={count}"):
        load_tokens(path)
    with pytest.raises(PyraFileError, match="truncated"):
        load_tokens(path, levels=count + 1)


def test_damage_names_the_level_and_what_is_left(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(PyraFileError, match="damaged in level 3: up to levels=2 can be read"):
        load_tokens(path)


@pytest.mark.parametrize("levels", [0, -1, 4])
def test_levels_that_are_not_there(path: Path, levels: int) -> None:
    with pytest.raises(PyraFileError, match=f"holds 3 levels, asked for the first {levels}"):
        load_tokens(path, levels=levels)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"", "empty"),
        (MAGIC[:5], "it ends after 5 bytes"),
        (b"\0\0\0\x20ftypisom" + bytes(20), "MP4"),
        (b"\x1aE\xdf\xa3" + bytes(20), "Matroska"),
        (b"RIFF\0\0\0\0AVI LIST", "AVI"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WebP"),
        (b"RIFF\0\0\0\0WAVEfmt ", "RIFF"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "PNG"),
        (b"PK\x03\x04" + bytes(20), "ZIP"),
        ((300).to_bytes(8, "little") + b'{"__metadata__":{', "safetensors"),
        (b'{"tokens": [1, 2, 3], "more": 4}', "text"),
        (bytes(range(128, 160)), "80 81 82"),
        (MAGIC.replace(b"\r\n", b"\n") + bytes(20), "text-mode"),
        (MAGIC.replace(b"\n", b"\r\n") + bytes(20), "text-mode"),
        (MAGIC.decode("latin-1").encode() + bytes(20), "UTF-8"),
        (MAGIC.decode("utf-8", "replace").encode() + bytes(20), "UTF-8"),
    ],
)
def test_foreign_files_are_named(tmp_path: Path, head: bytes, said: str) -> None:
    path = tmp_path / "x.pyra"
    path.write_bytes(head)
    with pytest.raises(PyraFileError, match=rf"x\.pyra is not a \.pyra file: .*{said}"):
        load_tokens(path)


def test_missing_file_and_folder_are_os_errors(tmp_path: Path) -> None:
    for target in (tmp_path / "none.pyra", tmp_path):
        with pytest.raises(OSError, match=target.name):
            load_tokens(target)


def test_newer_version_and_unknown_flags_ask_for_an_upgrade(path: Path) -> None:
    header = raw_header(path)
    forge(path, header, version=7)
    with pytest.raises(PyraFileError, match=r"version 7, this pyratok reads version 1; upgrade pyratok"):
        load_tokens(path)
    for flags in (1, 3, 4):
        forge(path, header, flags=flags)
        with pytest.raises(PyraFileError, match=f"flags 0x{flags}.*upgrade pyratok"):
            load_tokens(path)


def test_unknown_header_keys_are_ignored(path: Path, tokens: TokenPyramid) -> None:
    start = read_header(path)["header_size"]
    forge(path, raw_header(path) | {"comment": ["later"]}, payload=path.read_bytes()[start:])
    assert load_tokens(path) == tokens


def _level_changed(header: dict[str, Any], **changes: Any) -> dict[str, Any]:
    first, *rest = header["levels"]
    return header | {"levels": [first | changes, *rest]}


def _geometry_changed(header: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return header | {"geometry": header["geometry"] | changes}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda h: [],
        lambda h: None,
        lambda h: b"\xff\xfe",
        lambda h: b"[" * MAX_HEADER,
        lambda h: b'{"batch_size": ' + b"9" * 5000 + b"}",
        lambda h: h | {"batch_size": 0},
        lambda h: h | {"batch_size": True},
        lambda h: h | {"batch_size": 1.0},
        lambda h: h | {"batch_size": 2**60},
        lambda h: h | {"num_bits": 32},
        lambda h: h | {"num_bits": "16"},
        lambda h: h | {"model": {"name": 1, "fingerprint": ""}},
        lambda h: h | {"model": "nano"},
        lambda h: h | {"levels": []},
        lambda h: h | {"levels": h["levels"] * 2},
        lambda h: h | {"levels": "abc"},
        lambda h: h | {"levels": {"a": 1, "b": 2}},
        lambda h: {key: value for key, value in h.items() if key != "geometry"},
        lambda h: _level_changed(h, offset=1),
        lambda h: _level_changed(h, size=2**62),
        lambda h: _level_changed(h, grid=[2**31, 2**31, 2**31]),
        lambda h: _level_changed(h, crc32=-1),
        lambda h: _geometry_changed(h, frames=2**31),
        lambda h: _geometry_changed(h, height=1e400),
        lambda h: _geometry_changed(h, width=-4),
        lambda h: _geometry_changed(h, fps=float("nan")),
        lambda h: _geometry_changed(h, fps=10**400),
        lambda h: _geometry_changed(h, fps="25"),
        lambda h: _geometry_changed(h, strides=[[1, 1]]),
        lambda h: _geometry_changed(h, strides=[[1, 1, 1]] * 5000),
        lambda h: _geometry_changed(h, strides=[[2**31, 1, 1], [3, 1, 1], [1, 1, 1]]),
        lambda h: _geometry_changed(h, first_step=-1),
    ],
)
def test_nonsense_in_the_header_is_refused(path: Path, spoil: Any) -> None:
    start = read_header(path)["header_size"]
    forge(path, spoil(raw_header(path)), payload=path.read_bytes()[start:])
    with pytest.raises(PyraFileError, match=r"makes no sense"):
        load_tokens(path)


def test_words_of_more_bits_than_a_pyramid_holds_are_refused(path: Path) -> None:
    counts = [math.prod(level["grid"]) for level in raw_header(path)["levels"]]
    payloads = [bytes(packed_size(count, 31)) for count in counts]
    offsets = [sum(map(len, payloads[:index])) for index in range(len(payloads))]
    levels = [
        level | {"offset": offset, "size": len(payload), "crc32": zlib.crc32(payload)}
        for level, offset, payload in zip(raw_header(path)["levels"], offsets, payloads, strict=True)
    ]
    forge(path, raw_header(path) | {"num_bits": 31, "levels": levels}, payload=b"".join(payloads))
    with pytest.raises(PyraFileError, match="1 to 30, got 31"):
        load_tokens(path)


def test_huge_consistent_claims_are_refused_before_any_reading(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side = 2**30
    grid = [1, side, side]
    header = raw_header(path) | {
        "geometry": {"frames": 1, "height": side, "width": side, "strides": [[1, 1, 1]], "fps": None, "first_step": 0},
        "levels": [{"grid": grid, "offset": 0, "size": 2 * side * side, "crc32": 0}],
    }
    forge(path, header, payload=b"tiny")
    monkeypatch.setattr(layout, "unpack_ids", lambda *_: pytest.fail("tried to allocate"))
    with pytest.raises(PyraFileError, match="truncated"):
        load_tokens(path)


def test_header_length_is_limited(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[12:16] = (0xFFFFFFFF).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(PyraFileError, match="header claims 4294967295 bytes"):
        read_header(path)


def test_read_header_tells_all_without_the_levels(path: Path, tokens: TokenPyramid) -> None:
    whole, header = path.read_bytes(), read_header(path)
    path.write_bytes(whole[: header["header_size"]])
    assert read_header(path) == header
    assert header["version"] == 1
    assert header["model"] == {"name": "nano", "fingerprint": "0123abcd"}
    assert (header["num_bits"], header["batch_size"]) == (16, 1)
    assert [tuple(level["grid"]) for level in header["levels"]] == [ids.shape[1:] for ids in tokens.levels]
    assert header["geometry"]["fps"] == tokens.geometry.fps
    json.dumps(header)


def test_bits_on_disk_count_the_file_and_its_prefixes(path: Path) -> None:
    assert bits_on_disk(path) == bits_on_disk(path, levels=3) == 8 * path.stat().st_size
    whole, bits = path.read_bytes(), bits_on_disk(path, levels=1)
    path.write_bytes(whole[: bits // 8])
    assert bits_on_disk(path, levels=1) == bits
    load_tokens(path, levels=1)
    with pytest.raises(PyraFileError, match="truncated"):
        bits_on_disk(path)


def test_bytes_are_those_that_the_first_version_wrote(tmp_path: Path) -> None:
    """The example of docs/file-format.md."""
    geometry = Geometry(frames=2, height=8, width=16, strides=((1, 8, 8), (2, 8, 8)), fps=25.0)
    level_1 = torch.tensor([[[[1, 2]], [[65535, 32768]], [[513, 0]]]], dtype=torch.int32)
    level_2 = torch.tensor([[[[4660, 22136]], [[0, 1]]]], dtype=torch.int32)
    model = ModelId(name="tiny", fingerprint="00112233445566ff")
    save_tokens(TokenPyramid((level_1, level_2), geometry, model), tmp_path / "tiny.pyra")
    written = (tmp_path / "tiny.pyra").read_bytes()
    assert (len(written), written[16:20].hex(), zlib.crc32(written)) == (352, "f3c1039f", 0x68FE46A6)


def test_failed_write_leaves_the_old_file_and_nothing_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(container.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_tokens(make_pyramid(seed=1), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_writing_replaces_and_leaves_no_temporary_file(path: Path) -> None:
    save_tokens(make_pyramid(seed=1), str(path))
    assert load_tokens(str(path)) == make_pyramid(seed=1)
    assert list(path.parent.iterdir()) == [path]


def test_pyramids_beyond_the_format_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "x.pyra"
    with pytest.raises(ValueError, match="shorten the model name"):
        save_tokens(make_pyramid(name="n" * MAX_HEADER), path)
    with pytest.raises(ValueError, match="at most 256 strides"):
        save_tokens(make_pyramid(strides=((4, 8, 8),) * 257), path)
    with pytest.raises(ValueError, match="empty batch"):
        save_tokens(make_pyramid(batch=0), path)
    assert not list(tmp_path.iterdir())
