"""What a video VAE must offer to carry pyramid tokens."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pyratok.config import WanVAEConfig


class VideoVAE(Protocol):
    """A causal video autoencoder.

    Frames T = 1 + k s of a clip become 1 + k steps of a feature with temporal stride s, and step j depends on no
    frame after ``j s``.
    """

    config: WanVAEConfig

    def encode_taps(self, video: Tensor) -> tuple[Tensor, ...]:
        """``[B, 3, T, H, W]`` in [-1, 1] to the features of every depth, shallow to deep, each ``[B, C, t, h, w]``."""
        ...

    def encode(self, video: Tensor) -> Tensor:
        """``[B, 3, T, H, W]`` in [-1, 1] to posterior mean and log-variance ``[B, 2 z, t, h, w]``."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """Latent ``[B, z, t, h, w]`` to video ``[B, 3, T, H, W]``, not clamped."""
        ...
