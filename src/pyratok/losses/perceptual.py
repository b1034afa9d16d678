"""Learned perceptual distance between frames: LPIPS, and its shift-tolerant variant ST-LPIPS.

::

    frame -> scale -> stage 1 -> stage 2 -> ... -> stage 5       frozen AlexNet or VGG16 features
                         |          |                 |
                      unit length over channels, squared difference of the two frames,
                      weighted by a learned head, mean over pixels, summed over stages

Sources: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (CVPR 2018);
Ghildyal and Liu, Shift-tolerant Perceptual Similarity Metric (ECCV 2022).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pyratok.metrics.reconstruction import check_videos

MIN_SIDE = 32
"""Smallest frame side in pixels that every network here can look at."""

_FRAMES_AT_ONCE = 8


class PerceptualLoss(nn.Module):
    """Mean perceptual distance of videos ``[B, 3, T, H, W]`` in [-1, 1]; 0 for equal frames, larger is worse.

    Built by :func:`st_lpips` or :func:`lpips`. ``stages`` are run one after the other, ``heads`` hold one non-negative
    weight per channel of each stage; all are frozen. ``name`` is what the number may be called. With
    ``frames_per_clip`` the loss looks at that many frames, drawn anew at every call from torch's global generator.
    Gradients reach the reconstruction alone.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self, name: str, stages: Sequence[nn.Module], heads: Sequence[Tensor], frames_per_clip: int | None = None
    ) -> None:
        super().__init__()
        if frames_per_clip is not None and frames_per_clip < 1:
            raise ValueError(f"frames_per_clip must be at least 1, or None for all frames, got {frames_per_clip}")
        self.name = name
        self.frames_per_clip = frames_per_clip
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ParameterList(heads)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Scalar: mean distance over clips and (sampled) frames."""
        self._check(reconstruction, target)
        num_frames = target.shape[2]
        if self.frames_per_clip is not None and self.frames_per_clip < num_frames:
            chosen = torch.randperm(num_frames)[: self.frames_per_clip].to(target.device)
            reconstruction, target = reconstruction[:, :, chosen], target[:, :, chosen]
        return self._distances(_frames(reconstruction), _frames(target)).mean()

    def per_frame(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Distance of every frame, ``[B, T]``: the metric."""
        self._check(reconstruction, target)
        parts = zip(_frames(reconstruction).split(_FRAMES_AT_ONCE), _frames(target).split(_FRAMES_AT_ONCE), strict=True)
        distances = torch.cat([self._distances(a, b) for a, b in parts])
        return rearrange(distances, "(b t) -> b t", b=target.shape[0])

    def _distances(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """``[N, 3, H, W]`` twice to ``[N]``."""
        with torch.no_grad():
            wanted = self.features(target)
        total = torch.zeros(target.shape[0], device=target.device)
        for found, features, head in zip(self.features(reconstruction), wanted, self.heads, strict=True):
            total = total + torch.einsum("nchw,c->nhw", (found - features).square(), head).mean(dim=(1, 2))
        return total

    def features(self, frames: Tensor) -> list[Tensor]:
        """Of frames ``[N, 3, H, W]`` in [-1, 1] the output of every stage ``[N, C, h, w]``, unit length over channels,
        float32."""
        x = (frames.float() - self.shift) / self.scale
        features = []
        for stage in self.stages:
            x = stage(x)
            # vector_norm has a zero gradient at zero, where a plain square root would give NaN
            wide = x.float()
            features.append(wide / (torch.linalg.vector_norm(wide, dim=1, keepdim=True) + 1e-10))
        return features

    def _check(self, reconstruction: Tensor, target: Tensor) -> None:
        check_videos(reconstruction, target)
        height, width = target.shape[-2:]
        if min(height, width) < MIN_SIDE:
            raise ValueError(f"{self.name} needs frames of at least {MIN_SIDE}x{MIN_SIDE} pixels, got {height}x{width}")


def st_lpips(weights: str | Path | None = None, frames_per_clip: int | None = None) -> PerceptualLoss:
    """ST-LPIPS on its anti-aliased AlexNet.

    ``weights``: ``alex_shift_tolerant.pth``; by default the file inside the installed package stlpips-pytorch, which
    is never imported. Raises ImportError when that is missing, ValueError when the file is not that network.
    """
    path = _installed("stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth") if weights is None else Path(weights)
    state = _read(path)
    network = _NETWORKS["st_alex"]
    stages = network.build()
    blurs = {f"net.{name}.filt" for name in ("slice1.1", "slice2.4", "slice3.8")}
    _expect(path, state, {*network.parameters("net."), *_HEADS, *blurs, "scaling_layer.shift", "scaling_layer.scale"})
    network.fill(path, stages, state, "net.")
    return PerceptualLoss("st_lpips", stages, _heads(path, state, network), frames_per_clip)


def lpips(
    backbone: str | Path,
    network: Literal["alex", "vgg"] = "alex",
    heads: str | Path | None = None,
    frames_per_clip: int | None = None,
) -> PerceptualLoss:
    """LPIPS 0.1 on torchvision's AlexNet (named ``lpips``) or VGG16 (``lpips_vgg``).

    ``backbone``: torchvision's ``alexnet-owt-*.pth`` or ``vgg16-*.pth``, which cannot be shipped or installed.
    ``heads``: the linear layers of LPIPS; by default the file inside the installed torchmetrics. Raises ImportError or
    ValueError as :func:`st_lpips` does.
    """
    if network not in ("alex", "vgg"):
        raise ValueError(f'network is "alex" or "vgg", got {network!r}')
    spec = _NETWORKS[network]
    stages = spec.build()
    path = Path(backbone)
    state = {name: value for name, value in _read(path).items() if not name.startswith("classifier.")}
    _expect(path, state, set(spec.parameters("features.")))
    spec.fill(path, stages, state, "features.")

    path = _installed("torchmetrics", f"functional/image/lpips_models/{network}.pth") if heads is None else Path(heads)
    state = _read(path)
    _expect(path, state, set(_HEADS))
    return PerceptualLoss(
        "lpips" if network == "alex" else f"lpips_{network}", stages, _heads(path, state, spec), frames_per_clip
    )


class BlurPool(nn.Module):
    """Anti-aliased halving: reflected border of 2, binomial 3x3 filter, stride 2 (Zhang, ICML 2019)."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("kernel", torch.outer(line, line).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.kernel.to(x.dtype), stride=2, groups=x.shape[1])


class BlurredConv(nn.Module):
    """``BlurPool(conv(x))`` for ST-LPIPS's first layer, an 11x11 convolution at full resolution, for half the cost.

    Both are linear, so away from the border they are one 13x13 convolution of stride 2. The blur's reflected border
    repeats the first output row and column; the last ones are computed step by step, from a strip of the frame.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 11, padding=2)
        self.blur = BlurPool(outputs)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (16 + side % 2 for side in x.shape[-2:])
        bottom = self.blur(self.conv(x[..., -rows:, :]))[..., -1:, :]
        right = self.blur(self.conv(x[..., -columns:]))[..., -1:]
        kernel = F.conv2d(self.conv.weight.flatten(0, 1).unsqueeze(1), self.blur.kernel[:1], padding=2)
        inner = F.conv2d(x, kernel.unflatten(0, self.conv.weight.shape[:2]).squeeze(2), self.conv.bias, 2, 2)
        above = torch.cat([F.pad(inner, (1, 1, 1, 0), mode="replicate"), bottom], dim=-2)
        return torch.cat([above[..., :-1], right], dim=-1)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU(inplace=True)]


