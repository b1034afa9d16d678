"""Building blocks of the Wan VAEs, each as one pass over the whole clip, or over one chunk of it with a carry.

Parameter names follow diffusers' ``AutoencoderKLWan``, so that its checkpoints load as they are. diffusers walks
through a clip latent step by latent step and carries caches; every block here sees all steps at once and gives the
same numbers, because causal padding with zeros in front is what empty caches amount to. Three places where the first
frame is special, found in the caches there, are spelled out below. Blocks that look back in time take an optional
:class:`~pyratok.nn.carry.Carry`, which puts what they remember of the chunks before in the place of those zeros.

Layout: activations are ``[B, C, T, H, W]`` kept in ``channels_last_3d`` memory end to end.
"""

from __future__ import annotations

from itertools import product
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from pyratok.nn.carry import Carry, at_start
from pyratok.vae.sliced import LEAST_NORM, NormedConv, empty, frame_slices, is_sliced, runs_on_cpu, slices


class CausalConv3d(nn.Conv3d):
    """3-D convolution that sees no later frame: time is padded in front only, with what came before, zeros at first."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        stride: int | tuple[int, int, int] = 1,
        padding: int | tuple[int, int, int] = 0,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)
        time, rows, columns = cast(tuple[int, int, int], self.padding)
        self.causal_pad = 2 * time
        self.padding = (0, rows, columns)

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        if self.causal_pad:
            # Time is the outermost axis of channels-last memory, so that this pad is one block copy.
            x = F.pad(x, (0, 0, 0, 0, self.causal_pad, 0)) if carry is None else carry.extend(x, self.causal_pad)
        return self.convolve(x)

    def convolve(self, x: Tensor) -> Tensor:
        """Of frames in front of which those before them stand already."""
        return super().forward(x)

    def convolve_onto(self, x: Tensor, out: Tensor) -> None:
        """Add :meth:`convolve` to ``out``; by oneDNN as it goes, which rounds once and makes no tensor of its own."""
        if adds_in_onednn(x, out):
            shape = self.padding, self.stride, self.dilation, self.groups
            add = torch.ops.mkldnn._convolution_pointwise_.binary
            add(out, x, self.weight, self.bias, *shape, "add", None, None, [], None)
        else:
            out += self.convolve(x)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self._is_slow_in_torch(x):
            return super()._conv_forward(x, weight, bias)
        shape = self.padding, self.stride, self.dilation, self.groups
        return cast(Tensor, torch.ops.aten.mkldnn_convolution(x, weight, bias, *shape))

    @staticmethod
    def _is_slow_in_torch(x: Tensor) -> bool:
        """For small inputs torch would choose a convolution up to nine times as slow as oneDNN's.

        oneDNN's op alone has no gradient, and graphs are to be made of ops that every runtime knows.
        """
        return runs_on_cpu(x) and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()


class RMSNorm(nn.Module):
    """Divide by the root mean square over channels, then scale; statistics in float32."""

    def __init__(self, dim: int, spatial_dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *(1,) * spatial_dims))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        inverse = torch.rsqrt(wide.square().sum(dim=1, keepdim=True).clamp_min(LEAST_NORM**2)) * x.shape[1] ** 0.5
        return (wide * inverse).to(x.dtype) * self.gamma.to(x.dtype)


class ResidualBlock(nn.Module):
    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(in_dim)
        self.conv1 = CausalConv3d(in_dim, out_dim, 3, padding=1)
        self.norm2 = RMSNorm(out_dim)
        self.conv2 = CausalConv3d(out_dim, out_dim, 3, padding=1)
        self.conv_shortcut = CausalConv3d(in_dim, out_dim, 1) if in_dim != out_dim else nn.Identity()

    def forward(self, x: Tensor, carry: Carry | None = None, *, in_place: bool = False) -> Tensor:
        """``in_place``: nobody needs ``x`` any more, and its memory may be that of the result."""
        if is_sliced(x):
            return self._in_slices(x, carry, in_place)
        h = self.conv1(F.silu(self.norm1(x)), carry)
        h = self.conv2(F.silu(self.norm2(h)), carry)
        return h + self.conv_shortcut(x)

    def _in_slices(self, x: Tensor, carry: Carry | None, in_place: bool) -> Tensor:
        batch, _, frames, *size = x.shape
        width = self.conv1.out_channels
        parts = list(slices(x, width))
        longest = parts[0].stop
        first = NormedConv(self.norm1.gamma, self.conv1, x.shape, longest, x, carry)
        second = NormedConv(self.norm2.gamma, self.conv2, (batch, width, frames, *size), longest, x, carry)
        out = x if in_place and x.shape[1] == width else empty((batch, width, frames, *size), x)
        for part in parts:
            now, target = x[:, :, part], out[:, :, part]
            h = first(now)
            if out is not x:
                target.copy_(self.conv_shortcut(now))
            second.onto(h, target)
        for normed in (first, second):
            normed.hand_on()
        return out


def adds_in_onednn(x: Tensor, out: Tensor) -> bool:
    """Does oneDNN's op that convolves ``x`` and adds to ``out`` run here, with its fast code?"""
    if not (runs_on_cpu(x) and torch.backends.mkldnn.is_available()):
        return False
    fast = x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    # Its result lies in memory as torch lays it out, without gaps.
    return fast and out.is_contiguous(memory_format=torch.channels_last_3d)


