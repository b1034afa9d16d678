from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from pyratok.losses.alignment import (
    contrastive_alignment,
    grounding,
    text_codebook_alignment,
    text_conditioned_alignment,
)
from pyratok.nn.collective import gather_across_ranks, mean_across_ranks
from pyratok.quantization.entropy import batch_entropy

WORLD, B, D = 2, 6, 8

DATA = torch.Generator().manual_seed(1)
CLIPS = torch.randn(B, 4, D, generator=DATA)
TEXT = torch.nn.functional.normalize(torch.randn(B, D, generator=DATA), dim=-1)
TEXT[4] = TEXT[0]
CAPTIONED = torch.tensor([True, False, False, True, True, True])
FIRST_HALF = torch.tensor([True, True, False, False, False, False])
MASKS = torch.rand(B, 2, 1, 2, 2, generator=DATA)
NAMES = torch.randn(B, 2, D, generator=DATA)
VALID = torch.stack([CAPTIONED, FIRST_HALF], dim=1)


def grounded(w: Tensor, part: slice) -> Tensor:
    tokens = (CLIPS[part] @ w).view(-1, 1, 2, 2, D)
    return grounding(tokens, MASKS[part], NAMES[part], VALID[part], background=0.1)


LOSSES: dict[str, Callable[[Tensor, slice], Tensor]] = {
    "batch entropy": lambda w, part: batch_entropy(CLIPS[part] @ w, dim=-1, group_bits=3, across_ranks=True),
    "tokens": lambda w, part: text_conditioned_alignment(CLIPS[part] @ w, TEXT[part], CAPTIONED[part]),
    "one rank has no caption": lambda w, part: text_conditioned_alignment(
        CLIPS[part] @ w, TEXT[part], FIRST_HALF[part]
    ),
    "words": lambda w, part: text_codebook_alignment(w, CLIPS[part, 0].abs(), TEXT[part], CAPTIONED[part]),
    "contrast": lambda w, part: contrastive_alignment(CLIPS[part, 0] @ w, TEXT[part], CAPTIONED[part]),
    "groups": lambda w, part: contrastive_alignment(CLIPS[part, 0] @ w, TEXT[part], groups=torch.arange(B)[part] % 4),
    "grounding": grounded,
    # Every rank makes something else of the mean and of what it gathered.
    "mean": lambda w, part: (
        (mean_across_ranks((CLIPS[part] @ w).exp().mean(0)).square() * CLIPS[part]).sum((1, 2)).mean()
    ),
    "gather": lambda w, part: (gather_across_ranks(CLIPS[part, 0] @ w).exp() @ CLIPS[part, 1].T).mean(),
}
"""Losses as functions of a weight that all ranks share and of a rank's part of the batch."""


def value_and_gradient(loss: Callable[[Tensor, slice], Tensor], part: slice) -> tuple[Tensor, Tensor]:
    w = torch.eye(D).add(0.3).requires_grad_()
    value = loss(w, part)
    return value.detach(), torch.autograd.grad(value, w)[0]


def run_rank(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    whole = {name: value_and_gradient(loss, slice(None)) for name, loss in LOSSES.items()}
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    try:
        share = B // WORLD
        part = slice(rank * share, (rank + 1) * share)
        for name, loss in LOSSES.items():
            # What data-parallel training does with the gradients.
            for found, expected in zip(value_and_gradient(loss, part), whole[name], strict=True):
                dist.all_reduce(found)
                torch.testing.assert_close(
                    found / WORLD, expected, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
                )
        own = torch.arange(3) + 10 * rank
        assert gather_across_ranks(own).tolist() == [0, 1, 2, 10, 11, 12]
        assert gather_across_ranks(own == 11).tolist() == [False] * 4 + [True, False]
        assert mean_across_ranks(own.float()).tolist() == [5, 6, 7]
        assert mean_across_ranks(torch.ones(2, 3).T).shape == (3, 2)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one_with_the_whole_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(run_rank, args=(str(tmp_path / "store"),), nprocs=WORLD)


def test_without_a_process_group_both_are_the_identity() -> None:
    for x in (torch.randn(3, 2), torch.arange(3), torch.tensor([True, False])):
        assert mean_across_ranks(x) is x
        assert gather_across_ranks(x) is x


def test_one_rank_is_the_identity() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        x = torch.randn(3, 2, requires_grad=True)
        assert torch.equal(mean_across_ranks(x), x)
        assert torch.equal(gather_across_ranks(x), x)
    finally:
        dist.destroy_process_group()
