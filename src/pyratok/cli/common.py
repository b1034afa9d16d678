"""What the commands share: options, checked outputs, progress, tables and JSON.

Nothing here imports torch: ``pyratok --help`` answers at once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from pyratok.data.memory import available_memory
from pyratok.files import write_atomically
from pyratok.report.stopwatch import Stopwatch
from pyratok.report.units import human_bytes, human_seconds

if TYPE_CHECKING:
    from pyratok.data.video_io import VideoInfo
    from pyratok.model.base import VideoTokenizer

ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="A model directory or hub id; without it, the one in the package."),
]
SizeOption = Annotated[
    int | None, typer.Option("--size", min=1, metavar="S", help="Scale the short side to S pixels; default: as it is.")
]
FramesOption = Annotated[
    int | None, typer.Option("--frames", min=1, metavar="N", help="Take the first N frames; default: all.")
]
LevelsOption = Annotated[
    int | None, typer.Option("--levels", min=1, metavar="N", help="Use the first N levels alone; default: all.")
]
CaptionOption = Annotated[
    str | None, typer.Option("--caption", metavar="TEXT", help="What the video shows; decoding never needs it.")
]
MemoryOption = Annotated[
    str | None,
    typer.Option("--memory", metavar="4GiB", help="The most that the process may hold; default: what is free."),
]
JsonOption = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Also write the numbers as JSON; - is standard output.")
]

BYTES_PER_VALUE = 64
"""Rough working memory of a whole-clip pass, in bytes per value of the input: what refuses the hopeless in time."""

PIPED_WIDTH = 1000
"""Columns of a table that goes into a file or a pipe, where nothing has to be cut."""


def load_model(name_or_path: str | None) -> VideoTokenizer:
    """The embedded default, or the model of a directory or hub id."""
    from pyratok.model.pyratok import PyraTok

    return PyraTok.from_pretrained(name_or_path)


def is_pyra(path: Path) -> bool:
    """By suffix or by its first bytes, so that a renamed file is known and a damaged one is reported as what it was."""
    from pyratok.codec.container import MAGIC

    with path.open("rb") as file:
        return path.suffix == ".pyra" or file.read(len(MAGIC)) == MAGIC


def check_output(path: Path, *inputs: Path) -> None:
    """Refuse an output that cannot be written or is one of the inputs, before any work is done.

    Raises: ValueError with the cause and what to do.
    """
    if str(path) == "-":
        raise ValueError("only --json takes - for standard output; name a file")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file; choose another output")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"cannot write {path}: the folder {path.parent} is read-only")
    if any(same_file(path, source) for source in inputs):
        raise ValueError(f"{path} is the input itself; choose another output")


def same_file(a: Path, b: Path) -> bool:
    """Do two names lead to one file, be it there or not yet?"""
    return os.path.realpath(a) == os.path.realpath(b) or (a.exists() and b.exists() and a.samefile(b))


def check_video_output(path: Path, fps: float | None, frames: int | None, *inputs: Path) -> None:
    """:func:`check_output` for a video of ``fps``, or for an image (``fps`` None), by what its suffix can hold.

    ``frames`` is None where nobody knows. Raises: ValueError or :class:`~pyratok.data.video_io.VideoError` with the
    cause and what to do.
    """
    from pyratok.data.video_io import FALLBACK_FPS, VideoWriter

    check_output(path, *inputs)
    is_still = VideoWriter(path, fps=fps or FALLBACK_FPS).is_still
    if fps is None and not is_still:
        raise ValueError(f"{path} is to hold a single image; give it a suffix such as .png")
    if fps is not None and is_still and frames != 1:
        raise ValueError(f"{path} can hold a single image only; write the video to .mp4")


def check_folder(path: Path) -> None:
    """Refuse a folder for outputs that cannot be written to or made.

    Raises: ValueError with the cause and what to do.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, not a folder; choose another --out")
    if not path.parent.is_dir():
        raise ValueError(f"cannot make {path}: there is no folder {path.parent}; create it first")
    if not os.access(path if path.is_dir() else path.parent, os.W_OK):
        raise ValueError(f"cannot write to {path}: read-only; choose another --out")


def check_clip(path: Path, size: int | None = None, frames: int | None = None, crop: int | None = None) -> VideoInfo:
    """What a clip is; refuses one that cannot be read or whose tokens cannot be computed in this memory.

    Raises: :class:`~pyratok.data.video_io.VideoError` or ValueError with the cause and what to do.
    """
    from pyratok.data.video_io import probe

    info = probe(path)
    scale = 1.0 if size is None else size / min(info.height, info.width)
    height, width = (round(side * scale) if crop is None else crop for side in (info.height, info.width))
    check_memory(path, min(n for n in (frames, info.frames or 1) if n is not None), height, width)
    return info


