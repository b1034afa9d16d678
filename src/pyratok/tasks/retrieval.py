"""Finding stored clips by what they show: an index over a folder of ``.pyra`` files.

A row of the index is one vector per clip and, of long clips, one per stretch of some seconds, so that a search can
say where. A search is a single product of a matrix with a vector, exact, ``O(R D)`` for R rows of D numbers: 1,000
clips at 384 dimensions are 1.5 MB and 0.4 million multiplications.

The file is safetensors: the tensor ``vectors`` float32 ``[R, D]`` and, under ``index`` in its metadata, JSON
with everything else (:class:`Index`, :class:`IndexedClip`) and the ``crc32`` of it all.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pyratok.codec.container import PyraFileError, PyraReader, open_tokens
from pyratok.config import from_dict
from pyratok.data.manifests import report_broken
from pyratok.files import write_atomically
from pyratok.model.base import VideoTokenizer
from pyratok.tasks.classification import check_texts
from pyratok.tasks.steps import step_edges, step_vectors
from pyratok.types import ModelId

FORMAT, VERSION = "pyratok-index", 1
INDEX_FILE = ".pyratok-index.safetensors"
"""Where :func:`open_index` keeps the index of a folder: in it, and out of sight."""
STRETCH = 10.0
"""Seconds."""

Times = tuple[float, float] | None
"""Start and end in seconds; None where the frame rate is unknown."""


class Hit(NamedTuple):
    """A clip that was found: where it fits best, in seconds (None for unknown), and the cosine there, in [-1, 1]."""

    path: Path
    score: float
    start: float | None
    end: float | None


@dataclass(frozen=True, kw_only=True)
class IndexedClip:
    """A file of the index, by its path below the folder with ``/``, and its rows: the whole clip, then its stretches.

    ``size`` in bytes and ``modified`` in nanoseconds tell whether it may have changed, ``content`` whether it has.
    """

    name: str
    size: int
    modified: int
    content: str
    times: tuple[Times, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """Unit vectors float32 ``[R, D]`` of the clips below ``folder``, their rows in the order of ``clips``.

    ``model`` made the tokens; ``head`` is the digest of the text head that read them (:func:`head_digest`).
    ``stretch``: the seconds of a stretch, about; None if clips have one vector each.
    """

    folder: Path
    model: ModelId
    head: str
    stretch: float | None
    clips: tuple[IndexedClip, ...]
    vectors: Tensor

    def __post_init__(self) -> None:
        rows = sum(len(clip.times) for clip in self.clips)
        if self.vectors.ndim != 2 or len(self.vectors) != rows or not all(clip.times for clip in self.clips):
            raise ValueError(f"{len(self.clips)} clips with {rows} rows do not fit vectors {list(self.vectors.shape)}")

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.clips)

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self.folder / clip.name for clip in self.clips)

    def search(self, query: str | Tensor, k: int = 10, *, model: VideoTokenizer | None = None) -> tuple[Hit, ...]:
        """The ``k`` clips (or all, if there are fewer) that fit a query best, best first.

        ``query``: a text, for which ``model`` is needed, or a vector ``[D]`` of the text space, of any length but 0,
        such as a row of ``model.embed_text`` or of :func:`~pyratok.tasks.classification.clip_vectors` for more of the
        same. A clip is as good as the best of its rows.

        Raises ValueError for k < 1, a text without letters, one without a model or with another one than the index
        was made with, and what is no such vector.
        """
        if k < 1:
            raise ValueError(f"a search gives at least one hit, got k = {k}")
        if isinstance(query, str):
            (text,) = check_texts([query], "query")
            if model is None:
                raise ValueError("to search by a text give the model that is to embed it, or search by a vector")
            self.check_model(model)
            query = model.embed_text([text])[0]
        width = self.vectors.shape[1]
        if query.shape != (width,):
            raise ValueError(f"a query is a text, or a vector [{width}] as this index holds, got {list(query.shape)}")
        if not query.isfinite().all() or not query.any():
            raise ValueError("a vector to search by has finite numbers, and not zeros alone")
        scores = self.vectors @ F.normalize(query.detach().float().cpu(), dim=0)
        best = torch.full((len(self),), -torch.inf).scatter_reduce(0, self._clip_of_row, scores, "amax")
        order = best.sort(descending=True, stable=True).indices[:k].tolist()
        return tuple(self._hit(number, scores) for number in order)

    def check_model(self, model: VideoTokenizer) -> None:
        """Raises ValueError unless the vectors of the index are what this model would give."""
        if self.model.fingerprint != model.model_id.fingerprint:
            raise ValueError(
                f"this index is of tokens made by {self.model}, this model is {model.model_id}; load the former, or "
                "index files that the latter made"
            )
        if self.head != head_digest(model):
            raise ValueError(
                f"this index was made with another text head than that of {model.model_id}; bring it up to date with "
                "build_index(model, folder)"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index, whole or not at all; the folder is remembered from where the file lies. Raises OSError."""
        folder = os.path.relpath(self.folder, Path(path).absolute().parent)
        header = {
            "format": FORMAT,
            "version": VERSION,
            "folder": Path(folder).as_posix(),
            "model": asdict(self.model),
            "head": self.head,
            "stretch": self.stretch,
            "clips": [asdict(clip) for clip in self.clips],
        }
        header["crc32"] = _crc(self.vectors, header)
        write_atomically(Path(path), save({"vectors": self.vectors.contiguous()}, {"index": json.dumps(header)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Index:
        """Raises ValueError for a file that is no index, a newer one, or damaged; OSError where there is none."""
        with open(path, "rb"):  # safetensors tells a missing file from a damaged one by its words alone
            pass
        try:
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {})["index"])
                vectors = file.get_tensor("vectors")
            if header.pop("crc32") != _crc(vectors, header) or vectors.dtype != torch.float32:
                raise ValueError("its checksum does not match")
            if (header.pop("format"), header.pop("version")) != (FORMAT, VERSION):
                raise ValueError(f"not a {FORMAT} of version {VERSION}")
            folder = Path(os.path.normpath(Path(path).absolute().parent / header.pop("folder")))
            clips = tuple(from_dict(IndexedClip, clip) for clip in header.pop("clips"))
            model = from_dict(ModelId, header.pop("model"))
            return cls(folder=folder, model=model, clips=clips, vectors=vectors, **header)
        except (SafetensorError, LookupError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{path} is no index that this version can read ({error}); name another file, or delete it and index "
                "again"
            ) from error

    @cached_property
    def _first_rows(self) -> list[int]:
        """Of every clip, and the row behind the last."""
        return [0, *accumulate(len(clip.times) for clip in self.clips)]

    @cached_property
    def _clip_of_row(self) -> Tensor:
        return torch.arange(len(self)).repeat_interleave(torch.tensor(self._first_rows).diff())

    def _hit(self, number: int, scores: Tensor) -> Hit:
        clip, first = self.clips[number], self._first_rows[number]
        own = scores[first : first + len(clip.times)]
        row = int(own.argmax())
        start, end = clip.times[row] or (None, None)
        return Hit(self.folder / clip.name, float(own[row]), start, end)


def build_index(
    model: VideoTokenizer,
    folder: str | os.PathLike[str],
    *,
    known: Index | None = None,
    stretch: float | None = STRETCH,
    on_file: Callable[[Path, int, int], None] = lambda path, number, total: None,
) -> Index:
    """Index the ``.pyra`` files in and below a folder, those that are hidden left alone.

    ``known``: an earlier index of the folder, whose rows are taken over for files that have not changed; the result
    is the same as without it. A file counts as unchanged if size and time of change are, or else if what it says of its
    tokens, checksums among it, is. ``on_file`` is called before each file with its number from 1 and their total.
    ``stretch``: clips of 1.5 times as many seconds or more also get a vector for every stretch of about that length;
    None for one vector per clip.

    Files that are damaged, made by another model, or hold several clips or not all levels are left out and reported
    at the end (:func:`~pyratok.data.manifests.report_broken`); of one that is still being written, what is there is
    taken. Raises ValueError where there is no such file or more than half of them are left out, and for a ``known``
    index of another model.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    if stretch is not None and not 0 < stretch < float("inf"):
        raise ValueError(f"a stretch is a positive number of seconds, or None for none, got {stretch}")
    if known is not None and known.model.fingerprint != model.model_id.fingerprint:
        known.check_model(model)
    paths = [path for path in sorted(folder.rglob("*.pyra")) if not _is_hidden(path.relative_to(folder))]
    if not paths:
        raise ValueError(f"no .pyra files in {folder}; make some with pyratok encode")
    head = head_digest(model)
    rows_of: dict[str, tuple[IndexedClip, Tensor]] = {}
    if known is not None and (known.folder, known.head, known.stretch) == (folder, head, stretch):
        pieces = known.vectors.split([len(clip.times) for clip in known.clips])
        rows_of = {clip.name: (clip, piece) for clip, piece in zip(known.clips, pieces, strict=True)}
    found: list[tuple[IndexedClip, Tensor]] = []
    left_out: dict[Path, str] = {}
    for number, path in enumerate(paths, start=1):
        on_file(path, number, len(paths))
        name = path.relative_to(folder).as_posix()
        try:
            found.append(_indexed(model, path, name, rows_of.get(name), stretch))
        except PyraFileError as error:
            left_out[path] = str(error).removeprefix(str(path)).lstrip(": ")
        except OSError as error:
            left_out[path] = (error.strerror or str(error)).lower()
    report_broken(f"files in {folder}", len(paths), left_out)
    clips, vectors = zip(*found, strict=True)
    return Index(
        folder=folder, model=model.model_id, head=head, stretch=stretch, clips=clips, vectors=torch.cat(vectors)
    )


def open_index(
    model: VideoTokenizer,
    folder: str | os.PathLike[str],
    *,
    file: str | os.PathLike[str] | None = None,
    stretch: float | None = STRETCH,
    on_file: Callable[[Path, int, int], None] = lambda path, number, total: None,
) -> Index:
    """The index of a folder, up to date: read from ``file`` if it is there, brought up to date, and written back.

    ``file``: by default :data:`INDEX_FILE` in the folder. Raises as :func:`build_index` and :meth:`Index.load`: a file
    that is something else, or the index of another model, is never written over; OSError where it cannot be written.
    """
    path = Path(folder) / INDEX_FILE if file is None else Path(file)
    known = Index.load(path) if path.exists() else None
    index = build_index(model, folder, known=known, stretch=stretch, on_file=on_file)
    if known is None or _facts(known) != _facts(index):
        index.save(path)
    return index


def head_digest(model: VideoTokenizer) -> str:
    """16 hexadecimal digits for the text head, which gives vectors their meaning and is no part of the fingerprint.

    Over values rounded to bfloat16, so that a model that runs in it has the head that it has in float32.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name.startswith("text_head."):
            digest.update(name.encode())
            digest.update(value.detach().bfloat16().contiguous().view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _indexed(
    model: VideoTokenizer, path: Path, name: str, known: tuple[IndexedClip, Tensor] | None, stretch: float | None
) -> tuple[IndexedClip, Tensor]:
    """A file and its rows ``[n, D]``: those that are ``known``, if they still hold.

    Raises :class:`PyraFileError` for one that cannot be indexed.
    """
    stat = path.stat()
    facts: dict[str, Any] = {"name": name, "size": stat.st_size, "modified": stat.st_mtime_ns}
    if known is not None and (known[0].size, known[0].modified) == (stat.st_size, stat.st_mtime_ns):
        return known
    reader = open_tokens(path)
    if reader.model.fingerprint != model.model_id.fingerprint:
        raise PyraFileError(f"made by {reader.model}, not by {model.model_id}")
    if reader.batch_size != 1:
        raise PyraFileError(f"holds {reader.batch_size} clips; save each of them to a file of its own")
    if reader.num_levels != model.num_levels:
        raise PyraFileError(f"holds {reader.num_levels} of {model.num_levels} levels; encode it with all of them")
    content = _content(reader)
    if known is not None and known[0].content == content:
        return IndexedClip(**facts, content=content, times=known[0].times), known[1]
    times, vectors = _rows(model, reader, stretch)
    return IndexedClip(**facts, content=content, times=times), vectors


def _rows(model: VideoTokenizer, reader: PyraReader, stretch: float | None) -> tuple[tuple[Times, ...], Tensor]:
    """Times and unit vectors of the clip and, if it is long enough for two or more, of its stretches."""
    steps = step_vectors(model, reader)[0].cpu()
    edges, fps = step_edges(reader.geometry, reader.num_levels - 1), reader.geometry.fps
    cuts = [(0, len(steps))]
    if fps is not None and stretch is not None:
        count = min(len(steps), round((edges[-1] - edges[0]) / fps / stretch))
        bounds = np.linspace(0, len(steps), count + 1).round().astype(int).tolist() if count > 1 else []
        cuts += pairwise(bounds)
    times = tuple(None if fps is None else (float(edges[a]) / fps, float(edges[b]) / fps) for a, b in cuts)
    return times, F.normalize(torch.stack([steps[a:b].mean(0) for a, b in cuts]), dim=-1)


def _content(reader: PyraReader) -> str:
    """16 hexadecimal digits for the tokens of a file, from the checksums it keeps; its levels are not read."""
    facts = [reader.num_bits, asdict(reader.geometry), [segment.crcs for segment in reader.segments]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _facts(index: Index) -> tuple[Any, ...]:
    return index.folder, index.model, index.head, index.stretch, index.clips


def _crc(vectors: Tensor, header: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(header).encode(), zlib.crc32(vectors.contiguous().numpy().tobytes()))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
