"""Clips as their tokens, made once and met again and again: what a stage with finished tokens learns from.

```
FOLDER/DIGEST/000000.safetensors    the first SHARD clips: ids of every level, masks, captions, nouns
FOLDER/DIGEST/000001.safetensors    ...
```

Rendering and tokenising a clip takes longer than reading its tokens. Shards are whole or not there at all; those that
are there are not made again. The digest says which model's tokens of which clips they are, so that stages share them.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from pyratok.data.captioned import CaptionedBatch, CaptionedMix
from pyratok.data.datasets import batches, to_signed
from pyratok.files import replacing
from pyratok.model.pyratok import PyraTok
from pyratok.quantization.bits import signs_to_ids

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


class StoredClips(Dataset[StoredItem]):
    """The clips of some shards, ``length`` of them counted with repetition, every round in another order.

    Held in memory, some kilobytes each. Item i is a pure function of (seed, i) and the shards.
    """

    def __init__(self, shards: Sequence[Path], nouns: Sequence[str], *, length: int, seed: int = 0) -> None:
        tensors, texts = zip(*map(_read, shards), strict=True)
        count = sum(name.startswith("level") for name in tensors[0])
        self.levels = [torch.cat([part[f"level{level}"] for part in tensors]) for level in range(1, count + 1)]
        self.masks = torch.cat([part["masks"] for part in tensors])
        self.captions = [caption for text in texts for caption in text["captions"]]
        self.shown = [tuple(names) for text in texts for names in text["nouns"]]
        self.nouns, self.length, self.seed = tuple(nouns), length, seed
        self._order: tuple[int, np.ndarray] = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> StoredItem:
        if not 0 <= index < self.length:
            raise IndexError(f"clip {index} of {self.length}")
        turn, place = divmod(index, len(self.captions))
        if self._order[0] != turn:
            self._order = turn, np.random.default_rng((self.seed, turn)).permutation(len(self.captions))
        clip = int(self._order[1][place])
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
    tokenizer: PyraTok,
    clips: CaptionedMix,
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
def _tokenise(tokenizer: PyraTok, batch: CaptionedBatch) -> TokenBatch:
    weight = next(tokenizer.parameters())
    clips = to_signed(batch.videos).to(weight.device, weight.dtype).contiguous(memory_format=torch.channels_last_3d)
    levels = tuple(signs_to_ids(signs).cpu() for signs in tokenizer.signs(clips, None))
    return TokenBatch(levels=levels, captions=batch.captions, nouns=batch.nouns, masks=batch.masks)


def _write(path: Path, parts: Sequence[TokenBatch]) -> None:
    tensors = {
        f"level{number}": torch.cat(ids) for number, ids in enumerate(zip(*(p.levels for p in parts), strict=True), 1)
    }
    tensors["masks"] = (torch.cat([part.masks for part in parts]) * MASK_STEPS).round().to(torch.uint8)
    texts = {
        "captions": [caption for part in parts for caption in part.captions],
        "nouns": [names for part in parts for names in part.nouns],
    }
    with replacing(path) as unfinished:
        save_file(tensors, unfinished, {"texts": json.dumps(texts)})


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        texts: dict[str, Any] = json.loads(file.metadata()["texts"])
    return load_file(path), texts


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return "texts" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False
