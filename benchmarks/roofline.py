"""How fast the machine convolves, and how much of it a pass needs: the roofline that a VAE is held against."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Square layers that nothing but the machine limits: channels, then frames, rows and columns.
SQUARE = ((256, 8, 64, 64), (384, 8, 32, 32), (512, 4, 32, 32))


class Convolution(NamedTuple):
    """A convolution as PyTorch was asked for it."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    @property
    def flops(self) -> int:
        """Two for every multiply-add."""
        if self.transposed:
            return 2 * math.prod(self.x) * math.prod(self.weight[1:])
        per_axis = zip(self.x[2:], self.weight[2:], self.stride, self.padding, self.dilation, strict=True)
        places = [
            (size + 2 * pad - step * (kernel - 1) - 1) // stride + 1 for size, kernel, stride, pad, step in per_axis
        ]
        return 2 * self.x[0] * math.prod(places) * math.prod(self.weight)


class Recorder(TorchDispatchMode):
    """Counts the convolutions that run inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[Convolution] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            x, weight, _, stride, padding, dilation, transposed, output_padding, groups = args
        elif func in (torch.ops.aten.mkldnn_convolution.default, torch.ops.mkldnn._convolution_pointwise_.binary):
            # The second adds to its first argument, and says how at its end.
            given = args if func is torch.ops.aten.mkldnn_convolution.default else args[1:8]
            x, weight, _, padding, stride, dilation, groups = given
            transposed, output_padding = False, (0,) * len(stride)
        else:
            return func(*args, **(kwargs or {}))
        shape = Convolution(
            tuple(x.shape),
            tuple(weight.shape),
            *(tuple(value) for value in (stride, padding, dilation)),
            transposed,
            tuple(output_padding),
            groups,
        )
        self.seen[shape] += 1
        return func(*args, **(kwargs or {}))


def convolutions(run: Callable[[], Any]) -> Counter[Convolution]:
    """Which convolutions ``run`` computes, and how often each."""
    with torch.no_grad(), Recorder() as recorder:
        run()
    return recorder.seen


def flops(seen: Counter[Convolution]) -> int:
    return sum(convolution.flops * count for convolution, count in seen.items())


def best_rate(seen: Counter[Convolution], dtype: torch.dtype, quick: bool = False) -> float:
    """The highest rate in FLOP/s over the layers that matter in ``seen``, and over large square ones."""
    square = [
        Convolution((1, c, *grid), (c, c, 3, 3, 3), (1,) * 3, (1,) * 3, (1,) * 3, False, (0,) * 3, 1)
        for c, *grid in SQUARE
    ]
    total = flops(seen)
    matter = [convolution for convolution, count in seen.items() if convolution.flops * count >= total / 100]
    return max(rate(convolution, dtype) for convolution in matter + ([] if quick else square))


@torch.no_grad()
def rate(convolution: Convolution, dtype: torch.dtype, repeats: int = 4) -> float:
    """FLOP/s of one convolution, the best of some runs and of both memory layouts."""
    last = torch.channels_last_3d if len(convolution.x) == 5 else torch.channels_last
    seconds = math.inf
    for layout in (torch.contiguous_format, last):
        x, weight = (
            torch.randn(shape).to(dtype, memory_format=layout) for shape in (convolution.x, convolution.weight)
        )
        for _ in range(repeats):
            start = time.perf_counter()
            _convolve(x, weight, convolution)
            seconds = min(seconds, time.perf_counter() - start)
    return convolution.flops / seconds


def _convolve(x: Tensor, weight: Tensor, c: Convolution) -> Tensor:
    return torch.convolution(x, weight, None, c.stride, c.padding, c.dilation, c.transposed, c.output_padding, c.groups)
