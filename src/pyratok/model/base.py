"""What every tokenizer does around its network: check, pad, pack, crop; whole videos, chunks and streams."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyratok.model.state import Direction, StreamState
from pyratok.nn.carry import Carry
from pyratok.quantization.bits import ids_to_signs, signs_to_ids
from pyratok.text.base import TextEncoder
from pyratok.types import Geometry, ModelId, Stride, TextEmbedding, TokenPyramid, Video

if TYPE_CHECKING:
    from pyratok.model.streaming import DecodeStream, EncodeStream

# Rounding in a video reader may leave the range by this much; anything beyond is a wrong normalisation.
RANGE_TOLERANCE = 1e-2


class VideoTokenizer(nn.Module):
    """Video to :class:`TokenPyramid` and back. Subclasses give ``strides``, ``num_bits`` and the two networks."""

    name: str
    strides: tuple[Stride, ...]
    num_bits: int
    text_encoder: TextEncoder | None = None
    _fingerprint: str | None = None

    @abstractmethod
    def signs(self, video: Tensor, text: TextEmbedding | None, carry: Carry | None = None) -> Sequence[Tensor]:
        """Padded video to signs ``[B, K, t, h, w]`` per level; with a ``carry`` the video is a chunk of a stream."""

    @abstractmethod
    def reconstruct(self, signs: Sequence[Tensor], carry: Carry | None = None) -> Tensor:
        """Signs of the first levels to padded video, about [-1, 1]; with a ``carry`` a chunk of a stream."""

    @abstractmethod
    def config_dict(self) -> dict[str, Any]:
        """Everything but the weights, JSON-ready."""

    @property
    def num_levels(self) -> int:
        return len(self.strides)

    @property
    def latent_stride(self) -> int:
        """Frames of a latent step after the first, which is a single frame."""
        return max(t for t, _, _ in self.strides)

    @property
    def model_id(self) -> ModelId:
        """Name and fingerprint; in evaluation mode the latter is computed once and kept until ``train()`` or
        ``load_state_dict()``."""
        fingerprint = self.fingerprint() if self.training else self.pin_fingerprint()
        return ModelId(name=self.name, fingerprint=fingerprint)

    def pin_fingerprint(self) -> str:
        """Keep the fingerprint of the weights as they are: a later change of their type makes no other model."""
        if self._fingerprint is None:
            self._fingerprint = self.fingerprint()
        return self._fingerprint

    def fingerprint(self) -> str:
        """16 hex digits for what gives ids their meaning: :meth:`digest` without the name and the text head."""
        return self.digest(without=("name", "text_head"))[:16]

    def digest(self, without: Sequence[str] = ()) -> str:
        """SHA-256 over the configuration and every weight in float32, ``without`` some parts of the model."""
        digest = hashlib.sha256()
        config = {key: value for key, value in self.config_dict().items() if key not in without}
        digest.update(json.dumps(config, sort_keys=True).encode())
        for name, value in sorted(self.state_dict().items()):
            if name.partition(".")[0] not in without:
                digest.update(name.encode())
                digest.update(value.detach().float().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def train(self, mode: bool = True) -> VideoTokenizer:
        if mode:
            self._fingerprint = None
        return super().train(mode)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        self._fingerprint = None
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    # Not inference_mode, here and below: its results could neither be changed in place nor take part in training.
    @torch.no_grad()
    def encode(self, video: Tensor, caption: str | Sequence[str] | None = None) -> TokenPyramid:
        """Tokenise clips ``[B, 3, T, H, W]`` in [-1, 1], any T, H and W; T = 1 is an image.

        ``caption`` (one for all clips, or one per clip) lets text guide the quantizer; without one a learned null
        text stands in. Raises ValueError for a wrong shape, NaN, or values outside [-1, 1].
        """
        check_video(video)
        fps = getattr(video, "fps", None)
        video = video.as_subclass(Tensor)
        geometry = Geometry(
            frames=video.shape[2], height=video.shape[3], width=video.shape[4], strides=self.strides, fps=fps
        )
        parameter = next(self.parameters())
        padded = pad_video(video.to(parameter.device, torch.float32), geometry).to(parameter.dtype)
        return self.pack(self.signs(padded, self.embed_captions(caption, video.shape[0])), geometry)

    @torch.no_grad()
    def decode(self, tokens: TokenPyramid, levels: int | None = None) -> Video:
        """Video float32 ``[B, 3, T, H, W]`` in [-1, 1] of the true size, from all levels held or the first ``levels``.

        Raises ValueError for tokens of another model, and for a time slice that does not begin at the first frame.
        """
        self.check_tokens(tokens)
        if tokens.geometry.first_step:
            raise ValueError(
                f"these tokens begin at latent step {tokens.geometry.first_step}; decoding is causal and needs the "
                "steps before it: decode the whole pyramid and cut the video, or push part after part to decode_stream"
            )
        held = tokens if levels is None else tokens.prefix(levels)
        return self.crop(self.reconstruct(self.signs_of(held)), tokens.geometry)

    def stream(
        self,
        fps: float | None = None,
        caption: str | Sequence[str] | None = None,
        *,
        state: StreamState | None = None,
    ) -> EncodeStream:
        """A context to push frames to, which gives tokens as soon as the frames that they need are there.

        The parts together are what :meth:`encode` makes of the whole. ``state``: of a stream to go on with, from the
        first frame after its last latent step.
        """
        from pyratok.model.streaming import EncodeStream

        return EncodeStream(self, fps, caption, state)

    def decode_stream(self, levels: int | None = None, *, state: StreamState | None = None) -> DecodeStream:
        """A context to push the parts of a pyramid to, in order, which gives the video of each.

        ``levels``: decode from the first ones alone. ``state``: of a stream to go on with.
        """
        from pyratok.model.streaming import DecodeStream

        return DecodeStream(self, levels, state)

    @torch.no_grad()
    def encode_chunk(
        self, video: Tensor, state: StreamState | None = None, text: TextEmbedding | None = None
    ) -> tuple[Sequence[Tensor], StreamState]:
        """Signs ``[B, K, t, h, w]`` per level of one chunk of a video, and the state for the next chunk.

        ``video`` ``[B, 3, T, H, W]`` in [-1, 1], H and W multiples of the strides: 1 + k s frames where there is no
        ``state``, as at the start of a stream, k s frames after that, s being :attr:`latent_stride`. ``state`` stays
        as it is. Raises ValueError for another shape, and for a state of another model, size or direction.
        """
        if video.ndim != 5:
            raise ValueError(f"expected video [B, 3, T, H, W], got shape {tuple(video.shape)}")
        batch, _, _, height, width = video.shape
        state = self._state("encode", (batch, height, width), state)
        parameter, carry = next(self.parameters()), state.carry()
        signs = self.signs(video.to(parameter.device, parameter.dtype), text, carry)
        return signs, state.after(carry, self._latent_steps(signs[0], carry))

    @torch.no_grad()
    def decode_chunk(self, signs: Sequence[Tensor], state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """Padded video ``[B, 3, T, H, W]`` of one chunk, not clamped, and the state for the next chunk.

        ``signs``: ``[B, K, t, h, w]`` of the first levels, as :meth:`encode_chunk` gives them; a whole number of
        latent steps. ``state`` stays as it is. Raises ValueError as :meth:`encode_chunk` does.
        """
        batch, (_, stride_h, stride_w), (height, width) = signs[0].shape[0], self.strides[0], signs[0].shape[3:]
        state = self._state("decode", (batch, height * stride_h, width * stride_w), state)
        parameter, carry = next(self.parameters()), state.carry()
        steps = self._latent_steps(signs[0], carry)
        video = self.reconstruct([level.to(parameter.device, parameter.dtype) for level in signs], carry)
        return video, state.after(carry, steps)

    @torch.no_grad()
    def text_space(self, tokens: TokenPyramid, level: int = -1) -> Tensor:
        """Where each token of a level lies in the space of the text encoder: unit vectors ``[B, t, h, w, D_text]``.

        ``level`` counts from 0, or from the last one held with -1; a level is read together with those before it.
        Their cosine with :meth:`embed_text` says how much a place looks like a text. Float32.
        Raises ValueError for tokens of another model, a level that is not held, and a model without a text head.
        """
        return F.normalize(self.text_features(tokens, level), dim=-1)

    @torch.no_grad()
    def text_features(self, tokens: TokenPyramid, level: int = -1) -> Tensor:
        """:meth:`text_space` before normalisation: the length of a vector says how much its token has to say."""
        self.check_tokens(tokens)
        held = len(tokens.levels)
        if not -held <= level < held:
            raise ValueError(f"these tokens hold levels 0 to {held - 1}, asked for level {level}")
        signs = self.signs_of(led_by_a_frame(tokens).prefix(level % held + 1))
        return self.read(signs).float().movedim(1, -1)[:, -tokens.levels[level].shape[1] :]

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors ``[N, D_text]`` of texts in the space of :meth:`text_space`, float32."""
        return self._text().encode(texts).pooled.to(next(self.parameters()).device)

    def read(self, signs: Sequence[Tensor]) -> Tensor:
        """Signs of the first levels to features of the last of them in the text space ``[B, D_text, t, h, w]``."""
        raise ValueError(f"{self.name} has no text head: its tokens were not trained with language")

    def describe(self) -> dict[str, Any]:
        """Facts for people: name, fingerprint, size, levels."""
        return {
            "name": self.name,
            "fingerprint": self.model_id.fingerprint,
            "parameters": sum(p.numel() for p in self.parameters()),
            "levels": self.num_levels,
            "strides": [list(stride) for stride in self.strides],
            "bits_per_token": self.num_bits,
            "bits_per_pixel_asymptotic": sum(self.num_bits / (t * h * w) for t, h, w in self.strides),
            "dtype": str(next(self.parameters()).dtype).removeprefix("torch."),
        }

    def check_tokens(self, tokens: TokenPyramid) -> None:
        """Raises ValueError for tokens of another model."""
        # A renamed model reads the same: the fingerprint alone says what ids mean.
        if tokens.model.fingerprint != self.model_id.fingerprint:
            raise ValueError(f"these tokens were made by {tokens.model}, this model is {self.model_id}")
        if (tokens.geometry.strides, tokens.num_bits) != (self.strides, self.num_bits):
            raise ValueError(f"these tokens have other grids or words than {self.model_id}, whose name they bear")

    def pack(self, signs: Sequence[Tensor], geometry: Geometry) -> TokenPyramid:
        """Signs ``[B, K, t, h, w]`` of the first levels of a video, or of a part of it, as this model's tokens."""
        return TokenPyramid(tuple(signs_to_ids(s) for s in signs), geometry, self.model_id, self.num_bits)

    def crop(self, video: Tensor, geometry: Geometry) -> Video:
        """What the decoder gives, at the true size, float32 in [-1, 1]."""
        true = video[:, :, : geometry.frames, : geometry.height, : geometry.width]
        return Video(true.float().clamp(-1, 1).contiguous(), fps=geometry.fps)

    def signs_of(self, tokens: TokenPyramid) -> list[Tensor]:
        """Inverse of :meth:`pack`, on the model's device and in its type."""
        parameter = next(self.parameters())
        return [ids_to_signs(ids.to(parameter.device), self.num_bits, dtype=parameter.dtype) for ids in tokens.levels]

    def _state(self, direction: Direction, size: tuple[int, int, int], state: StreamState | None) -> StreamState:
        """``state``, if it is of such a stream of this model, or that of its start."""
        start = StreamState(direction=direction, model=self.model_id, size=size)
        if state is None:
            return start
        state.check(start)
        return state

    def _latent_steps(self, signs: Tensor, carry: Carry) -> int:
        """Latent steps of a chunk, from the signs ``[B, K, t, h, w]`` of its first level."""
        per_step = self.latent_stride // self.strides[0][0]
        steps, rest = divmod(signs.shape[2] - carry.at_start, per_step)
        if rest or steps + carry.at_start < 1:
            begins = "1 + " if carry.at_start else ""
            raise ValueError(f"a chunk has {begins}{per_step} k steps of the first level here, got {signs.shape[2]}")
        return steps + carry.at_start

    def embed_captions(self, caption: str | Sequence[str] | None, batch: int) -> TextEmbedding | None:
        """What :meth:`encode` conditions on: a caption per clip, or one for all ``batch`` clips; None for none."""
        if caption is None:
            return None
        captions = [caption] * batch if isinstance(caption, str) else list(caption)
        if len(captions) != batch:
            raise ValueError(f"{len(captions)} captions for {batch} clips")
        return self._text().encode(captions)

    def _text(self) -> TextEncoder:
        if self.text_encoder is None:
            from pyratok.text.minilm import MiniLM

            self.text_encoder = MiniLM()
        return self.text_encoder


