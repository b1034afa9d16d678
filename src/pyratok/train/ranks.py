"""The processes of a training run, seen from one of them.

``accelerate launch`` starts the same command once per process and tells each by the environment who it is; gradients
are then averaged by torch's DistributedDataParallel, over gloo on CPUs and NCCL on GPUs. A process that was started
alone is the only rank, and needs no accelerate.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pyratok.nn.collective import mean_across_ranks

PATIENCE = timedelta(hours=1)
"""How long a rank waits for one that hangs; one that ended is noticed at once. Another may be decoding footage."""


class LostRankError(RuntimeError):
    """Another process of the run ended, or did not answer in time."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """``rank`` of ``world`` processes; ``device`` it computes on; ``accelerator`` only where there are several.

    Whatever takes all ranks (:meth:`mean`, :meth:`any`, :meth:`wait`, a step of what :meth:`wrap` gave) must be called
    on each, in one order.
    """

    rank: int = 0
    world: int = 1
    device: torch.device
    accelerator: Any = None

    @property
    def first(self) -> bool:
        """Does this rank write the files, and speak?"""
        return self.rank == 0

    def wrap(self, objective: nn.Module, compiled: bool) -> nn.Module:
        """A module on this rank's device whose backward pass averages the gradients of all ranks.

        What is compiled is the objective, as in a run of one process: exchanging gradients is left outside.
        """
        step: nn.Module = torch.compile(objective) if compiled else objective  # type: ignore[assignment]
        if self.accelerator is not None:
            step = self.accelerator.prepare(step)
        return step

    def syncing(self, step: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
        """Forward and backward passes in this block exchange gradients only if ``wanted``."""
        if wanted or self.accelerator is None:
            return nullcontext()
        context: AbstractContextManager[Any] = self.accelerator.no_sync(step)
        return context

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Mean over ranks of each value; the names are the same on all of them."""
        if self.world == 1:
            return dict(values)
        means = mean_across_ranks(torch.tensor(list(values.values()), dtype=torch.float64, device=self.device))
        return dict(zip(values, means.tolist(), strict=True))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Is each flag true on some rank?"""
        if self.world == 1:
            return flags
        shares = mean_across_ranks(torch.tensor(flags, dtype=torch.float64, device=self.device))
        return tuple((shares > 0).tolist())

    def wait(self) -> None:
        """Until all ranks are here; raises :class:`LostRankError` where one will not come."""
        with self.naming_lost_ranks():
            self.any(True)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """A block that the first rank runs before the others: what it leaves on the disk, they find."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    @contextmanager
    def naming_lost_ranks(self) -> Iterator[None]:
        """Turn what a broken connection to another rank raises into a :class:`LostRankError`."""
        try:
            yield
        except RuntimeError as error:
            if self.world > 1 and _is_of_communication(error):
                reason = str(error).partition(". ")[0].partition("\n")[0]
                message = (
                    f"rank {self.rank}: another process of this run ended or hangs; go on with --resume ({reason})"
                )
                raise LostRankError(message) from error
            raise


def join_ranks() -> Ranks:
    """Who this process is, by its environment; the first call meets the other ranks.

    Raises: ValueError where a launcher started several processes and accelerate is not installed, or is to shard the
    model.
    """
    if "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
    except ImportError as error:
        raise ValueError("training by several processes needs accelerate; pip install 'pyratok[train]'") from error
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise ValueError("the trainer does not shard models (FSDP); launch it with --multi_gpu in place of --use_fsdp")
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",  # train.bf16 decides,
        dynamo_backend="no",  # and train.compile
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=PATIENCE),
            # Which parts learn depends on the stage, and on the captions of the batch.
            DistributedDataParallelKwargs(find_unused_parameters=True),
        ],
    )
    if accelerator.distributed_type not in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ValueError(f"training runs by DDP on CPUs or NVIDIA GPUs, not as {accelerator.distributed_type.value}")
    return Ranks(
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        device=accelerator.device,
        accelerator=accelerator,
    )


def _is_of_communication(error: RuntimeError) -> bool:
    """gloo raises plain RuntimeErrors, also out of a backward pass, that name its files or the connection."""
    return isinstance(error, dist.DistError) or bool(re.search(r"gloo|nccl|by peer", str(error), re.IGNORECASE))
