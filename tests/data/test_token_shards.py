"""Shards give back what was written, each clip once a round, and never words of different origin."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pyratok.data.token_shards import (
    INDEX,
    ShardError,
    ShardHeader,
    TokenRow,
    TokenShards,
    read_index,
    shard_facts,
    shard_path,
    write_index,
    write_shard,
)
from pyratok.types import Geometry, ModelId

pytest.importorskip("pyarrow")

GEOMETRY = Geometry(frames=5, height=16, width=32, strides=((1, 16, 16), (4, 8, 8)))
HEADER = ShardHeader(
    model=ModelId(name="m", fingerprint="f" * 16),
    num_bits=16,
    geometry=GEOMETRY,
    text_encoder="stub",
    text_dim=6,
    settings="s",
)


def row(number: int, header: ShardHeader = HEADER, tokens: int = 3) -> TokenRow:
    generator = torch.Generator().manual_seed(number)
    top = 1 << header.num_bits
    levels = tuple(torch.randint(0, top, grid, generator=generator, dtype=torch.int32) for grid in header.grids)
    pooled = text = None
    if header.text_dim:
        pooled = torch.randn(header.text_dim, generator=generator).half()
        text = torch.randn(tokens, header.text_dim, generator=generator).half()
    return TokenRow(
        clip=f"c{number}", caption=f"words {number}", fps=25.0 if number % 2 else None, levels=levels,
        pooled=pooled, text=text,
    )  # fmt: skip


def shards(folder: Path, sizes: Sequence[int], header: ShardHeader = HEADER) -> Path:
    """Clips c0, c1 ... in shards of ``sizes`` rows; clip n has n % 4 tokens of text."""
    first = 0
    for number, size in enumerate(sizes):
        rows = [row(n, header, n % 4) for n in range(first, first + size)]
        write_shard(shard_path(folder, number), rows, header, work=str(number))
        first += size
    write_index(folder, header, len(sizes))
    return folder


def assert_same(found: TokenRow, wanted: TokenRow) -> None:
    assert (found.clip, found.caption, found.fps) == (wanted.clip, wanted.caption, wanted.fps)
    assert all(torch.equal(a, b) for a, b in zip(found.levels, wanted.levels, strict=True))
    for name in ("pooled", "text"):
        a, b = getattr(found, name), getattr(wanted, name)
        assert (a is None and b is None) or (a.dtype == b.dtype and torch.equal(a, b))


@pytest.mark.parametrize("num_bits", [3, 16, 20])
@pytest.mark.parametrize("text_dim", [0, 6])
def test_rows_come_back(tmp_path: Path, num_bits: int, text_dim: int) -> None:
    header = replace(HEADER, num_bits=num_bits, text_dim=text_dim)
    data = TokenShards(shards(tmp_path, [2, 3], header), shuffle=False)
    assert len(data) == 5
    for number in range(5):
        assert_same(data[number], row(number, header, number % 4))


def test_facts_are_read_from_the_footer(tmp_path: Path) -> None:
    path = shard_path(tmp_path, 7)
    write_shard(path, [row(0)], HEADER, work="w", left_out={"bad.mp4": "why"})
    facts = shard_facts(path)
    assert (facts.header, facts.rows, facts.work, facts.left_out) == (HEADER, 1, "w", {"bad.mp4": "why"})
    assert [p.name for p in tmp_path.iterdir()] == ["000007.parquet"]


def test_a_round_has_every_clip_once_and_rounds_differ(tmp_path: Path) -> None:
    folder = shards(tmp_path, [3, 0, 4, 2, 5])
    data = TokenShards(folder, length=42, window=2)
    names = [data[i].clip for i in range(42)]
    rounds = [names[i : i + 14] for i in (0, 14, 28)]
    assert all(sorted(names) == sorted(f"c{i}" for i in range(14)) for names in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    again = TokenShards(folder, length=42, window=2)
    assert [again[i].clip for i in reversed(range(42))] == names[::-1]
    assert [TokenShards(folder, seed=1)[i].clip for i in range(14)] != rounds[0]


def test_reading_on_holds_few_shards(tmp_path: Path) -> None:
    data = TokenShards(shards(tmp_path, [2] * 6), window=2)
    reads = 0
    for i in range(len(data)):
        before = set(data._held)
        data[i]
        reads += len(set(data._held) - before)
        assert len(data._held) <= 2
    assert reads == 6
    assert not pickle.loads(pickle.dumps(data))._held


def test_batches_are_pyramids_with_padded_texts(tmp_path: Path) -> None:
    data = TokenShards(shards(tmp_path, [4]), shuffle=False)
    batch = data.collate([data[i] for i in (1, 3, 0)])
    assert (batch.clips, batch.captions) == (("c1", "c3", "c0"), ("words 1", "words 3", "words 0"))
    assert batch.tokens.model == HEADER.model
    assert batch.tokens.geometry == GEOMETRY
    assert torch.equal(batch.tokens.levels[1][1], row(3).levels[1])
    assert batch.text is not None
    assert batch.text.mask.tolist() == [[True, False, False], [True] * 3, [False] * 3]
    assert torch.equal(batch.text.tokens[1], row(3, tokens=3).text.float())  # type: ignore[union-attr]
    assert not batch.text.tokens[2].any()
    assert data.collate([data[1], data[3]]).tokens.geometry.fps == 25.0
    fixed = TokenShards(tmp_path, shuffle=False, text_length=2)
    assert fixed.collate([fixed[3]]).text.mask.tolist() == [[True, True]]  # type: ignore[union-attr]


class TestRefused:
    def test_words_of_another_tokenizer(self, tmp_path: Path) -> None:
        folder = shards(tmp_path, [1])
        TokenShards(folder, ModelId(name="renamed", fingerprint="f" * 16))
        with pytest.raises(ShardError, match=r"holds words of m \(ffff.*not of m \(0000"):
            TokenShards(folder, ModelId(name="m", fingerprint="0" * 16))

    @pytest.mark.parametrize(
        "change", [{"settings": "other"}, {"model": ModelId(name="m", fingerprint="0" * 16)}, {"num_bits": 15}]
    )
    def test_mixed_shards(self, tmp_path: Path, change: dict[str, object]) -> None:
        folder, other = shards(tmp_path, [1, 1]), replace(HEADER, **change)  # type: ignore[arg-type]
        write_shard(shard_path(folder, 1), [row(9, other)], other)
        with pytest.raises(ShardError, match=r"000001.parquet was made by .* other settings"):
            TokenShards(folder)

    def test_an_unfinished_folder(self, tmp_path: Path) -> None:
        shard_path(shards(tmp_path, [1, 1, 1]), 1).unlink()
        with pytest.raises(ShardError, match="1 of 3 shards are missing"):
            TokenShards(tmp_path)

    def test_a_folder_without_clips(self, tmp_path: Path) -> None:
        with pytest.raises(ShardError, match="holds no clips"):
            TokenShards(shards(tmp_path, [0]))

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(ShardError, match=INDEX):
            TokenShards(tmp_path)
        (tmp_path / INDEX).write_text('{"format": "other", "version": 1}')
        with pytest.raises(ShardError, match="not of a pyratok-token-shard"):
            read_index(tmp_path)

    def test_damage(self, tmp_path: Path) -> None:
        folder = shards(tmp_path, [60])
        path = shard_path(folder, 0)
        whole = path.read_bytes()
        for position in np.linspace(0, len(whole) - 1, 60).astype(int):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
            try:
                data = TokenShards(folder, shuffle=False)
                found = [data[i] for i in range(60)]
            except ShardError as error:
                assert "000000.parquet" in str(error)  # noqa: PT017
            else:  # a byte that nobody reads, such as of statistics
                for number, item in enumerate(found):
                    assert_same(item, row(number, tokens=number % 4))
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ShardError, match="tokenize again"):
            TokenShards(folder)

    def test_a_parquet_file_of_another_kind(self, tmp_path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "a.parquet")
        with pytest.raises(ShardError, match="not a pyratok-token-shard"):
            shard_facts(tmp_path / "a.parquet")
