"""``pyratok watch``: live video to tokens, with what happens in them as a line on the terminal."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from pyratok.cli import common
from pyratok.cli.common import CaptionOption, FramesOption, JsonOption, ModelOption, Output, ShownStopwatch, SizeOption
from pyratok.report.units import human_bytes

if TYPE_CHECKING:
    from pyratok.runtime.live import Pulse
    from pyratok.types import TokenPyramid

Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="A file, a device, a URL that FFmpeg opens, or - for standard input.")
]


def watch(
    source: Source,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT.pyra", help="Keep the tokens, as they come.")
    ] = None,
    caption: CaptionOption = None,
    size: SizeOption = None,
    frames: FramesOption = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=0.001, metavar="S", help="Stop after S seconds of video.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, metavar="S", help="Give up after S seconds without a frame.")
    ] = 10.0,
    input_format: Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help="FFmpeg's name of the input format, where it cannot tell."),
    ] = None,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Turn live video into tokens until it ends or Ctrl-C is pressed.

    Every second of video gives a line: frames per second, milliseconds from the last frame that a latent step needs
    to its tokens, bits per second, and the novelty of each level: the share of the distinct words of this second that
    no second before had used. On a terminal the line stays in its place.

    However it ends, OUT.pyra is complete and holds all that was seen.
    """
    from pyratok.data.video_base import VideoError
    from pyratok.data.video_live import LiveSource
    from pyratok.runtime import live

    out, stopwatch = Output(json_file, *(name for name in (source, output, model) if name != "-")), ShownStopwatch()
    if output is not None:
        common.check_output(output, Path(source))
    with stopwatch.step("loading the model"):
        tokenizer = common.load_model(model)

    pulses: list[Pulse] = []
    failure: VideoError | None = None
    with LiveSource(source, timeout=timeout, size=size, input_format=input_format) as video:
        head = video.head
        most = min(frames or sys.maxsize, sys.maxsize if seconds is None else max(1, round(seconds * head.fps)))
        with _ctrl_c_calls(video.stop) as interrupted, _kept(output) as keep, _line(out.console) as show:
            try:
                for pulse in live.watch(tokenizer, islice(video, most), head.fps, keep, caption=caption):
                    pulses.append(pulse)
                    show(_said(pulse, head.fps))
            except VideoError as error:
                failure = error

    if pulses:
        total = pulses[-1].total_frames
        latency = sum(pulse.latency_ms * pulse.frames for pulse in pulses) / total
        end = "by Ctrl-C" if interrupted.is_set() else "as asked" if total >= most else "with the source"
        facts = {
            "frames": total,
            "height": head.height,
            "width": head.width,
            "fps": head.fps,
            "latency_ms": latency,
            "damaged_frames": video.num_damaged,
            "ended": end if failure is None else str(failure),
            "bytes": None if output is None else output.stat().st_size,
            "model": asdict(tokenizer.model_id),
        }
        shown = {
            "video": f"{total} frames of {head.width}x{head.height} at {head.fps:.5g} fps, {pulses[-1].seconds:.1f} s",
            "latency": f"{latency:.1f} ms",
        }
        if output is not None:
            shown = {"wrote": f"{output} ({human_bytes(output.stat().st_size)})"} | shown
        if video.num_damaged:
            shown["damaged"] = f"{video.num_damaged} frames could not be decoded and were left out"
        out.facts(shown | ({"ended": end} if failure is None else {}))
        out.finish({"input": source, "output": output} | facts | {"pulses": [asdict(pulse) for pulse in pulses]})
    if failure is not None:
        raise failure


@contextmanager
def _ctrl_c_calls(stop: Callable[[], None]) -> Iterator[threading.Event]:
    """The first Ctrl-C ends what is watched and sets the event; a second one does what it always does."""
    seen = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        seen.set()
        stop()

    ours = threading.current_thread() is threading.main_thread() and callable(before)
    if ours:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield seen
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _kept(path: Path | None) -> Iterator[Callable[[TokenPyramid], None]]:
    """Where parts go: into a growing file, which is made when the first one comes, or nowhere."""
    from pyratok.codec.container import PyraWriter

    with ExitStack() as stack:
        writer: PyraWriter | None = None

        def keep(part: TokenPyramid) -> None:
            nonlocal writer
            if path is None:
                return
            if writer is None:
                writer = stack.enter_context(PyraWriter(path, overwrite=True))
            writer.append(part)

        yield keep


@contextmanager
def _line(console: Console) -> Iterator[Callable[[str], None]]:
    """Shows lines in one place of a terminal, or one after another where there is none."""
    if not console.is_terminal:
        yield lambda line: typer.echo(line, err=console.stderr)
        return
    with Live(Text("waiting for a second of video"), console=console, refresh_per_second=4) as shown:
        yield lambda line: shown.update(Text(line, no_wrap=True, overflow="ellipsis"))


def _said(pulse: Pulse, fps: float) -> str:
    novelty = " ".join(f"{100 * share:.0f}%" for share in pulse.novelty)
    return (
        f"{pulse.seconds:7.1f} s  {pulse.fps:6.1f} of {fps:.4g} fps  {pulse.latency_ms:6.1f} ms  "
        f"{pulse.bits_per_second / 1000:8.1f} kbit/s  novelty {novelty}"
    )
