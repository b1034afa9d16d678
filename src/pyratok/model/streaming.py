"""Streams: frames in and tokens out as soon as a latent step is complete, and the mirror.

Each push is one pass over the latent steps that it completes, continued from the state of the push before; so the
tokens are those of the whole video, and the memory is that of one push, however long the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

from pyratok.model.base import VideoTokenizer, check_video, pad_video
from pyratok.model.state import StreamState
from pyratok.types import Geometry, TextEmbedding, TokenPyramid, Video

StreamT = TypeVar("StreamT", bound="_Stream")


class _Stream:
    """A context that is closed at its end, whatever was in it."""

    def __init__(self, model: VideoTokenizer, state: StreamState | None) -> None:
        self.model = model
        self._state = state
        self._closed = False

    @property
    def state(self) -> StreamState | None:
        """After the latent steps done so far, None before the first; it can be saved, and continued more than once."""
        return self._state

    @property
    def steps(self) -> int:
        """Latent steps done so far."""
        return 0 if self._state is None else self._state.steps

    def close(self) -> None:
        """End the stream. Nothing is flushed, so that frames still waiting for their latent step are dropped."""
        self._closed = True

    def __enter__(self: StreamT) -> StreamT:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Source:
    """What stays the same from the first frames of a stream to its last: clips, rows and columns; rate; captions."""

    size: tuple[int, int, int]
    fps: float | None
    text: TextEmbedding | None


class EncodeStream(_Stream):
    """Frames to tokens, from :meth:`VideoTokenizer.stream`; a context manager.

    >>> with model.stream(fps=25) as stream:       # doctest: +SKIP
    ...     parts = [stream.push(frames) for frames in source]
    ...     parts.append(stream.flush())
    """

    def __init__(
        self,
        model: VideoTokenizer,
        fps: float | None = None,
        caption: str | Sequence[str] | None = None,
        state: StreamState | None = None,
    ) -> None:
        super().__init__(model, state)
        Geometry(frames=1, height=1, width=1, strides=model.strides, fps=fps)  # a wrong rate is refused at once
        self._fps, self._caption = fps, caption
        self._source: _Source | None = None
        self._waiting: Tensor | None = None
        self._flushed = False

    @torch.no_grad()
    def push(self, frames: Tensor) -> TokenPyramid | None:
        """Tokens of all latent steps that ``frames`` complete, or None where they complete none.

        ``frames``: float ``[B, 3, n, H, W]``, ``[3, n, H, W]`` or ``[3, H, W]`` in [-1, 1], any n. The part's
        ``geometry.first_step`` counts the steps before it. The stream goes at the rate of its first frames, if they
        are a :class:`~pyratok.types.Video` and no other was asked for.

        Raises ValueError for what :meth:`VideoTokenizer.encode` refuses, for frames of another size or rate than the
        first ones, and after the stream's end; the stream is then as it was before the push.
        """
        self._check_open()
        if self._flushed:
            raise ValueError("this stream has been flushed, which padded its last step; open a new one")
        clips = _as_clips(frames)
        check_video(clips)
        source = self._source_of(clips, getattr(frames, "fps", None))
        clips = clips.as_subclass(Tensor).to(next(self.model.parameters()).device, torch.float32)
        if self._waiting is not None:
            clips = torch.cat([self._waiting, clips], dim=2)
        # The first latent step is a single frame.
        ready = clips.shape[2] - (clips.shape[2] - (self.steps == 0)) % self.model.latent_stride
        part = self._encode(clips[:, :, :ready], source) if ready else None
        # A copy: the caller may fill the same memory with the next frames.
        self._waiting = clips[:, :, ready:].clone() if ready < clips.shape[2] else None
        self._source = source
        return part

    @torch.no_grad()
    def flush(self) -> TokenPyramid | None:
        """Tokens of the frames still waiting, the last one repeated up to a whole latent step; None if none wait.

        Ends the stream: another flush gives None, another push is refused.
        """
        if self._flushed:
            return None
        self._check_open()
        part = None
        if self._waiting is not None:
            assert self._source is not None, "frames wait only after a push"
            part = self._encode(self._waiting, self._source)
        self._waiting, self._flushed = None, True
        return part

    def close(self) -> None:
        super().close()
        self._waiting = None

    def _encode(self, frames: Tensor, source: _Source) -> TokenPyramid:
        geometry = Geometry(
            frames=frames.shape[2],
            height=frames.shape[3],
            width=frames.shape[4],
            strides=self.model.strides,
            fps=source.fps,
            first_step=self.steps,
        )
        signs, self._state = self.model.encode_chunk(pad_video(frames, geometry), self._state, source.text)
        return self.model.pack(signs, geometry)

    def _source_of(self, clips: Tensor, fps: float | None) -> _Source:
        """The stream's source, checked against these clips, or what they settle if they are the first ones."""
        batch, _, _, height, width = clips.shape
        size, source = (batch, height, width), self._source
        if source is not None and size != source.size:
            began, got = ("{} x {}x{}".format(*s) for s in (source.size, size))
            raise ValueError(f"this stream is of {began} pixels, got {got}; flush it and open a new one")
        rate = self._fps if source is None else source.fps
        if fps is not None and fps != rate and not (source is None and rate is None):
            raise ValueError(f"this stream has the frame rate {rate}, got {fps}; flush it and open a new one")
        if source is not None:
            return source
        return _Source(size, fps if rate is None else rate, self.model.embed_captions(self._caption, batch))

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("this stream is closed; open a new one with model.stream()")


