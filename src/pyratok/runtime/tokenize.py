"""From a manifest of videos to shards of their tokens, by any number of processes, from wherever it was cut off.

```
manifest -> slices of some files -> tokenize_slice -> one shard each (pyratok.data.token_shards)
```

The unit of work, :func:`tokenize_slice`, is a pure function of a slice, a tokenizer and the settings: whoever runs it
where and when makes the same rows, so that finished shards are left alone and others may be made anywhere.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path

import torch
from torch import Tensor

from pyratok.config import to_dict
from pyratok.data.cuts import SCRATCH, CutConfig, random_cuts
from pyratok.data.datasets import to_signed
from pyratok.data.manifests import Entry, gather, report_broken
from pyratok.data.token_shards import (
    INDEX,
    ShardError,
    ShardFacts,
    ShardHeader,
    TokenRow,
    read_index,
    shard_facts,
    shard_path,
    write_index,
    write_shard,
)
from pyratok.data.video_io import VideoError, iter_video
from pyratok.files import alone_in
from pyratok.model.base import VideoTokenizer
from pyratok.model.pyratok import PyraTok
from pyratok.types import Geometry, Video

BATCH_PIXELS = 16 * 17 * 64 * 64
"""Pixels, over all frames, that are tokenised at once: sixteen small clips, or one large one."""


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """What is made of a video: up to ``clips`` clips in a row, each of exactly ``frames`` frames.

    ``size``: the short side is scaled to so many pixels and a square is cut from the centre. ``fps``: sampled at that
    rate, by default the video's own. ``text``: embeddings of the captions are stored too. A shard holds the clips of
    ``files_per_shard`` videos, or of one where it is cut up.

    ``cuts``: random cuts in place of clips in a row, for more to learn from where videos are few and long.
    """

    frames: int = 17
    size: int = 64
    clips: int = 1
    fps: float | None = None
    text: bool = True
    files_per_shard: int = 64
    cuts: CutConfig = field(default_factory=CutConfig)

    def __post_init__(self) -> None:
        for name in ("frames", "size", "clips", "files_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise ValueError(f"fps must be a positive number, got {self.fps}")
        if self.cuts and (self.clips != 1 or self.fps is not None):
            raise ValueError("cuts are made anywhere in a video and at its own rate: give neither clips nor fps")

    @property
    def batch(self) -> int:
        """Clips tokenised at once."""
        return max(1, BATCH_PIXELS // (self.frames * self.size**2))


@dataclass(frozen=True, kw_only=True)
class ManifestSlice:
    """Videos whose clips share a shard; ``names`` are what rows call them, one per entry."""

    number: int
    names: tuple[str, ...]
    entries: tuple[Entry, ...]

    @property
    def digest(self) -> str:
        return _digest([[name, entry.caption] for name, entry in zip(self.names, self.entries, strict=True)])


@dataclass(frozen=True, kw_only=True)
class Clip:
    """``video`` float32 ``[1, 3, T, H, W]`` in [-1, 1] and what rows tell of it."""

    name: str
    caption: str
    video: Video


@dataclass(frozen=True, kw_only=True)
class TokenizeOutcome:
    """``shards`` there now, of which ``made`` just now; ``clips`` in all of them; ``left_out``: videos and why."""

    header: ShardHeader
    shards: int
    made: int
    clips: int
    left_out: dict[str, str]


def slices_of(manifest: str | os.PathLike[str], config: TokenizeConfig) -> list[ManifestSlice]:
    """What there is to do for a manifest, folder or file (:func:`pyratok.data.manifests.gather`).

    Images are clips of one frame, and passed over where more are asked for, unless a camera moves over them. A row is
    called by the path of its video, relative to the manifest or folder where it lies below. Raises ValueError where
    nothing is found.
    """
    media = gather([manifest])
    if config.cuts:
        entries = (media.videos if config.cuts.videos else ()) + (media.photos if config.cuts.photos else ())
    else:
        entries = media.videos + (media.photos if config.frames == 1 else ())
    if not entries:
        raise ValueError(f"{manifest}: no videos among what was found; images are clips of one frame: --frames 1")
    root = Path(os.path.abspath(manifest))  # noqa: PTH100
    root = root if root.is_dir() else root.parent
    names = [_name(entry.path, root) for entry in entries]
    step = 1 if config.cuts else config.files_per_shard
    return [
        ManifestSlice(number=number, names=tuple(names[first : first + step]), entries=entries[first : first + step])
        for number, first in enumerate(range(0, len(entries), step))
    ]


def _name(path: Path, root: Path) -> str:
    shown = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    return os.fsencode(shown).decode("utf-8", "backslashreplace")


def header_of(tokenizer: VideoTokenizer, config: TokenizeConfig) -> ShardHeader:
    """What the shards of these settings have in common; loads the text encoder where captions are embedded."""
    encoder, text_dim = "", 0
    if config.text:
        text = tokenizer.embed_captions("", 1)
        assert text is not None
        assert tokenizer.text_encoder is not None
        encoder, text_dim = tokenizer.text_encoder.name, text.pooled.shape[1]
    return ShardHeader(
        model=tokenizer.model_id,
        num_bits=tokenizer.num_bits,
        geometry=Geometry(
            frames=config.frames, height=config.size, width=config.size, strides=tokenizer.strides, fps=config.fps
        ),
        text_encoder=encoder,
        text_dim=text_dim,
        settings=_digest(to_dict(config)),
    )


def encode_clips(tokenizer: VideoTokenizer, clips: Sequence[Clip], *, text: bool = True) -> list[TokenRow]:
    """Rows of clips of one size. The tokens know no caption: they would only copy what a prior is told anyway."""
    tokens = tokenizer.encode(torch.cat([clip.video.as_subclass(Tensor) for clip in clips])).to("cpu")
    found = tokenizer.embed_captions([clip.caption for clip in clips], len(clips)) if text else None
    rows = []
    for index, clip in enumerate(clips):
        pooled = said = None
        if found is not None:
            told = bool(clip.caption.strip())
            said = found.tokens[index][found.mask[index] & told].cpu().half()
            pooled = (found.pooled[index] * told).cpu().half()
        levels = tuple(ids[index] for ids in tokens.levels)
        rows.append(
            TokenRow(clip=clip.name, caption=clip.caption, fps=clip.video.fps, levels=levels, pooled=pooled, text=said)
        )
    return rows


def tokenize_slice(part: ManifestSlice, tokenizer: VideoTokenizer, config: TokenizeConfig, folder: Path) -> ShardFacts:
    """Write the shard of a slice. Videos that cannot be read, or are too short, are listed in it."""
    header, left_out = header_of(tokenizer, config), dict[str, str]()
    clips, rows = _clips(part, config, left_out, folder), list[TokenRow]()
    while batch := list(islice(clips, config.batch)):
        rows += encode_clips(tokenizer, batch, text=config.text)
    write_shard(shard_path(folder, part.number), rows, header, work=part.digest, left_out=left_out)
    return ShardFacts(header=header, rows=len(rows), work=part.digest, left_out=left_out)


def _clips(part: ManifestSlice, config: TokenizeConfig, left_out: dict[str, str], scratch: Path) -> Iterator[Clip]:
    for name, entry in zip(part.names, part.entries, strict=True):
        several = config.cuts or config.clips > 1
        try:
            for number, video in enumerate(_videos(name, entry, config, scratch)):
                yield Clip(name=f"{name}#{number}" if several else name, caption=entry.caption, video=video)
        except (VideoError, OSError) as error:
            left_out[name] = str(error).removeprefix(f"{entry.path}: ")


def _videos(name: str, entry: Entry, config: TokenizeConfig, scratch: Path) -> Iterator[Video]:
    if config.cuts:
        made = random_cuts(entry, name, config.cuts, frames=config.frames, size=config.size, scratch=scratch)
        for clip, fps in made:
            yield Video(to_signed(torch.from_numpy(clip).permute(3, 0, 1, 2)[None]), fps=fps)
        return
    found, short = 0, 0
    wanted = config.frames * config.clips
    for video in iter_video(
        entry.path, chunk=config.frames, frames=wanted, size=config.size, crop=config.size, fps=config.fps
    ):
        if video.shape[2] < config.frames:
            short = video.shape[2]
            break
        found += 1
        yield video
    if not found:
        raise VideoError(f"has {short} frames, a clip needs {config.frames}")


def tokenize_manifest(
    tokenizer: VideoTokenizer,
    manifest: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    config: TokenizeConfig | None = None,
    *,
    workers: int = 1,
    source: str | None = None,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> TokenizeOutcome:
    """Make all shards of a manifest in ``folder`` that are not there yet.

    ``workers`` processes take slice after slice; more than one load the tokenizer themselves, from ``source`` (None:
    the embedded default). ``on_shard`` gets the number of shards there and of all. Whenever this is cut off, the same
    call goes on; a manifest that has changed since makes anew what it changes. Videos that cannot be used are warned
    of in the end.

    Raises ValueError where nothing is found, more than half of the videos are broken, the folder holds shards of
    another tokenizer or other settings, another process works in it, or a worker was killed.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    config, folder = config or TokenizeConfig(), Path(folder)
    parts, header = slices_of(manifest, config), header_of(tokenizer, config)
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        if (folder / INDEX).exists():
            there, _ = read_index(folder)
            if there != header:
                raise ShardError(
                    f"{folder} holds shards of {there.model} with other settings than these of {header.model}; "
                    "give the same ones again, or choose another folder"
                )
        for unfinished in folder.glob(".*.tmp"):  # of a process that was killed
            unfinished.unlink(missing_ok=True)
        for frames in folder.glob(f"{SCRATCH}*"):
            shutil.rmtree(frames, ignore_errors=True)
        write_index(folder, header, len(parts))
        facts = {part.number: fact for part in parts if (fact := _finished(part, header, folder))}
        left = [part for part in parts if part.number not in facts]
        on_shard(len(facts), len(parts))
        for number, fact in _work(left, tokenizer, config, folder, workers, source, header):
            facts[number] = fact
            on_shard(len(facts), len(parts))
    left_out = {name: cause for number in sorted(facts) for name, cause in facts[number].left_out.items()}
    report_broken(f"videos of {manifest}", sum(len(part.entries) for part in parts), left_out)
    clips = sum(fact.rows for fact in facts.values())
    return TokenizeOutcome(header=header, shards=len(parts), made=len(left), clips=clips, left_out=left_out)


