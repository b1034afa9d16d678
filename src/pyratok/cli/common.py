"""What the commands share: options, checked outputs, progress, tables and JSON.

Nothing here imports torch: ``pyratok --help`` answers at once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from pyratok.report.files import write_atomically
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
JsonOption = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Also write the numbers as JSON; - is standard output.")
]

BYTES_PER_VALUE = 64
"""Rough working memory of a whole-clip pass, in bytes per value of the input: what refuses the hopeless in time."""


def load_model(name_or_path: str | None) -> VideoTokenizer:
    """The embedded default, or the model of a directory or hub id."""
    from pyratok.model.pyratok import PyraTok

    return PyraTok.from_pretrained(name_or_path)


def check_output(path: Path, *inputs: Path) -> None:
    """Refuse an output that cannot be written or is one of the inputs, before any work is done.

    Raises: ValueError with the cause and what to do.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"cannot write {path}: the folder {path.parent} is read-only")
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise ValueError(f"{path} is the input itself; choose another output")


def check_video_output(path: Path, fps: float | None, *inputs: Path) -> None:
    """:func:`check_output` for a video of ``fps``, or for an image (``fps`` None), by what its suffix can hold.

    Raises: ValueError or :class:`~pyratok.data.video_io.VideoError` with the cause and what to do.
    """
    from pyratok.data.video_io import VideoError, VideoWriter

    check_output(path, *inputs)
    VideoWriter(path, fps=fps or 1.0)
    if fps is None:
        try:
            VideoWriter(path, fps=None)
        except VideoError:
            raise ValueError(f"{path} is to hold a single image; give it a suffix such as .png") from None


def make_folder(path: Path) -> None:
    """Make a folder for outputs in a folder that is there.

    Raises: ValueError with the cause and what to do.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, not a folder; choose another --out")
    if not path.parent.is_dir():
        raise ValueError(f"cannot make {path}: there is no folder {path.parent}; create it first")
    path.mkdir(exist_ok=True)


def check_clip(path: Path, size: int | None = None, frames: int | None = None) -> VideoInfo:
    """What a clip is; refuses one that cannot be read or whose tokens cannot be computed in this memory.

    Raises: :class:`~pyratok.data.video_io.VideoError` or ValueError with the cause and what to do.
    """
    from pyratok.data.video_io import probe

    info, free = probe(path), available_memory()
    scale = 1.0 if size is None else size / min(info.height, info.width)
    height, width = round(info.height * scale), round(info.width * scale)
    count = min(n for n in (frames, info.frames or 1) if n is not None)
    needed = count * height * width * 3 * BYTES_PER_VALUE
    if free is not None and needed > free:
        raise ValueError(
            f"{path}: {count} frames of {width}x{height} need about {human_bytes(needed)} of memory, "
            f"{human_bytes(free)} are free; use --size S or --frames N"
        )
    return info


def available_memory() -> int | None:
    """Bytes of memory a program can still take, or None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


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


class Output:
    """Where a command's numbers go: a table on stdout for people, and JSON where ``--json`` says.

    With ``--json -`` stdout belongs to the JSON document, and tables move to stderr.
    """

    def __init__(self, json_target: str | None) -> None:
        self.json_target = json_target
        if json_target is not None and json_target != "-":
            check_output(Path(json_target))
        self.console = Console(stderr=json_target == "-")

    def facts(self, facts: Mapping[str, Any], title: str | None = None) -> None:
        """Names and values, one a line."""
        if title is not None:
            self.console.print(escape(title), style="bold", soft_wrap=True)
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in facts.items():
            table.add_row(name, escape(str(value)))
        self.console.print(table)

    def table(self, columns: Iterable[str], rows: Iterable[Iterable[str]], *, last_is_total: bool = False) -> None:
        """A table whose first column is text and whose others are numbers."""
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index else "left", no_wrap=index > 0)
        shown = [list(row) for row in rows]
        for index, row in enumerate(shown):
            style = "bold" if last_is_total and index == len(shown) - 1 else None
            table.add_row(*map(escape, row), style=style)
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


def plain(value: Any) -> Any:
    """A value as JSON holds it: paths as text, tuples as lists, numbers that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
