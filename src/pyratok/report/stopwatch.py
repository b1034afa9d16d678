"""Named steps and how long they took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Times steps of a job; ``seconds`` maps every finished step, in order, to its wall-clock seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Run a step; one that raises is not recorded."""
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
