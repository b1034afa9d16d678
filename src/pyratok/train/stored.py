"""Clips as their tokens, made once and met again and again: what a stage with finished tokens learns from.

```
FOLDER/DIGEST/000000.safetensors    the first SHARD clips: ids of every level, and what is known of each clip
FOLDER/DIGEST/000001.safetensors    ...
```

Rendering and tokenising a clip takes longer than reading its tokens. Shards are whole or not there at all; those that
are there are not made again. The digest says which model's tokens of which clips they are, so that stages share them.

Of captioned clips caption, nouns and masks are known, of questioned ones (:mod:`pyratok.data.questioned`) questions.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from pyratok.data.captioned import CaptionedBatch
from pyratok.data.datasets import ClipDataset, batches, to_signed
from pyratok.data.questioned import QuestionedBatch
from pyratok.files import replacing
from pyratok.model.base import VideoTokenizer
from pyratok.quantization.bits import ids_to_signs, signs_to_ids

SHARD = 512
"""Clips of a file: 1.7 MB of nano's, at 5x80x80."""
BATCH = 16
"""Clips tokenised at once."""
MASK_STEPS = 255
"""Masks are kept as bytes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredItem:
    """A clip: ``levels`` int32 ids ``[t, h, w]`` each, the rest as in a ``CaptionedItem``."""

    levels: tuple[Tensor, ...]
    caption: str
    nouns: tuple[str, ...]
    masks: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenBatch:
    """``levels`` int32 ids ``[B, t, h, w]`` each, ``masks`` float32 ``[B, MAX_OBJECTS, t, h, w]``, texts per clip."""

    levels: tuple[Tensor, ...]
    captions: tuple[str, ...]
    nouns: tuple[tuple[str, ...], ...]
    masks: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokenised:
    """Some clips of a shard: int32 ids ``[n, t, h, w]`` per level, and what is known of each clip, by name."""

    levels: tuple[Tensor, ...]
    tensors: Mapping[str, Tensor]
    texts: Mapping[str, list[Any]]


class Storable(ClipDataset, Protocol):
    """Clips of one shape, captioned or questioned; ``nouns`` are all that they may show."""

    frames: int
    size: int
    seed: int

    @property
    def nouns(self) -> tuple[str, ...]: ...


class Rounds:
    """Which of ``count`` things is met i-th: each once a round, every round in another order, by seed and i alone."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._order: tuple[int, np.ndarray] = -1, np.empty(0, np.int64)

    def __getitem__(self, index: int) -> int:
        turn, place = divmod(index, self.count)
        if self._order[0] != turn:
            self._order = turn, np.random.default_rng((self.seed, turn)).permutation(self.count)
        return int(self._order[1][place])


class StoredClips(Dataset[StoredItem]):
    """The clips of some shards, ``length`` of them counted with repetition, every round in another order.

    Held in memory, some kilobytes each. Item i is a pure function of (seed, i) and the shards.
    """

    def __init__(self, shards: Sequence[Path], nouns: Sequence[str], *, length: int, seed: int = 0) -> None:
        clips = read_shards(shards)
        self.levels, self.masks = clips.levels, clips.tensors["masks"]
        self.captions: list[str] = clips.texts["captions"]
        self.shown = [tuple(names) for names in clips.texts["nouns"]]
        self.nouns, self.length, self.rounds = tuple(nouns), length, Rounds(len(self.captions), seed)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> StoredItem:
        if not 0 <= index < self.length:
            raise IndexError(f"clip {index} of {self.length}")
        clip = self.rounds[index]
        return StoredItem(
            levels=tuple(ids[clip].int() for ids in self.levels),
            caption=self.captions[clip],
            nouns=self.shown[clip],
            masks=self.masks[clip].float() / MASK_STEPS,
        )

    def collate(self, items: Sequence[StoredItem]) -> TokenBatch:
        return TokenBatch(
            levels=tuple(torch.stack(ids) for ids in zip(*(item.levels for item in items), strict=True)),
            captions=tuple(item.caption for item in items),
            nouns=tuple(item.nouns for item in items),
            masks=torch.stack([item.masks for item in items]),
        )