def _alexnet() -> list[nn.Sequential]:
    return [
        nn.Sequential(*_conv(3, 64, 11, stride=4, padding=2)),
        nn.Sequential(nn.MaxPool2d(3, 2), *_conv(64, 192, 5, padding=2)),
        nn.Sequential(nn.MaxPool2d(3, 2), *_conv(192, 384, 3)),
        nn.Sequential(*_conv(384, 256, 3)),
        nn.Sequential(*_conv(256, 256, 3)),
    ]


def _shift_tolerant_alexnet() -> list[nn.Sequential]:
    return [
        nn.Sequential(BlurredConv(3, 64), nn.ReLU(inplace=True)),
        nn.Sequential(nn.MaxPool2d(3, 1), BlurPool(64), *_conv(64, 192, 5, padding=2)),
        nn.Sequential(nn.MaxPool2d(3, 1), BlurPool(192), *_conv(192, 384, 3)),
        nn.Sequential(*_conv(384, 256, 3)),
        nn.Sequential(*_conv(256, 256, 3)),
    ]


def _vgg16() -> list[nn.Sequential]:
    stages: list[nn.Sequential] = []
    width_in = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers: list[nn.Module] = [nn.MaxPool2d(2, 2)] if stages else []
        for _ in range(depth):
            layers += _conv(width_in, width, 3)
            width_in = width
        stages.append(nn.Sequential(*layers))
    return stages