def _finished(part: ManifestSlice, header: ShardHeader, folder: Path) -> ShardFacts | None:
    """What is known of the shard of a slice, if it is there."""
    path = shard_path(folder, part.number)
    if not path.exists():
        return None
    try:
        facts = shard_facts(path)
    except ShardError:
        return None
    return facts if (facts.header, facts.work) == (header, part.digest) else None


def _work(
    parts: Sequence[ManifestSlice],
    tokenizer: VideoTokenizer,
    config: TokenizeConfig,
    folder: Path,
    workers: int,
    source: str | None,
    header: ShardHeader,
) -> Iterator[tuple[int, ShardFacts]]:
    workers = min(workers, len(parts))
    if workers <= 1:
        for part in parts:
            yield part.number, tokenize_slice(part, tokenizer, config, folder)
        return
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(workers, context, _begin, (threads,))
    try:
        running = {pool.submit(_in_worker, part, source, config, folder, header): part for part in parts}
        for done in as_completed(running):
            yield running[done].number, done.result()
    except BrokenProcessPool:
        raise ValueError(
            "a worker was killed, most likely for want of memory; use fewer workers or a smaller size: the same "
            "command goes on where this one was"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(threads: int) -> None:
    """A worker ends with the process that started it, whatever ends that one, and says nothing when interrupted."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _in_worker(
    part: ManifestSlice, source: str | None, config: TokenizeConfig, folder: Path, header: ShardHeader
) -> ShardFacts:
    tokenizer = _load(source)
    if header_of(tokenizer, config) != header:
        raise ValueError(f"the model at {source or 'the package'} is not {header.model}: it has changed meanwhile")
    return tokenize_slice(part, tokenizer, config, folder)


@lru_cache(maxsize=1)
def _load(source: str | None) -> VideoTokenizer:
    return PyraTok.from_pretrained(source)


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