def check_memory(path: Path, frames: int, height: int, width: int, advice: str = "use --size S or --frames N") -> None:
    """Refuse, with ValueError, a clip whose pass through a model would take more memory than there is."""
    needed, free = frames * height * width * 3 * BYTES_PER_VALUE, available_memory()
    if free is not None and needed > free:
        raise ValueError(
            f"{path}: {frames} frames of {width}x{height} need about {human_bytes(needed)} of memory, "
            f"{human_bytes(free)} are free; {advice}"
        )


def progress_bar(console: Console, *, counted: bool = True, transient: bool = True) -> Progress:
    """A bar with the time gone and left, and how many of how many where ``counted``; only on a terminal."""
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn()]
    if counted:
        columns.append(MofNCompleteColumn())
    columns += [TimeElapsedColumn(), TimeRemainingColumn()]
    return Progress(*columns, console=console, transient=transient, disable=not console.is_terminal)


class ShownStopwatch(Stopwatch):
    """A stopwatch that shows the running step on the terminal; with ``keep`` the finished ones stay on it."""

    def __init__(self, *, keep: bool = False) -> None:
        super().__init__()
        self.console = Console(stderr=True)
        self.keep = keep

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        terminal = self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=not terminal) as progress:
            progress.add_task(escape(name), total=None)
            with super().step(name):
                yield
        if self.keep:
            self.console.print(f"[green]done[/] {escape(name)} [dim]{human_seconds(self.seconds[name])}[/]")

    @contextmanager
    def counted(self, name: str) -> Iterator[Callable[[int, int | None], None]]:
        """A step that tells how many frames are done, of how many if that is known; shown as a bar."""
        with progress_bar(self.console) as bar:
            task = bar.add_task(escape(name), total=None)
            with Stopwatch.step(self, name):
                yield lambda done, total: bar.update(task, completed=done, total=total)


class Output:
    """Where a command's numbers go: a table on stdout for people, and JSON where ``--json`` says.

    With ``--json -`` stdout belongs to the JSON document, and tables move to stderr. What the command reads or writes
    is ``taken``: refused, with ValueError, as a place for the JSON, and so are media and model files in its folders.
    """

    def __init__(self, json_target: str | None, *taken: str | Path | None) -> None:
        self.json_target = json_target
        if json_target is not None and json_target != "-":
            target = Path(json_target)
            for path in (Path(name) for name in taken if name is not None):
                if same_file(target, path) or _holds(path, target):
                    raise ValueError(f"--json {target} would replace what the command works on; name another file")
            check_output(target)
        self.console = Console(stderr=json_target == "-")
        if not self.console.is_terminal:
            self.console.width = PIPED_WIDTH

    def facts(self, facts: Mapping[str, Any], title: str | None = None) -> None:
        """Names and values, one a line."""
        if title is not None:
            self.console.print(_shown(title), style="bold", soft_wrap=True)
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in facts.items():
            table.add_row(name, _shown(value))
        self.console.print(table)

    def table(self, columns: Iterable[str], rows: Iterable[Iterable[str]], *, last_is_total: bool = False) -> None:
        """A table whose first column is text and whose others are numbers."""
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
        shown = [list(row) for row in rows]
        for index, row in enumerate(shown):
            style = "bold" if last_is_total and index == len(shown) - 1 else None
            table.add_row(*map(_shown, row), style=style)
        self.console.print(table)

    def finish(self, numbers: Mapping[str, Any]) -> None:
        """Write the JSON document, if one is wanted."""
        if self.json_target is None:
            return
        text = json.dumps(plain(numbers), indent=2, allow_nan=False) + "\n"
        if self.json_target == "-":
            typer.echo(text, nl=False)
        else:
            write_atomically(Path(self.json_target), text)


def _holds(folder: Path, file: Path) -> bool:
    """Is the file there, below this folder, and none that ``--json`` may have written before?"""
    is_ours = file.suffix == ".json" and not file.name.endswith(("config.json", "index.json"))
    return file.exists() and not is_ours and Path(os.path.realpath(folder)) in Path(os.path.realpath(file)).parents


def _shown(value: object) -> str:
    """Text without markup, nor bytes of a file name that are no UTF-8."""
    return escape(str(value).encode("utf-8", "replace").decode())


def plain(value: Any) -> Any:
    """A value as JSON holds it: paths as text, tuples as lists, numbers that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
