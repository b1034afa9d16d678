"""What every tokenizer does around its network: check, pad, pack, crop."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyratok.quantization.bits import ids_to_signs, signs_to_ids
from pyratok.text.base import TextEncoder
from pyratok.types import Geometry, ModelId, Stride, TextEmbedding, TokenPyramid, Video

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
    def signs(self, video: Tensor, text: TextEmbedding | None) -> Sequence[Tensor]:
        """Padded video to signs ``[B, K, t, h, w]`` per level."""

    @abstractmethod
    def reconstruct(self, signs: Sequence[Tensor]) -> Tensor:
        """Signs of the first levels to padded video, about [-1, 1]."""

    @abstractmethod
    def config_dict(self) -> dict[str, Any]:
        """Everything but the weights, JSON-ready."""

    @property
    def num_levels(self) -> int:
        return len(self.strides)

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
        signs = self.signs(padded, self.embed_captions(caption, video.shape[0]))
        return TokenPyramid(tuple(signs_to_ids(s) for s in signs), geometry, self.model_id, self.num_bits)

    @torch.no_grad()
    def decode(self, tokens: TokenPyramid, levels: int | None = None) -> Video:
        """Video float32 ``[B, 3, T, H, W]`` in [-1, 1] of the true size, from all levels held or the first ``levels``.

        Raises ValueError for tokens of another model, and for a time slice that does not begin at the first frame.
        """
        self._check_tokens(tokens)
        geometry = tokens.geometry
        if geometry.first_step:
            raise ValueError(
                f"these tokens begin at latent step {geometry.first_step}; decoding is causal and needs the steps "
                "before it: decode the whole pyramid and cut the video"
            )
        held = tokens if levels is None else tokens.prefix(levels)
        video = self.reconstruct(self._signs_of(held))[:, :, : geometry.frames, : geometry.height, : geometry.width]
        return Video(video.float().clamp(-1, 1).contiguous(), fps=geometry.fps)

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
        self._check_tokens(tokens)
        held = len(tokens.levels)
        if not -held <= level < held:
            raise ValueError(f"these tokens hold levels 0 to {held - 1}, asked for level {level}")
        signs = self._signs_of(tokens.prefix(level % held + 1))
        return self.read(signs).float().movedim(1, -1)

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

    def _check_tokens(self, tokens: TokenPyramid) -> None:
        # A renamed model reads the same: the fingerprint alone says what ids mean.
        if tokens.model.fingerprint != self.model_id.fingerprint:
            raise ValueError(f"these tokens were made by {tokens.model}, this model is {self.model_id}")
        if (tokens.geometry.strides, tokens.num_bits) != (self.strides, self.num_bits):
            raise ValueError(f"these tokens have other grids or words than {self.model_id}, whose name they bear")

    def _signs_of(self, tokens: TokenPyramid) -> list[Tensor]:
        parameter = next(self.parameters())
        return [ids_to_signs(ids.to(parameter.device), self.num_bits, dtype=parameter.dtype) for ids in tokens.levels]

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
