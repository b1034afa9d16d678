"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by ``content`` (text as UTF-8): a reader sees the old file or the new one, never a part.

    Raises OSError that names ``path``.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name in the folder of ``path`` for a file that takes its place, fsynced, when the block ends without an error.

    Whatever goes wrong, nothing is left under that name. OSErrors of the unfinished file, and those without a name as
    of a full disk, are raised again with the name that the caller knows.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except OSError as error:
        if error.filename is not None and str(error.filename) != str(temporary):
            raise
        raise OSError(error.errno, f"cannot be written ({error.strerror or error})", os.fspath(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder that is there, as long as the block lasts; the lock dies with the process.

    Without effect where the system or the file system knows no locks. Raises ValueError where another one is in it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(folder / ".lock", "w") as file:
        lock(file, f"another run works in {folder}; wait for its end, or choose another folder")
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)  # closing does not, while a loader process holds the file too


def lock(file: IO[Any], refusal: str) -> None:
    """Keep others from locking an open file until it is closed or the process ends.

    Without effect where the system or the file system knows no locks. Raises ValueError with ``refusal`` where another
    one holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(refusal) from None
    except OSError:  # a file system without locks
        pass


def sync(path: Path) -> None:
    """Bring the content of a file, or the names in a folder, to the disk."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
