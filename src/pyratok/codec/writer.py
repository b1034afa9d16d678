"""Writing a ``.pyra`` file that grows; :mod:`pyratok.codec.segments` describes it."""

from __future__ import annotations

import io
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from pyratok.codec.layout import SEGMENTED, CutShortError, Layout, PyraFileError, front_bytes, read_front
from pyratok.codec.segments import (
    from_fields,
    header_size,
    index_bytes,
    read_segment,
    scan,
    segment_header,
    to_fields,
)
from pyratok.files import lock
from pyratok.types import TokenPyramid

SEGMENT_STEPS = 16
"""Latent steps of a segment (64 frames where a step has 4): what a crash can lose, what random access has to read."""
SYNC_SECONDS = 1.0
"""The disk is made to keep what was written no more often than this, since it may take its time."""


class PyraWriter:
    """Writes a ``.pyra`` file that grows with the tokens appended to it.

    ``with PyraWriter(path) as writer: writer.append(part)``, parts in order, of any length, as
    :meth:`~pyratok.types.TokenPyramid.time_slice` or a stream gives them. Every ``segment_steps`` latent steps become a
    segment, however they were cut; the same tokens give the same bytes. A process that is killed loses what was not
    yet a segment (:meth:`flush` makes it one), a machine that fails also what was written within the last second or
    so. :meth:`close`, or the end of the block, writes what is left and the index. A block that an error ends keeps
    what was appended, without an index: :meth:`resume` goes on.

    A file that is there is refused, unless ``overwrite``; its tokens are gone when the first segment is written. Only
    one writer can be at work on a file (where the system knows locks).

    Raises: FileExistsError; ValueError for a file with another writer at work, or ``segment_steps`` below 1; OSError
    where it cannot be written, by any method. What was written before stays, and after :meth:`append` or :meth:`flush`
    nothing is lost: call :meth:`flush` when there is room again.
    """

    def __init__(self, path: str | os.PathLike[str], *, segment_steps: int = SEGMENT_STEPS, overwrite: bool = False):
        if segment_steps < 1:
            raise ValueError(f"a segment has at least one latent step, got segment_steps = {segment_steps}")
        self.path = Path(path)
        self.segment_steps = segment_steps
        self._pending: list[TokenPyramid] = []
        self._last: TokenPyramid | None = None
        self._headers: list[bytes] = []
        self._end = 0
        self._synced = time.monotonic()
        try:
            # "a" truncates nothing, and what is appended to an empty file stands at its beginning.
            self._file = io.FileIO(self.path, "a+" if overwrite else "x+")
        except FileExistsError as error:
            hint = "is there already; PyraWriter.resume goes on with it, overwrite=True replaces it"
            raise FileExistsError(error.errno, hint, os.fspath(path)) from None
        try:
            lock(self._file, f"{self.path}: another writer is at work on this file; wait for its end")
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def resume(cls, path: str | os.PathLike[str], *, segment_steps: int = SEGMENT_STEPS) -> PyraWriter:
        """Go on with a file that a writer left, behind its last whole segment; :attr:`next_step` says where that is.

        What is not whole is cut off, and so is the index. The file goes on with segments of its own length;
        ``segment_steps`` is for one that was cut before its first.

        Raises: :class:`~pyratok.codec.container.PyraFileError` for a file of another kind and for one that is damaged
        in the middle, which would lose the whole segments behind; ValueError where another writer is at work; OSError
        where there is none.
        """
        Path(path).stat()
        writer = cls(path, segment_steps=segment_steps, overwrite=True)
        try:
            writer._recover()
        except BaseException:
            writer._file.close()
            raise
        return writer

    @property
    def next_step(self) -> int:
        """``geometry.first_step`` of the part to append next; the first part of all may begin elsewhere than at 0."""
        return 0 if self._last is None else self._last.geometry.first_step + self._last.geometry.latent_steps

    def __enter__(self) -> PyraWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        with suppress(Exception):  # the error that ended the block is the one to tell
            self.flush()
        self._release()

    def append(self, part: TokenPyramid) -> None:
        """Add the latent steps that follow those before.

        Raises: ValueError for a part that does not continue the file (another model, size, rate, number of levels or
        clips, a gap, or anything behind a step that is not full), and for a writer that was closed.
        """
        self._check_open()
        if self._last is not None:
            part.check_follows(self._last)
        self._last = part
        self._pending.append(part)
        self._store(self.segment_steps)

    def flush(self) -> None:
        """Write what was appended as a segment of its own, however short, and make sure that the disk keeps it."""
        self._check_open()
        self._store(1)
        self._sync()

    def close(self) -> None:
        """Write what is left and the index. Closing again does nothing.

        Raises: ValueError, leaving no file, if nothing was ever appended.
        """
        if self._file.closed:
            return
        try:
            self._store(1)
            if not self._headers:
                raise ValueError(f"{self.path}: no tokens were appended")
            self._put(index_bytes(self._headers))
            self._sync()
        finally:
            self._release()

    def _store(self, least: int) -> None:
        """Write segments as long as ``least`` latent steps wait."""
        while (waiting := sum(part.geometry.latent_steps for part in self._pending)) >= least:
            group = TokenPyramid.concat(self._pending)
            steps = min(waiting, self.segment_steps)
            self._write(group.time_slice(0, steps))
            self._pending = [group.time_slice(steps, waiting)] if steps < waiting else []
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self._sync()

    def _write(self, group: TokenPyramid) -> None:
        layout = Layout.of(group)
        front = b"" if self._headers else self._front(layout)
        segment, levels = layout.pack(group, self._end + len(front) + header_size(layout))
        header = segment_header(segment)
        self._put(front + header + levels)
        self._headers.append(header)

    def _front(self, layout: Layout) -> bytes:
        """The beginning of the file; what the format cannot hold is refused here."""
        fields = to_fields(layout, self.segment_steps)
        from_fields(json.loads(json.dumps(fields)))
        return front_bytes(fields, SEGMENTED)

    def _put(self, data: bytes) -> None:
        """Append whole or not at all."""
        try:
            self._file.truncate(self._end)
            self._file.seek(self._end)
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._end)
            raise self._named(error) from error
        self._end += len(data)

    def _sync(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._named(error) from error
        self._synced = time.monotonic()

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, f"cannot be written ({error.strerror or error})", os.fspath(self.path))

    def _recover(self) -> None:
        """Take over what is whole of the file, and cut off the rest."""
        with self.path.open("rb") as file:
            try:
                front = read_front(file)
            except CutShortError:
                return
            if not front.flags & SEGMENTED:
                raise PyraFileError(f"{self.path} was written whole and cannot grow; load it and write its tokens anew")
            contents = scan(file, front)
            self.segment_steps = contents.segment_steps
            last, damaged = None, None
            for number, segment in enumerate(contents.segments, start=1):
                try:
                    part = read_segment(file, contents.layout, segment, contents.layout.num_levels, number)
                except PyraFileError as error:
                    damaged = damaged or error
                    continue
                if damaged is not None:
                    raise damaged
                last = part
                self._headers.append(segment_header(segment))
        # A machine that failed may leave the end of an unfinished file damaged; a complete file was on the disk.
        if damaged is not None and contents.complete:
            raise damaged
        if last is not None:
            self._last = last
            self._end = contents.segments[len(self._headers) - 1].end()
            self._file.truncate(self._end)

    def _check_open(self) -> None:
        if self._file.closed:
            raise ValueError(f"{self.path} is closed; PyraWriter.resume goes on with it")

    def _release(self) -> None:
        if self._file.closed:
            return
        if os.fstat(self._file.fileno()).st_size == 0:
            self.path.unlink(missing_ok=True)
        self._file.close()
