"""Ten minutes of 256x256 at 25 frames per second through pyratok-nano: is memory constant, and is it real time?

The sample clip, played forth and back, is streamed in blocks of frames into a ``.pyra`` file, and from there back to
video that nobody keeps. Each way has a process of its own, which notes what it holds at the end of every minute.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import in_fresh_process, parser, publish, resident_mib, sample

from pyratok import PyraTok, open_tokens
from pyratok.codec.container import PyraWriter

FPS = 25
LOOP = 80  # frames after which the sample clip begins anew


def stages(total: int, block: int, per_minute: int) -> Iterator[tuple[range, int | None]]:
    """Frames ``0 ... total - 1`` in blocks, and after which of them a minute is full, counted from 1."""
    for start in range(0, total, block):
        stop = min(start + block, total)
        yield range(start, stop), stop // per_minute if stop // per_minute > start // per_minute else None


def encode(path: str, dtype: str, size: int, block: int, total: int, per_minute: int) -> Callable[[], dict[str, Any]]:
    """For :func:`in_fresh_process`: stream the clip into the file ``path``."""
    model = PyraTok.from_pretrained(dtype=getattr(torch, dtype))
    clip = sample(LOOP, size)

    def work() -> dict[str, Any]:
        clock = Clock()
        with model.stream(fps=FPS) as stream, PyraWriter(path) as writer:
            for frames, minute in stages(total, block, per_minute):
                part = stream.push(clip[:, :, torch.arange(frames.start, frames.stop) % LOOP])
                if part is not None:
                    writer.append(part)
                clock.note(minute)
            part = stream.flush()
            if part is not None:
                writer.append(part)
        return {"minutes": clock.minutes}

    return work


def decode(path: str, dtype: str, size: int, block: int, total: int, per_minute: int) -> Callable[[], dict[str, Any]]:
    """For :func:`in_fresh_process`: stream the file ``path`` into video."""
    model = PyraTok.from_pretrained(dtype=getattr(torch, dtype))
    reader = open_tokens(path)
    steps = block // model.latent_stride

    def work() -> dict[str, Any]:
        clock, done = Clock(), 0
        with model.decode_stream() as stream:
            for start in range(0, reader.num_steps, steps):
                video = stream.push(reader.read(start, min(start + steps, reader.num_steps)))
                before, done = done, done + video.shape[2]
                clock.note(done // per_minute if done // per_minute > before // per_minute else None)
        assert done == total, f"{done} frames came back of {total}"
        return {"minutes": clock.minutes}

    return work


class Clock:
    """Memory and time at the end of every minute of video."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.minutes: list[dict[str, float]] = []

    def note(self, minute: int | None) -> None:
        if minute is not None:
            seconds = round(time.perf_counter() - self.start, 2)
            self.minutes.append({"minute": minute, "resident_mib": round(resident_mib(), 1), "seconds": seconds})


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    options.add_argument("--block", type=int, default=16, help="frames of a push, a multiple of those of a latent step")
    options = options.parse_args()
    minutes, size, per_minute = (2, 32, 40) if options.quick else (10, 256, 60 * FPS)
    settings = {"dtype": options.dtype, "size": size, "block": options.block}
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "long.pyra")
        for way, run in (("encode", encode), ("decode", decode)):
            found = in_fresh_process(run, path=path, **settings, total=minutes * per_minute, per_minute=per_minute)
            first, last = (found["minutes"][index]["resident_mib"] for index in (0, -1))
            found["times_real_time"] = round(minutes * per_minute / FPS / found["seconds"], 3)
            found["growth_percent"] = round(100 * (last / first - 1), 2)
            results[way] = found
    result = {
        "minutes": minutes,
        "fps": FPS,
        "dtype": options.dtype,
        "block": options.block,
        "size": (size, size),
        "results": results,
    }
    publish("long", result, options)


if __name__ == "__main__":
    main()
