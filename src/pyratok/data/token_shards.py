"""Tokens of many clips as Parquet shards: what a prior learns from, without video and without an encoder.

```
DIR/shards.json       what all shards have in common, and how many there are
DIR/000000.parquet    one row per clip: clip, caption, fps, level1 .. levelL, pooled, text
DIR/000001.parquet    ...
```

Words of a level are a list in t, h, w order, uint16 where they have at most 16 bits; text embeddings are float16. The
schema of every shard says whose words they are (:class:`ShardHeader`), so that shards of different origin are never
mixed. A shard is whole or not there at all.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from pyratok.config import from_dict, to_dict
from pyratok.files import replacing, write_atomically
from pyratok.types import Geometry, ModelId, TextEmbedding, TokenPyramid

FORMAT, VERSION = "pyratok-token-shard", 1
INDEX = "shards.json"
KEY = b"pyratok"
"""Where in the metadata of a schema our own is."""


class ShardError(ValueError):
    """A shard that is missing, damaged, of another kind, or of another origin than its neighbours."""


@dataclass(frozen=True, kw_only=True)
class ShardHeader:
    """What the clips of all shards have in common.

    ``geometry`` is that of every clip but for its rate, which each row tells. ``text_encoder``: who made the embeddings
    of the captions, of width ``text_dim``; empty and 0 where there are none. ``settings``: digest of everything else
    that decides a row.
    """

    model: ModelId
    num_bits: int
    geometry: Geometry
    text_encoder: str = ""
    text_dim: int = 0
    settings: str = ""

    @property
    def grids(self) -> list[tuple[int, int, int]]:
        return [self.geometry.grid(level) for level in range(len(self.geometry.strides))]


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenRow:
    """A clip: int32 ids ``[t, h, w]`` per level; its caption, embedded as float16 ``pooled`` ``[D]`` and ``text``
    ``[N, D]``, zeros and N = 0 without one, both None where the shards hold no embeddings."""

    clip: str
    caption: str
    fps: float | None
    levels: tuple[Tensor, ...]
    pooled: Tensor | None = None
    text: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenClips:
    """A batch of rows; ``text`` float32, None where the shards hold no embeddings."""

    clips: tuple[str, ...]
    captions: tuple[str, ...]
    tokens: TokenPyramid
    text: TextEmbedding | None


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """What a shard says of itself; ``work``: digest of what it was made from, ``left_out``: clips without a row, and
    why."""

    header: ShardHeader
    rows: int
    work: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.parquet"


def write_shard(
    path: Path,
    rows: Sequence[TokenRow],
    header: ShardHeader,
    *,
    work: str = "",
    left_out: Mapping[str, str] | None = None,
) -> None:
    """Write a shard, of no rows at all if need be. Raises ImportError without pyarrow."""
    pa = _pyarrow()
    word = np.uint16 if header.num_bits <= 16 else np.int32

    def lists(values: Sequence[Tensor], dtype: Any) -> Any:
        ends = np.cumsum([0, *(value.numel() for value in values)], dtype=np.int32)
        flat = [value.numpy().astype(dtype).ravel() for value in values]
        return pa.ListArray.from_arrays(ends, pa.array(np.concatenate([np.empty(0, dtype), *flat])))

    columns = {
        "clip": pa.array([row.clip for row in rows], pa.string()),
        "caption": pa.array([row.caption for row in rows], pa.string()),
        "fps": pa.array([row.fps for row in rows], pa.float64()),
    }
    for level, grid in enumerate(header.grids):
        ids = [row.levels[level] for row in rows]
        assert all(tuple(value.shape) == grid for value in ids), f"level {level + 1} is not {grid} in every row"
        columns[f"level{level + 1}"] = lists(ids, word)
    if header.text_dim:
        for name in ("pooled", "text"):
            columns[name] = lists([getattr(row, name) for row in rows], np.float16)
    facts = {"format": FORMAT, "version": VERSION, "header": to_dict(header), "work": work}
    facts |= {"left_out": dict(left_out or {}), "grids": header.grids}
    table = pa.table(columns).replace_schema_metadata({KEY: json.dumps(facts)})
    with replacing(path) as unfinished:
        # Words hardly ever come twice in a row: a dictionary of them would only take room.
        pa.parquet.write_table(table, unfinished, compression="zstd", use_dictionary=False, write_page_checksum=True)


def shard_facts(path: Path) -> ShardFacts:
    """What a shard is, by its footer. Raises :class:`ShardError`."""
    pa = _pyarrow()
    try:
        with pa.parquet.ParquetFile(path) as file:
            said = json.loads((file.schema_arrow.metadata or {}).get(KEY, b"{}"))
            if (said.get("format"), said.get("version")) != (FORMAT, VERSION):
                raise ValueError(f"not a {FORMAT} of version {VERSION}")
            header = from_dict(ShardHeader, said["header"])
            return ShardFacts(header=header, rows=file.metadata.num_rows, work=said["work"], left_out=said["left_out"])
    except (OSError, ValueError, KeyError) as error:  # ArrowInvalid is a ValueError
        raise ShardError(f"{path}: cannot be read as a token shard ({error}); tokenize again") from error


def write_index(folder: Path, header: ShardHeader, shards: int) -> None:
    """Say what the folder holds, or will hold when its shards are all there."""
    said = {"format": FORMAT, "version": VERSION, "shards": shards, "header": to_dict(header)}
    write_atomically(folder / INDEX, json.dumps(said, indent=1) + "\n")


def read_index(folder: Path) -> tuple[ShardHeader, int]:
    """What :func:`write_index` wrote. Raises :class:`ShardError`."""
    try:
        said = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if (said["format"], said["version"]) != (FORMAT, VERSION):
            raise ValueError(f"not of a {FORMAT} of version {VERSION}")
        return from_dict(ShardHeader, said["header"]), int(said["shards"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{folder}: no folder of token shards ({INDEX}: {error}); make one by tokenizing") from error


class TokenShards(Dataset[TokenRow]):
    """The clips of a folder of shards, ``length`` of them counted with repetition (by default each once).

    Item i is a pure function of (seed, i) and the folder. Every round has another order: shards are shuffled, then
    rows within groups of ``window`` shards, so that reading on needs no more than these in memory. ``shuffle`` False
    keeps the order of the files. ``text_length``: embeddings of captions are padded or cut to that many tokens.

    Raises :class:`ShardError` for a folder that is not finished, shards that are not those of its index, and, where
    ``tokenizer`` is given, words of another one.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        tokenizer: ModelId | None = None,
        *,
        length: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        window: int = 4,
        text_length: int | None = None,
    ) -> None:
        folder = Path(folder)
        self.header, count = read_index(folder)
        model = self.header.model
        if tokenizer is not None and tokenizer.fingerprint != model.fingerprint:
            raise ShardError(f"{folder} holds words of {model}, not of {tokenizer}; tokenize the clips with that one")
        self.paths = [shard_path(folder, number) for number in range(count)]
        missing = [path for path in self.paths if not path.exists()]
        if missing:
            raise ShardError(f"{folder}: {len(missing)} of {count} shards are missing; tokenize again to go on")
        facts = [shard_facts(path) for path in self.paths]
        for path, fact in zip(self.paths, facts, strict=True):
            if fact.header != self.header:
                raise ShardError(f"{path} was made by {fact.header.model} with other settings than {INDEX} says")
        self.sizes = np.array([fact.rows for fact in facts], np.int64)
        if not self.sizes.sum():
            raise ShardError(f"{folder} holds no clips: none of the videos could be used")
        self.length = int(self.sizes.sum()) if length is None else length
        self.seed, self.shuffle, self.window, self.text_length = seed, shuffle, window, text_length
        self._order: tuple[int, np.ndarray] = -1, np.empty((0, 2), np.int64)
        self._held: OrderedDict[int, dict[str, Any]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": OrderedDict()}  # a worker reads its own

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> TokenRow:
        if not 0 <= index < self.length:
            raise IndexError(f"clip {index} of {self.length}")
        turn, place = divmod(index, int(self.sizes.sum()))
        if self._order[0] != turn:
            self._order = turn, self._round(turn)
        shard, row = map(int, self._order[1][place])
        columns = self._shard(shard)
        first, last = columns["ends"][row : row + 2] if self.header.text_dim else (0, 0)
        return TokenRow(
            clip=columns["clip"][row],
            caption=columns["caption"][row],
            fps=columns["fps"][row],
            levels=tuple(torch.from_numpy(ids[row].astype(np.int32)) for ids in columns["levels"]),
            pooled=torch.from_numpy(columns["pooled"][row].copy()) if self.header.text_dim else None,
            text=torch.from_numpy(columns["text"][first:last].copy()) if self.header.text_dim else None,
        )

    def collate(self, items: Sequence[TokenRow]) -> TokenClips:
        rates = {item.fps for item in items}
        geometry = replace(self.header.geometry, fps=rates.pop() if len(rates) == 1 else None)
        levels = tuple(torch.stack(ids) for ids in zip(*(item.levels for item in items), strict=True))
        return TokenClips(
            clips=tuple(item.clip for item in items),
            captions=tuple(item.caption for item in items),
            tokens=TokenPyramid(levels, geometry, self.header.model, self.header.num_bits),
            text=self._texts(items) if self.header.text_dim else None,
        )

    def _texts(self, items: Sequence[TokenRow]) -> TextEmbedding:
        parts = [item.text.float() for item in items if item.text is not None]
        wanted = self.text_length or max(1, *(len(part) for part in parts))
        lengths = torch.tensor([min(len(part), wanted) for part in parts])
        tokens = torch.stack([F.pad(part[:wanted], (0, 0, 0, max(0, wanted - len(part)))) for part in parts])
        pooled = torch.stack([item.pooled.float() for item in items if item.pooled is not None])
        return TextEmbedding(tokens=tokens, mask=torch.arange(wanted) < lengths[:, None], pooled=pooled)

    def _round(self, turn: int) -> np.ndarray:
        """``[n, 2]``: shard and row of every clip, in the order of a round."""
        rng = np.random.default_rng((self.seed, turn))
        shards = rng.permutation(len(self.sizes)) if self.shuffle else np.arange(len(self.sizes))
        groups = []
        for first in range(0, len(shards), self.window):
            group = shards[first : first + self.window]
            rows = np.concatenate(
                [np.stack([np.full(n, s), np.arange(n)], 1) for s, n in zip(group, self.sizes[group], strict=True)]
            )
            groups.append(rng.permutation(rows) if self.shuffle else rows)
        return np.concatenate(groups)

    def _shard(self, number: int) -> dict[str, Any]:
        if number not in self._held:
            while len(self._held) >= self.window:
                self._held.popitem(last=False)
            self._held[number] = _columns(self.paths[number], self.header)
        self._held.move_to_end(number)
        return self._held[number]


def _columns(path: Path, header: ShardHeader) -> dict[str, Any]:
    """Everything in a shard: words ``[rows, t, h, w]`` per level, text ``[sum(N), D]`` and where each row's ends."""
    pa = _pyarrow()
    try:
        with pa.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        rows = table.num_rows

        def values(name: str, *shape: int) -> np.ndarray:
            return table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(shape)

        columns = {name: table[name].to_pylist() for name in ("clip", "caption", "fps")}
        columns["levels"] = [values(f"level{level}", rows, *grid) for level, grid in enumerate(header.grids, start=1)]
        if header.text_dim:
            columns["pooled"] = values("pooled", rows, header.text_dim)
            columns["text"] = values("text", -1, header.text_dim)
            sizes = table["text"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
            columns["ends"] = np.cumsum([0, *sizes]) // header.text_dim
    except (OSError, ValueError, KeyError) as error:
        raise ShardError(f"{path}: damaged ({error}); delete it and tokenize again") from error
    return columns


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError("token shards need the package pyarrow: pip install 'pyratok[shards]'") from None
    return pyarrow
