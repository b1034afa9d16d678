"""Tokenising video as it comes, and what there is to say about it while it does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pyratok.data.video_base import VideoError
from pyratok.data.video_pixels import from_uint8
from pyratok.model.base import VideoTokenizer
from pyratok.types import TokenPyramid


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """One second of a watched video, or the shorter rest at its end.

    ``seconds``: of video so far. ``frames``: in this second; ``total_frames``: so far. ``fps``: frames tokenised per
    second of the clock on the wall; a live source at a higher rate is falling behind. ``latency_ms``: mean time from
    the last frame that a latent step needs to its tokens. ``bits_per_second``: raw bits of the tokens per second of
    video. ``novelty``: per level the share of the distinct words of this second that no second before had used; 1 in
    the first second, towards 0 once the video shows nothing new.
    """

    seconds: float
    frames: int
    total_frames: int
    fps: float
    latency_ms: float
    bits_per_second: float
    novelty: tuple[float, ...]


class _Meter:
    """Adds up the parts of a second; memory is that of the vocabulary, however long the video."""

    def __init__(self, num_levels: int, rate: float, clock: Callable[[], float]) -> None:
        self._rate, self._clock = rate, clock
        self._known: list[set[int]] = [set() for _ in range(num_levels)]
        self._total = 0
        self._begin()

    def _begin(self) -> None:
        self._words: list[set[int]] = [set() for _ in self._known]
        self._frames, self._bits, self._latencies = 0, 0, list[float]()
        self._began = self._clock()

    def add(self, part: TokenPyramid, latency: float) -> None:
        """``latency``: seconds."""
        self._frames += part.geometry.frames
        self._bits += part.num_tokens * part.num_bits
        self._latencies.append(latency)
        for words, ids in zip(self._words, part.levels, strict=True):
            words.update(ids.unique().tolist())

    @property
    def is_due(self) -> bool:
        return self._frames >= self._rate

    @property
    def is_empty(self) -> bool:
        return not self._frames

    def pulse(self) -> Pulse:
        self._total += self._frames
        elapsed = max(self._clock() - self._began, 1e-9)
        pulse = Pulse(
            seconds=self._total / self._rate,
            frames=self._frames,
            total_frames=self._total,
            fps=self._frames / elapsed,
            latency_ms=1000 * sum(self._latencies) / len(self._latencies),
            bits_per_second=self._bits * self._rate / self._frames,
            novelty=tuple(
                len(words - known) / len(words) for words, known in zip(self._words, self._known, strict=True)
            ),
        )
        for known, words in zip(self._known, self._words, strict=True):
            known |= words
        self._begin()
        return pulse


def watch(
    model: VideoTokenizer,
    pictures: Iterable[np.ndarray],
    fps: float,
    keep: Callable[[TokenPyramid], None],
    *,
    caption: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Pulse]:
    """Tokenise pictures, uint8 ``[H, W, 3]``, as they come; every part goes to ``keep``, every second gives a pulse.

    However the source ends, the frames that wait for their latent step are tokenised too (the last one repeated), and
    a last pulse tells of what no second was full of; only then is the source's VideoError raised.
    """
    meter = _Meter(model.num_levels, fps, clock)
    failure: VideoError | None = None

    def take(part: TokenPyramid | None, since: float) -> None:
        if part is not None:
            meter.add(part, clock() - since)
            keep(part)

    with model.stream(fps, caption) as stream:
        try:
            for picture in pictures:
                arrived = clock()
                take(stream.push(from_uint8(picture[None])), arrived)
                if meter.is_due:
                    yield meter.pulse()
        except VideoError as error:
            failure = error
        take(stream.flush(), clock())
        if not meter.is_empty:
            yield meter.pulse()
    if failure is not None:
        raise failure
