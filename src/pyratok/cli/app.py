"""The command ``pyratok``.

Exit codes: 0 done; 1 a fault in pyratok or its installation; 2 bad input or usage (one line says what and what to
do; nothing is written); 130 interrupted. With ``PYRATOK_DEBUG=1`` in the environment errors come with a traceback.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer
from typer.main import get_command

import pyratok
from pyratok.cli import (
    ablate,
    demo,
    doctor,
    evaluate,
    export,
    generate,
    info,
    render,
    report,
    swap,
    tokenize,
    tokens,
    train,
    understand,
    watch,
)
from pyratok.data.manifests import LeftOutWarning

EXIT_INTERNAL = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

OUT_OF_MEMORY = ("DefaultCPUAllocator", "not enough memory", "out of memory")
"""How torch, whose error is a plain RuntimeError, says so on the CPU and on a GPU."""

app = typer.Typer(
    name="pyratok",
    help="Video as a pyramid of discrete tokens.",
    epilog="Exit codes: 0 done, 1 internal error, 2 bad input, 130 interrupted. PYRATOK_DEBUG=1 shows tracebacks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command()(tokens.encode)
app.command()(tokens.decode)
app.command()(tokens.reconstruct)
app.command()(watch.watch)
app.command()(render.render)
app.command()(tokenize.tokenize)
app.command()(info.info)
app.command()(understand.segment)
app.command()(understand.localize)
app.command()(understand.classify)
app.command()(understand.search)
app.command()(understand.ask)
app.command()(generate.generate)
app.command("continue")(generate.continue_)
app.command()(generate.inpaint)
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(export.app, name="export")
app.command()(train.train)
app.command()(ablate.ablate)
app.command()(swap.swap)
app.command()(report.report)
app.command()(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pyratok {pyratok.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (default: this process's) and leave with its exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code and prints at most one line of error."""
    with _readable_warnings(), _noted_interrupts() as interrupts:
        try:
            code = get_command(app).main(list(arguments), prog_name="pyratok", standalone_mode=False)
            if code == EXIT_INTERRUPTED:  # newer versions of typer turn an interrupt into this code, older ones raise
                raise KeyboardInterrupt
            return code if isinstance(code, int) else 0
        except (KeyboardInterrupt, typer.Abort):
            return _fail("interrupted", EXIT_INTERRUPTED)
        except Exception as error:
            if os.environ.get("PYRATOK_DEBUG"):
                traceback.print_exc()
            return _fail("interrupted", EXIT_INTERRUPTED) if interrupts else _report(error)


@contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """The Ctrl-Cs of this block: code that one meets, as the import of torch, may fail with an error of its own."""
    seen: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    usual = signal.default_int_handler
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is usual
    if ours:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield seen
    finally:
        if ours:
            signal.signal(signal.SIGINT, usual)


@contextmanager
def _readable_warnings() -> Iterator[None]:
    """Warnings without the line of code that gave them.

    What was left out of the data is listed again at the end: hours of training may lie between warning and result.
    """
    before, left_out = warnings.formatwarning, dict[str, str]()

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if isinstance(message, LeftOutWarning):
            left_out.update(message.causes)
        if os.environ.get("PYRATOK_DEBUG"):
            return before(message, category, filename, lineno, line)
        return f"pyratok: warning: {message}\n"

    warnings.formatwarning = show
    try:
        yield
    finally:
        warnings.formatwarning = before
        if left_out:
            lines = [f"  {name}: {cause}" for name, cause in left_out.items()]
            print("\n".join([f"pyratok: left out in all, {len(left_out)}:", *lines]), file=sys.stderr)


def _report(error: Exception) -> int:
    """One line for a person, and whose fault it is."""
    message = _message(error)
    if hasattr(error, "format_message"):  # a usage error of click, which typer may carry inside itself
        return _fail(message, EXIT_BAD_INPUT) if message else EXIT_BAD_INPUT  # without one, the help was shown
    if isinstance(error, OSError) and error.filename is not None:
        return _fail(f"{os.fspath(error.filename)}: {error.strerror}", EXIT_BAD_INPUT)
    if isinstance(error, (ValueError, OSError)):
        return _fail(message, EXIT_BAD_INPUT)
    if isinstance(error, MemoryError) or any(words in message for words in OUT_OF_MEMORY):
        return _fail("not enough memory; use --size S or --frames N", EXIT_BAD_INPUT)
    if isinstance(error, ImportError):
        return _fail(f"{message}; `pyratok doctor` says what is missing", EXIT_INTERNAL)
    hint = "" if os.environ.get("PYRATOK_DEBUG") else "; PYRATOK_DEBUG=1 shows where"
    return _fail(f"internal error: {type(error).__name__}: {message}{hint}", EXIT_INTERNAL)


def _message(error: Exception) -> str:
    """What an error says; of one in a loader process, which carries the traceback of that process, the last line."""
    text = str(error.format_message() if hasattr(error, "format_message") else error).strip()
    return re.sub(r"^[\w.]+: ", "", text.splitlines()[-1]) if "\nOriginal Traceback" in text else text


def _fail(message: str, code: int) -> int:
    print(f"pyratok: error: {' '.join(message.split())}", file=sys.stderr)
    return code
