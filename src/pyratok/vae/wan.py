"""Wan 2.1 and Wan 2.2 causal video VAEs as one pass over the whole clip or a chunk of it, with taps at every depth.

```
video [B,3,T,H,W] -> patchify -> conv_in -> stage 0 -> ... -> stage S-1 -> middle -> head -> mean, log-variance
                                     tap 0            tap S-1     tap S
latent [B,z,t,h,w] -> conv_in -> middle -> stage S-1 -> ... -> stage 0 -> head -> unpatchify -> video
```

Source: Wan (arXiv 2503.20314), sec. 4.1; parameter names are those of diffusers' ``AutoencoderKLWan``.
A tap is the output of a stage's residual blocks, before it is downsampled. Every way through the VAE takes an optional
:class:`~pyratok.nn.carry.Carry`: then the clip at hand is one chunk of a longer one.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from pyratok.config import WanVAEConfig
from pyratok.nn.carry import Carry, at_start
from pyratok.vae.wan_blocks import (
    AverageDown,
    CausalConv3d,
    Downsample,
    DuplicateUp,
    MidBlock,
    ResidualBlock,
    RMSNorm,
    Upsample,
    norm_and_convolve,
    patchify,
    unpatchify,
)


class ResidualDownStage(nn.Module):
    """Stage of the Wan 2.2 encoder: residual blocks and downsampling beside an averaging shortcut."""

    def __init__(
        self, in_dim: int, out_dim: int, num_res_blocks: int, in_space: bool, in_time: bool, last: bool
    ) -> None:
        super().__init__()
        self.avg_shortcut = AverageDown(in_dim, out_dim, 2 if in_time else 1, 2 if in_space else 1)
        dims = [in_dim] + [out_dim] * num_res_blocks
        self.resnets = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(dims))
        self.downsampler = None if last else Downsample(out_dim, in_space, in_time)

    def forward(self, x: Tensor, carry: Carry | None = None) -> tuple[Tensor, Tensor]:
        """Features for the next stage, and the tap."""
        tap = x
        for block in self.resnets:
            tap = block(tap, carry, in_place=tap is not x)
        out = tap if self.downsampler is None else self.downsampler(tap, carry)
        return out + self.avg_shortcut(x), tap


class Encoder(nn.Module):
    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        dims = [config.base_dim * m for m in (1, *config.dim_mult)]
        in_time, in_space = (*config.temporal_downsample, False), (*config.halves_space, False)
        stages = len(config.dim_mult)
        self.conv_in = CausalConv3d(3 * config.patch_size**2, dims[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, (in_dim, out_dim) in enumerate(pairwise(dims)):
            last = i == stages - 1
            if config.is_residual:
                stage = ResidualDownStage(in_dim, out_dim, config.num_res_blocks, in_space[i], in_time[i], last)
                self.down_blocks.append(stage)
                continue
            for block in range(config.num_res_blocks):
                self.down_blocks.append(ResidualBlock(out_dim if block else in_dim, out_dim))
            if not last:
                self.down_blocks.append(Downsample(out_dim, in_space[i], in_time[i]))
        self.mid_block = MidBlock(dims[-1], config.mid_attention)
        self.norm_out = RMSNorm(dims[-1])
        self.conv_out = CausalConv3d(dims[-1], config.z_dim * 2, 3, padding=1)

    def taps(self, x: Tensor, carry: Carry | None = None) -> tuple[Tensor, ...]:
        taps: list[Tensor] = []
        x = self.conv_in(x, carry)
        for layer in self.down_blocks:
            if isinstance(layer, ResidualDownStage):
                x, tap = layer(x, carry)
                taps.append(tap)
                continue
            if isinstance(layer, Downsample):
                taps.append(x)
                x = layer(x, carry)
            else:
                x = layer(x, carry, in_place=True)
        if not isinstance(self.down_blocks[-1], ResidualDownStage):
            taps.append(x)
        return (*taps, self.mid_block(x, carry))

    def head(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        return norm_and_convolve(self.norm_out, self.conv_out, x, carry)


class UpStage(nn.Module):
    """Stage of the decoder: residual blocks, then upsampling; Wan 2.2 adds a duplicating shortcut."""

    def __init__(
        self, in_dim: int, out_dim: int, num_res_blocks: int, in_space: bool, in_time: bool, last: bool, residual: bool
    ) -> None:
        super().__init__()
        dims = [in_dim] + [out_dim] * (num_res_blocks + 1)
        self.resnets = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(dims))
        self.avg_shortcut = None
        # The reference calls the same layer by two names in its two variants.
        self.upsamplers: nn.ModuleList | None = None
        self.upsampler: Upsample | None = None
        if last:
            return
        if residual:
            self.avg_shortcut = DuplicateUp(in_dim, out_dim, 2 if in_time else 1, 2 if in_space else 1)
            self.upsampler = Upsample(out_dim, out_dim, in_space, in_time)
        else:
            self.upsamplers = nn.ModuleList([Upsample(out_dim, out_dim // 2, in_space, in_time)])

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        """``x`` may be overwritten."""
        h = x
        for block in self.resnets:
            h = block(h, carry, in_place=h is not x or self.avg_shortcut is None)
        for upsample in self.upsamplers or ([self.upsampler] if self.upsampler is not None else []):
            h = upsample(h, carry)
        return h if self.avg_shortcut is None else h + self.avg_shortcut(x, carry)


class Decoder(nn.Module):
    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        base = config.decoder_base_dim or config.base_dim
        dims = [base * m for m in (config.dim_mult[-1], *reversed(config.dim_mult))]
        in_time, in_space = (*config.temporal_downsample[::-1], False), (*config.halves_space[::-1], False)
        self.conv_in = CausalConv3d(config.z_dim, dims[0], 3, padding=1)
        self.mid_block = MidBlock(dims[0], config.mid_attention)
        self.up_blocks = nn.ModuleList()
        for i, (in_dim, out_dim) in enumerate(pairwise(dims)):
            if i and not config.is_residual:
                in_dim //= 2
            last = i == len(config.dim_mult) - 1
            self.up_blocks.append(
                UpStage(in_dim, out_dim, config.num_res_blocks, in_space[i], in_time[i], last, config.is_residual)
            )
        self.norm_out = RMSNorm(dims[-1])
        self.conv_out = CausalConv3d(dims[-1], 3 * config.patch_size**2, 3, padding=1)

    def forward(self, z: Tensor, carry: Carry | None = None) -> Tensor:
        x = self.mid_block(self.conv_in(z, carry), carry)
        for stage in self.up_blocks:
            x = stage(x, carry)
        return norm_and_convolve(self.norm_out, self.conv_out, x, carry)


class WanVAE(nn.Module):
    """Implements :class:`pyratok.vae.base.VideoVAE` for the Wan family."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = CausalConv3d(config.z_dim * 2, config.z_dim * 2, 1)
        self.post_quant_conv = CausalConv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)

    def _prepare(self, video: Tensor, begins: bool) -> Tensor:
        if video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"expected video [B, 3, T, H, W], got shape {tuple(video.shape)}")
        stride = self.config.latent_stride
        frames, height, width = video.shape[-3:]
        if frames < 1 or (frames - begins) % stride[0] or height % stride[1] or width % stride[2]:
            what, wanted = ("clip", f"1 + {stride[0]} k") if begins else ("later chunk", f"{stride[0]} k")
            raise ValueError(
                f"a {what} of {frames}x{height}x{width} does not fit the stride {stride}: "
                f"pad it to {wanted} frames and multiples of {stride[1]}x{stride[2]} pixels"
            )
        return patchify(video, self.config.patch_size).contiguous(memory_format=torch.channels_last_3d)

    def encode_taps(self, video: Tensor, carry: Carry | None = None) -> tuple[Tensor, ...]:
        """Features of every depth: one per stage, then the middle block; see ``config.tap_strides``."""
        return self.encoder.taps(self._prepare(video, at_start(carry)), carry)

    def encode(self, video: Tensor, carry: Carry | None = None) -> Tensor:
        """Posterior mean and log-variance ``[B, 2 z, t, h, w]`` of the latent, unscaled."""
        return cast(Tensor, self.quant_conv(self.encoder.head(self.encode_taps(video, carry)[-1], carry)))

    def decode(self, latent: Tensor, carry: Carry | None = None) -> Tensor:
        """Unscaled latent ``[B, z, t, h, w]`` to video ``[B, 3, 1 + (t-1) s, H, W]``, about [-1, 1], not clamped.

        A later chunk of a stream gives ``t s`` frames.
        """
        z = self.post_quant_conv(latent.contiguous(memory_format=torch.channels_last_3d))
        return unpatchify(self.decoder(z, carry), self.config.patch_size)

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction through the posterior mean, and the moments (for training the VAE itself)."""
        moments = self.encode(video)
        return self.decode(moments.chunk(2, dim=1)[0]), moments