def norm_and_convolve(norm: RMSNorm, conv: CausalConv3d, x: Tensor, carry: Carry | None) -> Tensor:
    """Norm, SiLU and a causal convolution."""
    if not is_sliced(x):
        return cast(Tensor, conv(F.silu(norm(x)), carry))
    batch, _, frames, *size = x.shape
    parts = list(slices(x))
    normed = NormedConv(norm.gamma, conv, x.shape, parts[0].stop, x, carry)
    out = empty((batch, conv.out_channels, frames, *size), x)
    for part in parts:
        out[:, :, part] = normed(x[:, :, part])
    normed.hand_on()
    return out


class AttentionBlock(nn.Module):
    """Single-head self-attention over the positions of each frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, spatial_dims=2)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, _, height, _ = x.shape
        frames = fold_time(x)
        q, k, v = rearrange(self.to_qkv(self.norm(frames)), "n (three c) h w -> three n 1 (h w) c", three=3)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out = self.proj(rearrange(mixed, "n 1 (h w) c -> n c h w", h=height))
        return x + unfold_time(out, batch)


class MidBlock(nn.Module):
    def __init__(self, dim: int, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(dim, dim), ResidualBlock(dim, dim)])
        self.attentions = nn.ModuleList([AttentionBlock(dim)] if attention else [])

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        x = self.resnets[0](x, carry)
        for attention in self.attentions:
            x = attention(x)
        return cast(Tensor, self.resnets[1](x, carry, in_place=True))


class Downsample(nn.Module):
    """Halve space by a strided convolution, then time by a causal one.

    The first frame skips the temporal convolution: the reference has nothing cached there yet. From then on each
    output sees two new frames and the last one before them.
    """

    def __init__(self, dim: int, in_space: bool, in_time: bool) -> None:
        super().__init__()
        self.in_space = in_space
        spatial = nn.Conv2d(dim, dim, 3, stride=2) if in_space else nn.Conv2d(dim, dim, 3, padding=1)
        # Index 0 is the padding of the reference; it keeps the parameter names equal.
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)) if in_space else nn.Identity(), spatial)
        self.time_conv = CausalConv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1)) if in_time else None

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        frames = fold_time(x)
        halved = self._resample_in_slices(frames) if is_sliced(x) else self.resample(frames)
        x = unfold_time(halved, x.shape[0])
        if self.time_conv is None:
            return x
        seen = x if carry is None else carry.extend(x, 1, zeros=0)
        if not at_start(carry):
            return cast(Tensor, self.time_conv(seen))
        return x if x.shape[2] == 1 else torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)

    def _resample_in_slices(self, frames: Tensor) -> Tensor:
        """Zeros beside the frames are written once."""
        _, channels, height, width = frames.shape
        conv, parts = self.resample[1], list(frame_slices(frames))
        padded = frames.new_zeros(parts[0].stop, height + self.in_space, width + self.in_space, channels).movedim(-1, 1)
        halved = []
        for part in parts:
            now = padded[: part.stop - part.start]
            now[..., :height, :width] = frames[part]
            halved.append(conv(now))
        return torch.cat(halved)


class Upsample(nn.Module):
    """Double time by a causal convolution whose two halves interleave, then space by nearest neighbour and convolution.

    The first frame stays single and is invisible to the temporal convolution of the later ones (the reference
    caches zeros in its place).
    """

    def __init__(self, dim: int, out_dim: int, in_space: bool, in_time: bool) -> None:
        super().__init__()
        self.in_space = in_space
        # Index 0 is the doubling of the reference; it keeps the parameter names equal.
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(dim, out_dim, 3, padding=1))
        self.time_conv = CausalConv3d(dim, dim * 2, (3, 1, 1), padding=(1, 0, 0)) if in_time else None

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        if self.time_conv is not None:
            x = self._double_time(self.time_conv, x, carry)
        frames, conv = fold_time(x), cast(nn.Conv2d, self.resample[1])
        wide = double_and_convolve(frames, conv.weight, conv.bias) if self.in_space else self.resample(frames)
        return unfold_time(wide, x.shape[0])

    @staticmethod
    def _double_time(time_conv: CausalConv3d, x: Tensor, carry: Carry | None) -> Tensor:
        first, later = (x[:, :, :1], x[:, :, 1:]) if at_start(carry) else (None, x)
        if later.shape[2] == 0:
            if carry is not None:
                # Nothing to convolve, but a tail to hand on: the zeros in the place of the first frame.
                carry.extend(later, time_conv.causal_pad)
            return x
        wide = time_conv(later, carry)
        if not is_sliced(x):
            doubled = rearrange(wide, "b (two c) t h w -> b c (t two) h w", two=2)
            return doubled if first is None else torch.cat([first, doubled], dim=2)
        # Straight into channels-last memory, which a rearrangement would leave.
        single = 0 if first is None else 1
        out = empty((*x.shape[:2], single + 2 * later.shape[2], *x.shape[3:]), x)
        for offset, half in enumerate(wide.chunk(2, dim=1)):
            out[:, :, single + offset :: 2] = half
        out[:, :, :single] = x[:, :, :single]
        return out


class AverageDown(nn.Module):
    """Shortcut of Wan 2.2: space and time folded into channels, groups of channels averaged.

    Zeros fill up the first frame, which stands alone; a later chunk of a stream has none to fill up.
    """

    def __init__(self, in_dim: int, out_dim: int, factor_t: int, factor_s: int) -> None:
        super().__init__()
        if in_dim * factor_t * factor_s**2 % out_dim:
            raise ValueError(f"{in_dim} channels times {factor_t}x{factor_s}x{factor_s} do not divide into {out_dim}")
        self.factor_t, self.factor_s, self.out_dim = factor_t, factor_s, out_dim

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % self.factor_t, 0))
        s = self.factor_s
        x = rearrange(x, "b c (t ft) (h fh) (w fw) -> b (c ft fh fw) t h w", ft=self.factor_t, fh=s, fw=s)
        return reduce(x, "b (c group) t h w -> b c t h w", "mean", c=self.out_dim)


class DuplicateUp(nn.Module):
    """Shortcut of Wan 2.2: channels repeated and unfolded into space and time; the first frame of all stays single."""

    def __init__(self, in_dim: int, out_dim: int, factor_t: int, factor_s: int) -> None:
        super().__init__()
        if out_dim * factor_t * factor_s**2 % in_dim:
            raise ValueError(f"{out_dim} channels times {factor_t}x{factor_s}x{factor_s} are no multiple of {in_dim}")
        self.factor_t, self.factor_s = factor_t, factor_s
        self.repeats = out_dim * factor_t * factor_s**2 // in_dim

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        x = repeat(x, "b c t h w -> b (c r) t h w", r=self.repeats)
        s = self.factor_s
        x = rearrange(x, "b (c ft fh fw) t h w -> b c (t ft) (h fh) (w fw)", ft=self.factor_t, fh=s, fw=s)
        return x[:, :, self.factor_t - 1 :] if at_start(carry) else x


def double_and_convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Frames ``[N, C, H, W]`` doubled by nearest neighbour, then convolved 3x3 with zeros around: ``[N, D, 2H, 2W]``.

    A kernel of three on doubled rows sees two rows of the input. So each of the four kinds of output pixels, even or
    odd row and column, is a 2x2 convolution of ``x`` itself: 16 products in place of 36, and no doubled frame is made.
    """
    height, width = x.shape[-2:]
    rows = _on_doubled(weight.movedim(2, -1))  # [2, D, C, 3, 2]
    kernels = _on_doubled(rows.movedim(3, -1)).flatten(0, 2)  # [2 2 D, C, 2, 2], even or odd column first
    biases = None if bias is None else bias.repeat(4)
    if is_sliced(x):
        kernels = kernels.contiguous(memory_format=torch.channels_last)
        out = torch.empty(
            (len(x), len(weight), 2 * height, 2 * width), dtype=x.dtype, memory_format=torch.channels_last
        )
        for part in frame_slices(x, 4 * len(weight)):
            kinds = F.conv2d(x[part], kernels, biases, padding=1).unflatten(1, (2, 2, -1))
            for b, a in product((0, 1), repeat=2):
                out[part, :, a::2, b::2] = kinds[:, b, a, :, a : a + height, b : b + width]
        return out
    y = F.conv2d(x, kernels, biases, padding=1)
    kinds = rearrange(y, "n (two odd d) h w -> two odd n h w d", two=2, odd=2)
    # An odd row begins its pair of rows one further down.
    doubled = [torch.stack([kinds[b, a, :, a : a + height, b : b + width] for b in (0, 1)], dim=3) for a in (0, 1)]
    return rearrange(torch.stack(doubled, dim=2), "n h a w b d -> n d (h a) (w b)")