class DecodeStream(_Stream):
    """Parts of a pyramid, in order, to the video of each, from :meth:`VideoTokenizer.decode_stream`; a context manager.

    >>> with model.decode_stream() as stream:      # doctest: +SKIP
    ...     clips = [stream.push(part) for part in parts]
    """

    def __init__(self, model: VideoTokenizer, levels: int | None = None, state: StreamState | None = None) -> None:
        super().__init__(model, state)
        if levels is not None and not 1 <= levels <= model.num_levels:
            raise ValueError(f"levels must be 1 to {model.num_levels}, got {levels}")
        self._levels = levels
        self._last: Geometry | None = None
        self._batch = 0

    @torch.no_grad()
    def push(self, tokens: TokenPyramid) -> Video:
        """Video float32 ``[B, 3, n, H, W]`` in [-1, 1] of the n true frames of this part.

        Parts may hold different numbers of levels. Raises ValueError for tokens of another model, for a part that
        does not continue the one before, and after the stream's end; the stream is then as it was.
        """
        if self._closed:
            raise ValueError("this stream is closed; open a new one with model.decode_stream()")
        self.model.check_tokens(tokens)
        self._check_continues(tokens)
        held = tokens if self._levels is None else tokens.prefix(self._levels)
        video, self._state = self.model.decode_chunk(self.model.signs_of(held), self._state)
        self._last, self._batch = tokens.geometry, tokens.batch_size
        return self.model.crop(video, tokens.geometry)

    def _check_continues(self, tokens: TokenPyramid) -> None:
        geometry, last = tokens.geometry, self._last
        if geometry.first_step != self.steps:
            raise ValueError(
                f"these tokens begin at latent step {geometry.first_step}, the stream is at step {self.steps}; "
                "decoding is causal: push the parts in order, from the first one or from a saved state"
            )
        if last is None:
            return
        if last.frames != last.padded[0]:
            raise ValueError("the part before ended within a latent step, so it was the last; open a new stream")
        for what, before, now in (
            ("size", (self._batch, last.height, last.width), (tokens.batch_size, geometry.height, geometry.width)),
            ("frame rate", last.fps, geometry.fps),
        ):
            if before != now:
                raise ValueError(f"this stream has the {what} {before}, got a part of {now}; open a new stream for it")


def _as_clips(frames: Tensor) -> Tensor:
    """``[3, n, H, W]`` and ``[3, H, W]`` as a batch of one clip; anything else as it is."""
    ndim = frames.ndim if isinstance(frames, Tensor) else 0
    return frames[None, :, None] if ndim == 3 else frames[None] if ndim == 4 else frames
