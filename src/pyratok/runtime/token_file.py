"""The token file of a video that is being encoded: short or growing, new or resumed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from pyratok.codec.container import PyraFileError, PyraReader, PyraWriter, open_tokens, save_tokens
from pyratok.model.base import VideoTokenizer
from pyratok.runtime.pieces import WHOLE_STEPS
from pyratok.types import TokenPyramid

SAME_WORDS = 0.99
"""Share of equal ids from which two encodings of a latent step are of the same frames: rounding changes far fewer."""


class TokenFile:
    """A ``.pyra`` file that is written at its end if it is short, and grows if it gets long, or is resumed."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self._path = path
        self._writer = PyraWriter.resume(path) if resume and path.exists() else None
        self._waiting: list[TokenPyramid] = []

    @property
    def next_step(self) -> int:
        """The latent step to go on with."""
        return 0 if self._writer is None else self._writer.next_step

    def append(self, part: TokenPyramid) -> None:
        self._waiting.append(part)
        if self._writer is None and sum(part.geometry.latent_steps for part in self._waiting) > WHOLE_STEPS:
            self._writer = PyraWriter(self._path, overwrite=True)
        if self._writer is not None:
            for waiting in self._waiting:
                self._writer.append(waiting)
            self._waiting.clear()

    def __enter__(self) -> TokenFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.__exit__(kind, error, trace)
        elif kind is None:
            save_tokens(TokenPyramid.concat(self._waiting), self._path)


def complete_file(model: VideoTokenizer, path: Path) -> PyraReader | None:
    """A file to be resumed, if it needs no more; None where there is something to do.

    Raises: ValueError for one that this model cannot go on with; PyraFileError for one that is complete and damaged.
    """
    try:
        reader = open_tokens(path)
    except (FileNotFoundError, PyraFileError):  # nothing whole in it yet, or it is refused when it is opened to grow
        return None
    if reader.model.fingerprint != model.model_id.fingerprint:
        raise ValueError(
            f"{path} was begun with {reader.model}, this model is {model.model_id}; resume with the former"
        )
    if (reader.batch_size, reader.geometry.first_step, reader.num_levels) != (1, 0, model.num_levels):
        raise ValueError(f"{path} holds no single clip from its first frame with all levels; encode into another file")
    if not reader.complete:
        return None
    reader.read(reader.num_steps - 1)
    return reader


def later(parts: Iterable[TokenPyramid], steps: int) -> Iterator[TokenPyramid]:
    """The parts of a stream that began at latent step ``steps``, counted from the first frame of the video.

    Of a stream that began anywhere else its first step is left out: it is a single frame, and stands for nothing.
    """
    for part in parts:
        if not steps or part.geometry.first_step:
            cut = part
        elif part.geometry.latent_steps > 1:
            cut = part.time_slice(1, part.geometry.latent_steps)
        else:
            continue
        yield replace(cut, geometry=replace(cut.geometry, first_step=cut.geometry.first_step + steps))


def continuing(parts: Iterable[TokenPyramid], held: PyraReader, source: Path) -> Iterator[TokenPyramid]:
    """Of parts that begin within a file, what lies behind its end, once its last step was found among them.

    Raises ValueError where that step is another one, or none.
    """
    step = held.num_steps
    is_known = False
    for part in parts:
        first, last = part.geometry.first_step, part.geometry.first_step + part.geometry.latent_steps
        if first < step <= last:
            again = part.time_slice(step - 1 - first, step - first)
            _check_same(again, held.read(step - 1, step), held.path, source)
            is_known = True
        if last > step:
            yield part if first >= step else part.time_slice(step - first, last - first)
    if not is_known:
        raise ValueError(f"{source} ends before the {held.geometry.frames} frames that {held.path} holds already")


def _check_same(again: TokenPyramid, held: TokenPyramid, path: Path, source: Path) -> None:
    """Raises ValueError unless the two are of the same frames."""
    if again.geometry == held.geometry:
        pairs = list(zip(again.levels, held.levels, strict=True))
        same = sum(int((a.cpu() == b).sum()) for a, b in pairs)
        if same >= SAME_WORDS * held.num_tokens:
            return
    raise ValueError(
        f"{path} was not made from {source} in this way, at latent step {held.geometry.first_step} it differs; resume "
        "with the video, the size and the caption it was begun with, or encode into another file"
    )