def _on_doubled(kernel: Tensor) -> Tensor:
    """``[..., 3]`` on a doubled axis as ``[2, ..., 2]`` on the axis itself, for even and odd places."""
    first, middle, last = kernel.unbind(-1)
    return torch.stack([torch.stack([first, middle + last], -1), torch.stack([first + middle, last], -1)])


def fold_time(x: Tensor) -> Tensor:
    """``[B, C, T, H, W]`` to ``[B T, C, H, W]``, a view in channels-last memory."""
    return rearrange(x, "b c t h w -> (b t) c h w")


def unfold_time(x: Tensor, batch: int) -> Tensor:
    """Inverse of :func:`fold_time`."""
    return rearrange(x, "(b t) c h w -> b c t h w", b=batch)


def patchify(x: Tensor, size: int) -> Tensor:
    """``[B, C, T, H, W]`` to ``[B, C p p, T, H/p, W/p]``; columns vary slower than rows, as in the reference."""
    return rearrange(x, "b c t (h p) (w q) -> b (c q p) t h w", p=size, q=size) if size > 1 else x


def unpatchify(x: Tensor, size: int) -> Tensor:
    """Inverse of :func:`patchify`."""
    return rearrange(x, "b (c q p) t h w -> b c t (h p) (w q)", p=size, q=size) if size > 1 else x