@dataclass(frozen=True)
class _Network:
    """Feature stages, the width of each, and the names of the convolutions in the weights file, in running order."""

    build: Callable[[], list[nn.Sequential]]
    widths: tuple[int, ...]
    convolutions: tuple[str, ...]

    def parameters(self, prefix: str) -> list[str]:
        return [f"{prefix}{name}.{kind}" for name in self.convolutions for kind in ("weight", "bias")]

    def fill(self, path: Path, stages: list[nn.Sequential], state: dict[str, Tensor], prefix: str) -> None:
        """Copy the convolutions of ``state`` into ``stages``."""
        layers = [module for stage in stages for module in stage.modules() if isinstance(module, nn.Conv2d)]
        for name, layer in zip(self.convolutions, layers, strict=True):
            for kind, parameter in layer.named_parameters():
                parameter.data.copy_(_shaped(path, state, f"{prefix}{name}.{kind}", tuple(parameter.shape)))


_NETWORKS = {
    "alex": _Network(_alexnet, (64, 192, 384, 256, 256), ("0", "3", "6", "8", "10")),
    "st_alex": _Network(
        _shift_tolerant_alexnet,
        (64, 192, 384, 256, 256),
        ("slice1.0", "slice2.5", "slice3.9", "slice4.11", "slice5.13"),
    ),
    "vgg": _Network(
        _vgg16,
        (64, 128, 256, 512, 512),
        ("0", "2", "5", "7", "10", "12", "14", "17", "19", "21", "24", "26", "28"),
    ),
}
_HEADS = tuple(f"lin{index}.model.1.weight" for index in range(5))


def _heads(path: Path, state: dict[str, Tensor], network: _Network) -> list[Tensor]:
    return [
        _shaped(path, state, name, (1, width, 1, 1)).flatten()
        for name, width in zip(_HEADS, network.widths, strict=True)
    ]


def _frames(video: Tensor) -> Tensor:
    return rearrange(video, "b c t h w -> (b t) c h w")


def _installed(package: str, file: str) -> Path:
    """A data file of an installed package, found without importing it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        name = package.replace("_", "-")
        raise ImportError(f"the perceptual loss needs {name}, which is not installed: pip install pyratok[train]")
    return Path(spec.origin).parent / file


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"no weights for the perceptual loss at {path}; give the path of the downloaded file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged or not a file of weights") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a dictionary of weights")
    return state


def _expect(path: Path, state: dict[str, Tensor], names: set[str]) -> None:
    if missing := sorted(names - state.keys()):
        raise ValueError(f"{path} is another network: {missing[0]} is missing ({len(missing)} of {len(names)} names)")
    if foreign := sorted(state.keys() - names):
        raise ValueError(f"{path} is another network: {foreign[0]} is not part of it ({len(foreign)} foreign names)")


def _shaped(path: Path, state: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    value = state[name]
    if tuple(value.shape) != shape:
        raise ValueError(f"{path} is another network: {name} has shape {tuple(value.shape)}, expected {shape}")
    return value.float()
