"""Run a benchmark: items shared out to processes, answers kept as they come, so that a killed run goes on.

::

    FOLDER/run.json                  what is being done; a run of anything else is refused there
    FOLDER/answers-I-of-N.jsonl      one line per item, appended and synced when it is answered
    FOLDER/record.json               the result, and what the benchmark wants to give beside it

Numbers are computed from what the files hold, whoever wrote it when, so a run that was killed and resumed gives the
record of one that was not.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from pyratok.data.video_io import VideoError
from pyratok.eval.base import versions
from pyratok.eval.benchmarks.contract import (
    Answer,
    Benchmark,
    BenchmarkRecord,
    Item,
    ItemT,
    check_revision,
    first_of,
)
from pyratok.files import alone_in, lock, sync, write_atomically

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

    from pyratok.model.base import VideoTokenizer

UNREADABLE = "unreadable"
"""The only key in the answer of an item whose file cannot be read; its value is the cause."""

_POLL_SECONDS = 0.2

Progress = Callable[[int, int], None]
"""Told the items answered, also in earlier runs, and their number."""


def run_benchmark(
    benchmark: Benchmark[ItemT],
    load_model: Callable[[], VideoTokenizer],
    folder: Path,
    *,
    workers: int = 1,
    limit: int | None = None,
    any_revision: bool = False,
    on_progress: Progress = lambda done, total: None,
) -> BenchmarkRecord:
    """Answer what ``folder`` holds no answers to yet, score everything, write and return the record.

    ``load_model`` is called in every process and not at all by benchmarks without a model; with several ``workers``
    it and the benchmark are sent to them. ``limit``: that many items, drawn the same way every time.
    ``any_revision``: go on also where the annotations are not those that are distributed.

    Raises: ValueError for a dataset that is not there or of another revision, a folder of another run, two runs in
    one folder, and where nothing can be read; whatever a model raises, after which the same call goes on.
    """
    if workers < 1 or (limit is not None and limit < 1):
        raise ValueError(f"workers and limit are at least 1, got {workers} and {limit}")
    loaded = benchmark.load()
    if not any_revision:
        check_revision(benchmark.name, loaded)
    if repeated := [key for key, count in Counter(item.key for item in loaded.items).items() if count > 1]:
        raise ValueError(f"{benchmark.name}: {', '.join(repeated[:5])} named more than once in the annotations")
    items = first_of(loaded.items, limit)
    model = load_model() if benchmark.needs_model else None
    identity = None if model is None else model.model_id
    weights = None if model is None else model.digest()[:16]

    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        _claim(
            folder,
            {
                "protocol": benchmark.protocol.to_dict(),
                "data": str(benchmark.data.absolute()),
                "model": None if identity is None else asdict(identity),
                "weights": weights,
                "versions": versions(),
            },
        )
        answered = _read_answers(folder)
        waiting = [item for item in items if item.key not in answered]
        before = len(items) - len(waiting)
        on_progress(before, len(items))
        if workers == 1 or len(waiting) <= 1:
            with _answers_file(folder, 0, 1) as append:
                for done, line in enumerate(_answered(benchmark, model, waiting), before + 1):
                    append(line)
                    on_progress(done, len(items))
        else:
            shards = [waiting[index::workers] for index in range(min(workers, len(waiting)))]
            _in_processes(benchmark, load_model, folder, shards, lambda done: on_progress(before + done, len(items)))
        answers = _read_answers(folder)
        unreadable = {item.key: answers[item.key][UNREADABLE] for item in items if UNREADABLE in answers[item.key]}
        pairs = [(item, answers[item.key]) for item in items if item.key not in unreadable]
        if not pairs:
            causes = "; ".join(list(unreadable.values())[:3])
            raise ValueError(f"{benchmark.name}: none of {len(items)} items can be read: {causes}")
        record = BenchmarkRecord(
            protocol=benchmark.protocol,
            model=identity,
            weights=weights,
            counts=loaded.counts,
            expected=loaded.expected,
            found=len(loaded.items),
            missing=loaded.missing,
            unreadable=unreadable,
            scored=len(pairs),
            limit=limit,
            scores=benchmark.score(pairs),
        )
        for name, content in benchmark.files(pairs).items():
            write_atomically(folder / name, content)
        write_atomically(folder / "record.json", json.dumps(record.to_dict(), indent=2) + "\n")
    return record


def _answered(
    benchmark: Benchmark[ItemT], model: VideoTokenizer | None, items: Sequence[ItemT]
) -> Iterator[dict[str, Any]]:
    """A line for the file of every item, as it is done."""
    if not items:
        return
    # Without a model only a benchmark that needs none is run.
    answer = benchmark.run(cast("VideoTokenizer", model))
    for item in items:
        try:
            said = answer(item)
        except VideoError as error:
            said = {UNREADABLE: str(error)}
        yield {"key": item.key, "answer": said}


# ------------------------------------------------------------------------------------------------- several processes


_counter: Synchronized[int] | None = None
"""In a process of the pool: the items that all of them have answered."""


def _in_processes(
    benchmark: Benchmark[ItemT],
    load_model: Callable[[], VideoTokenizer],
    folder: Path,
    shards: Sequence[Sequence[ItemT]],
    on_done: Callable[[int], None],
) -> None:
    """Every shard in a process of its own, which writes its own file; if one fails, the others finish theirs."""
    context = multiprocessing.get_context("spawn")
    counter = context.Value("l", 0)
    with ProcessPoolExecutor(
        len(shards), mp_context=context, initializer=_begin_process, initargs=(counter, len(shards))
    ) as pool:
        futures = [
            pool.submit(_work, benchmark, load_model, folder, shard, index, len(shards))
            for index, shard in enumerate(shards)
        ]
        waiting = set(futures)
        while waiting:
            waiting = wait(waiting, timeout=_POLL_SECONDS).not_done
            on_done(counter.value)
    try:
        for future in futures:
            future.result()
    except BrokenProcessPool:
        raise ValueError(
            f"{benchmark.name}: a process was ended from outside, most often for want of memory; run the same command "
            "again, which goes on where it stopped, with fewer --workers"
        ) from None


def _begin_process(counter: Synchronized[int], processes: int) -> None:
    global _counter
    _counter = counter
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


def _work(
    benchmark: Benchmark[ItemT],
    load_model: Callable[[], VideoTokenizer],
    folder: Path,
    items: Sequence[ItemT],
    index: int,
    shards: int,
) -> None:
    model = load_model() if benchmark.needs_model else None
    with _answers_file(folder, index, shards) as append:
        for line in _answered(benchmark, model, items):
            append(line)
            if _counter is not None:
                with _counter.get_lock():
                    _counter.value += 1


# ------------------------------------------------------------------------------------------------- the folder


def _claim(folder: Path, run: dict[str, Any]) -> None:
    """Write down what is done in the folder. Raises ValueError where something else was begun there."""
    path = folder / "run.json"
    run = json.loads(json.dumps(run))
    if path.exists():
        try:
            other = json.loads(path.read_text("utf-8"))
        except ValueError:
            other = {}
        if different := [name for name, value in run.items() if other.get(name) != value]:
            raise ValueError(
                f"{folder} holds answers of a run with another {' and '.join(different)}; "
                "choose another --out, or remove that folder"
            )
        return
    write_atomically(path, json.dumps(run, indent=2) + "\n")


@contextmanager
def _answers_file(folder: Path, index: int, shards: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that appends a line to the file of this process, to the disk; half a line at its end is cut off."""
    path = folder / f"answers-{index + 1}-of-{shards}.jsonl"
    with open(path, "ab") as file:
        lock(file, f"another process still writes {path}; wait for its end, or end it")
        content = path.read_bytes()
        file.truncate(content.rfind(b"\n") + 1)
        sync(folder)

        def append(line: dict[str, Any]) -> None:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

        yield append


def _read_answers(folder: Path) -> dict[str, Answer]:
    """Answers by key from all files of the folder, of however many processes; the last line may be half."""
    answers: dict[str, Answer] = {}
    for path in sorted(folder.glob("answers-*.jsonl")):
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                read = json.loads(line)
                answers[read["key"]] = read["answer"]
            except (ValueError, LookupError, TypeError):
                raise ValueError(
                    f"{path}, line {number} is damaged; remove that line, and its item is asked again"
                ) from None
    return answers


__all__ = ["UNREADABLE", "BenchmarkRecord", "Item", "run_benchmark"]