def led_by_a_frame(part: TokenPyramid) -> TokenPyramid:
    """A part as a video of its own, one frame longer and that frame like its first step; the first part as it is.

    Networks fold time on the understanding that step 0 is a single frame, and would read a later part displaced.
    """
    geometry = part.geometry
    if not geometry.first_step:
        return part
    levels = tuple(torch.cat([ids[:, :1], ids], dim=1) for ids in part.levels)
    return replace(part, levels=levels, geometry=replace(geometry, frames=1 + geometry.frames, first_step=0))


def check_video(video: Tensor) -> None:
    """Refuse what is not a batch of clips in [-1, 1], saying what it is instead."""
    if not isinstance(video, Tensor):
        raise ValueError(f"expected a torch tensor [B, 3, T, H, W], got {type(video).__name__}")
    if video.ndim != 5 or video.shape[1] != 3:
        raise ValueError(f"expected video [B, 3, T, H, W], got shape {tuple(video.shape)}")
    if not video.numel():
        raise ValueError(f"the video is empty: shape {tuple(video.shape)}")
    if not video.is_floating_point():
        raise ValueError(f"expected floating-point values in [-1, 1], got {video.dtype}; scale uint8 by x / 127.5 - 1")
    low, high = (float(v) for v in torch.aminmax(video))
    if not (low == low and high == high):
        raise ValueError("the video holds NaN values")
    if low < -1 - RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise ValueError(f"values must lie in [-1, 1], got [{low:.4g}, {high:.4g}]; scale [0, 1] by 2 x - 1")


def pad_video(video: Tensor, geometry: Geometry) -> Tensor:
    """Repeat the last frame, row and column up to the padded size."""
    frames, height, width = geometry.padded
    extra = (0, width - video.shape[4], 0, height - video.shape[3], 0, frames - video.shape[2])
    return F.pad(video, extra, mode="replicate") if any(extra) else video
