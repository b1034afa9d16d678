"""Sums over the ranks of ``torch.distributed``, with the gradient that data-parallel training needs.

With R ranks, each on its share of the batch, the loss of the whole batch is the mean ``L = 1/R sum_s L_s`` of the
ranks' losses, and DDP and FSDP average the gradients ``dL_r/dw`` that the ranks compute through their own inputs. Let
``y = sum_r x_r`` be the same on all ranks and ``g_s = dL_s/dy``. Then

    dL/dw = sum_r (1/R sum_s g_s) dx_r/dw = 1/R sum_r (sum_s g_s) dx_r/dw

so rank r has to hand ``sum_s g_s`` back to ``x_r`` for the average to come out right: backward, a sum over ranks is
again a sum over ranks. Mean and gather are made of it. (Dropping the other ranks' part, as a plain ``all_reduce`` on
detached values does, leaves 1/R of the gradient.)

A compiled step breaks its graph here, since the compiler does not know backward passes that communicate.

Every rank must make the same calls in the same order, forward and backward, or all wait for ever: losses keep their
graph also where a rank has nothing to contribute. Without a process group, or with one rank, these are the identity.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._compile import _disable_dynamo


def mean_across_ranks(x: Tensor) -> Tensor:
    """Mean over ranks of ``x``, which has the same shape and float type on each; differentiable.

    Averaging the ranks' gradients gives the gradient of the whole batch, as derived above.
    """
    _, world = _rank_and_world()
    return x if world == 1 else _sum_over_ranks(x) / world


def gather_across_ranks(x: Tensor) -> Tensor:
    """``[B, ...]`` of every rank as ``[R B, ...]``, in the order of ranks; any dtype, the same shape on each rank.

    Differentiable: a clip that serves other ranks as a negative gets their gradients too.
    """
    rank, world = _rank_and_world()
    if world == 1:
        return x
    if x.dtype == torch.bool:
        return gather_across_ranks(x.to(torch.uint8)).bool()
    empty = torch.zeros_like(x)
    return _sum_over_ranks(torch.stack([x if slot == rank else empty for slot in range(world)])).flatten(0, 1)


# What torch.compiler.disable is, without importing the compiler along with this module.
@_disable_dynamo
def _sum_over_ranks(x: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(x)
    return total


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks, on each of them; its own adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _all_reduced(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _all_reduced(gradient)


def _all_reduced(x: Tensor) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def _rank_and_world() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