def channels_last_(module: nn.Module) -> nn.Module:
    """Put the weights of every convolution into the channels-last layout of its rank, in place."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return module


def near_identity_(module: nn.Module) -> nn.Module:
    """Initialise for training from scratch: residual branches silent, resampling an average or a repetition.

    The network starts as a linear thumbnail coder through which gradients pass undiminished; with the default
    initialisation the first thousands of clips go into finding such a path.
    """
    for layer in module.modules():
        if isinstance(layer, ResidualBlock):
            nn.init.zeros_(layer.conv2.weight)
            nn.init.zeros_(layer.conv2.bias)  # type: ignore[arg-type]
            if isinstance(layer.conv_shortcut, nn.Conv3d):
                nn.init.orthogonal_(layer.conv_shortcut.weight)
        elif isinstance(layer, Downsample):
            box = (slice(0, 2), slice(0, 2)) if layer.in_space else (slice(1, 2), slice(1, 2))
            _pass_channels_(layer.resample[1], box)  # type: ignore[arg-type]
            if layer.time_conv is not None:
                _pass_channels_(layer.time_conv, (slice(1, 3), slice(0, 1), slice(0, 1)))
        elif isinstance(layer, Upsample):
            _pass_channels_(layer.resample[1], (slice(1, 2), slice(1, 2)))  # type: ignore[arg-type]
            if layer.time_conv is not None:
                _pass_channels_(layer.time_conv, (slice(2, 3), slice(0, 1), slice(0, 1)))
    return module


def _pass_channels_(conv: nn.Conv2d | nn.Conv3d, taps: tuple[slice, ...], noise: float = 0.05) -> None:
    """Small random kernel plus the mean of ``taps`` from input channel c to every output channel equal to it mod C."""
    index = (slice(None), slice(None), *taps)
    with torch.no_grad():
        conv.weight.mul_(noise)
        window = conv.weight[index]
        out_dim, in_dim = window.shape[:2]
        gain = 1.0 / window[0, 0].numel()
        for channel in range(max(out_dim, in_dim)):
            window[channel % out_dim, channel % in_dim] += gain * min(1.0, (out_dim / in_dim) ** 0.5)