def store_clips(
    tokenizer: VideoTokenizer,
    clips: Storable,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    workers: int = 1,
    bf16: bool = True,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Tokenise ``clips`` without their captions into shards under ``folder``, and return these in order.

    ``settings``, JSON-ready, say what the clips are made of: shards of the same ones are left as they are, so that a
    run that was killed goes on where it was. ``on_shard`` gets the number of shards there and of all.
    """
    shape = len(clips), clips.frames, clips.size, clips.seed
    said = json.dumps([tokenizer.model_id.fingerprint, bf16, *shape, clips.nouns, settings], sort_keys=True)
    digest = hashlib.sha256(said.encode()).hexdigest()[:16]
    count = -(-len(clips) // SHARD)
    folder = folder / digest
    shards = [folder / f"{number:06d}.safetensors" for number in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    ready = next((number for number, path in enumerate(shards) if not _is_whole(path)), count)
    if bf16 and ready < count:
        tokenizer = copy.deepcopy(tokenizer).bfloat16()
    # Whole shards are whole numbers of batches, so the stream may begin at any of them.
    stream = batches(clips, BATCH, ready * SHARD // BATCH, workers) if ready < count else iter(())
    for number in range(ready, count):
        size = min(SHARD, len(clips) - number * SHARD)
        parts = [_tokenise(tokenizer, next(stream)) for _ in range(size // BATCH)]
        if rest := size % BATCH:
            last = range(len(clips) - rest, len(clips))
            parts.append(_tokenise(tokenizer, clips.collate([clips[i] for i in last])))
        _write(shards[number], parts)
        on_shard(number + 1, count)
    return shards


@torch.no_grad()
def _tokenise(tokenizer: VideoTokenizer, batch: CaptionedBatch | QuestionedBatch) -> Tokenised:
    weight = next(tokenizer.parameters())
    clips = to_signed(batch.videos).to(weight.device, weight.dtype).contiguous(memory_format=torch.channels_last_3d)
    levels = tuple(signs_to_ids(signs).cpu() for signs in tokenizer.signs(clips, None))
    if isinstance(batch, QuestionedBatch):
        questions = [[asdict(question) for question in asked] for asked in batch.questions]
        return Tokenised(levels=levels, tensors={}, texts={"questions": questions})
    masks = (batch.masks * MASK_STEPS).round().to(torch.uint8)
    texts: dict[str, list[Any]] = {"captions": list(batch.captions), "nouns": list(batch.nouns)}
    return Tokenised(levels=levels, tensors={"masks": masks}, texts=texts)


def _joined(parts: Sequence[Tokenised]) -> Tokenised:
    return Tokenised(
        levels=tuple(torch.cat(ids) for ids in zip(*(part.levels for part in parts), strict=True)),
        tensors={name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors},
        texts={name: [told for part in parts for told in part.texts[name]] for name in parts[0].texts},
    )


def _write(path: Path, parts: Sequence[Tokenised]) -> None:
    clips = _joined(parts)
    tensors = {f"level{number}": ids for number, ids in enumerate(clips.levels, start=1)} | dict(clips.tensors)
    with replacing(path) as unfinished:
        save_file(tensors, unfinished, {"texts": json.dumps(clips.texts)})


def signs_of(levels: Sequence[Tensor], tokenizer: VideoTokenizer) -> tuple[Tensor, dict[str, Tensor]]:
    """Ids of a batch as signs: those of the last level, and those of the others under names for :func:`all_signs`."""
    signs = [ids_to_signs(ids, tokenizer.num_bits) for ids in levels]
    return signs[-1], {f"signs_{level}": value for level, value in enumerate(signs[:-1], start=1)}


def all_signs(last: Tensor, others: Mapping[str, Tensor], tokenizer: VideoTokenizer) -> list[Tensor]:
    """Signs of every level from what :func:`signs_of` gave."""
    return [*(others[f"signs_{level}"] for level in range(1, tokenizer.num_levels)), last]


def read_shards(shards: Sequence[Path]) -> Tokenised:
    """The clips of all shards, in order."""
    return _joined([_read(path) for path in shards])


def _read(path: Path) -> Tokenised:
    with safe_open(path, framework="pt") as file:
        texts: dict[str, list[Any]] = json.loads(file.metadata()["texts"])
    tensors = load_file(path)
    count = sum(name.startswith("level") for name in tensors)
    levels = tuple(tensors.pop(f"level{number}") for number in range(1, count + 1))
    return Tokenised(levels=levels, tensors=tensors, texts=texts)


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return "texts" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False
