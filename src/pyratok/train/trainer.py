"""The training loop. It reads top to bottom: set up, restore, then one step after another.

Everything random in step i is a function of (seed, i): the clips (``MixedClips``), and the choices of the objective.
So a run that was killed and resumed goes through the same losses as one that was not, and so do several processes with
the batch of one: of each step's clips a rank takes its part of every micro-batch, and of the choices made for all of
them the same part. Losses that look at the batch as a whole look at that of all ranks (:mod:`pyratok.nn.collective`).
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pyratok.config import to_dict
from pyratok.data.datasets import ClipDataset, batches
from pyratok.files import replacing
from pyratok.train.checkpoint import checkpoint_to_resume, load_checkpoint, save_checkpoint, write_json, write_tensors
from pyratok.train.objectives import LossWeights, Objective, Part
from pyratok.train.optim import OptimConfig, build_optimizers
from pyratok.train.ranks import LostRankError, join_ranks
from pyratok.types import LossTerms

Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. ``frames`` and ``size`` (pixels) are those of the square training clips.

    ``batch_size``: clips of an optimiser step, those of all processes together. ``accumulate``: micro-batches that a
    step is computed in, one after another, to save memory. Terms that are means over clips do not depend on it; those
    with statistics of the batch see a micro-batch at a time (batch entropy, contrastive terms, grounding and naming,
    and the other terms with text as far as micro-batches have unequally many clips without a caption).
    """

    steps: int
    batch_size: int = 8
    accumulate: int = 1
    frames: int = 17
    size: int = 64
    seed: int = 0
    workers: int = 1
    bf16: bool = True
    compile: bool = True
    log_every: int = 20
    checkpoint_minutes: float = 3.0
    optim: OptimConfig = field(default_factory=OptimConfig)
    losses: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "frames", "size", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size % self.accumulate:
            raise ValueError(f"{self.accumulate} micro-batches do not divide a batch of {self.batch_size} clips evenly")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed must be in 0..2**32 - 1, got {self.seed}")
        for name in ("workers", "checkpoint_minutes"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")

    def origin(self) -> dict[str, Any]:
        """The settings that losses follow from, JSON-ready; a run may go on with others of the rest."""
        free = ("steps", "workers", "log_every", "checkpoint_minutes")
        return {name: value for name, value in to_dict(self).items() if name not in free}


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the batch is kept beside the checkpoints."""


def train(
    objective: Objective,
    dataset: ClipDataset,
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    origin: Mapping[str, Any] | None = None,
    on_log: Callable[[dict[str, Any]], None] = lambda record: None,
) -> nn.Module:
    """Train ``objective.model`` and return its averaged (EMA) copy; on the GPU where there is one.

    Started by ``accelerate launch`` as one of several processes it trains together with them, on one and the same
    ``out``; see :mod:`pyratok.train.ranks`. The first alone writes and calls ``on_log``.

    Writes ``out/log.jsonl`` (one record every ``log_every`` steps), TensorBoard events when that package is
    installed, and ``out/checkpoints``. Without ``resume`` an ``out`` that holds checkpoints is refused, with it those
    of a run of another ``origin`` (by default that of ``config``). SIGTERM and SIGINT, to any of the processes, save
    and return after the running step.

    Raises: NonFiniteLossError where the loss or its gradient is; :class:`~pyratok.train.ranks.LostRankError` where
    another process ended. The last checkpoint stays.
    """
    ranks = join_ranks()
    micro_batch, rest = divmod(config.batch_size, config.accumulate * ranks.world)
    if rest:
        parts = f"{ranks.world} processes with {config.accumulate} micro-batches each"
        raise ValueError(f"batch_size {config.batch_size} is that of all processes; it does not divide among {parts}")
    origin = {"train": config.origin()} if origin is None else origin
    previous = checkpoint_to_resume(out, resume, origin)
    if len(dataset) < config.steps * config.batch_size:
        raise ValueError(f"{config.steps} steps of {config.batch_size} clips need more than {len(dataset)} clips")
    model = objective.to(ranks.device).model
    average = AveragedModel(model, multi_avg_fn=moving_average(config.optim.ema_decay), use_buffers=True)
    optimizers = build_optimizers(model.named_parameters(), config.optim)
    start, pending = 0, list[dict[str, float]]()
    if previous is not None:
        state = load_checkpoint(previous, model, average.module, optimizers)
        start, pending = state["step"], state.get("pending", [])
        average.n_averaged.fill_(start)
    if ranks.mean({"start": start})["start"] != start:
        raise ValueError(f"{out}: processes find different checkpoints there; it has to be a folder that all share")
    if ranks.first:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "train.json", to_dict(config))
    step_terms = ranks.wrap(objective, config.compile)
    saved_at = time.monotonic()
    parameters = [p for p in model.parameters() if p.requires_grad]

    with (
        closing(Log(out, start, on_log, pending)) if ranks.first else nullcontext() as log,
        stop_on_signals(patient=ranks.world > 1) as stop,
        ranks.naming_lost_ranks(),
    ):
        stream = batches(
            dataset, micro_batch, start * config.accumulate, config.workers, rank=ranks.rank, world=ranks.world
        )
        for step in range(start, config.steps):
            videos, scalars = list[Tensor](), list[dict[str, float]]()
            for turn in range(config.accumulate):
                # Anew for every part of the step: all draw the same for the whole of it.
                torch.manual_seed(config.seed * 1_000_003 + step)
                first = (turn * ranks.world + ranks.rank) * micro_batch
                part = Part(first=first, size=micro_batch, total=config.batch_size)
                prepared, choices = objective.prepare(next(stream), part)
                video = prepared.to(ranks.device).contiguous(memory_format=torch.channels_last_3d)
                choices = {name: value.to(ranks.device) for name, value in choices.items()}
                with ranks.syncing(step_terms, turn + 1 == config.accumulate):
                    with torch.autocast(ranks.device.type, torch.bfloat16, enabled=config.bf16):
                        losses: LossTerms = step_terms(video, **choices)
                    (losses.total / config.accumulate).backward()
                videos.append(video)
                scalars.append(losses.scalars())
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.optim.grad_clip))
            values = ranks.mean({**mean_of(scalars), "grad_norm": norm})
            if not (math.isfinite(norm) and math.isfinite(values["total"])):
                bad = out / ("bad-batch.safetensors" if ranks.world == 1 else f"bad-batch-rank{ranks.rank}.safetensors")
                with replacing(bad) as unfinished:
                    write_tensors(unfinished, {"video": torch.cat(videos)})
                raise NonFiniteLossError(f"loss or gradient not finite at step {step}; see {bad}")
            lr = config.optim.lr_at(step, config.steps)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
                optimizer.zero_grad()
            average.update_parameters(model)

            done = step + 1
            if log is not None:
                log.add(values)
                if done % config.log_every == 0 or done == config.steps:
                    log.flush(done, config, lr)
            due = time.monotonic() - saved_at > config.checkpoint_minutes * 60 or done == config.steps
            due, stopping = ranks.any(due, stop.requested)
            if due or stopping:
                keep_exactly(average.module, model)
                if log is not None:
                    # What is logged next is a mean that began before this checkpoint.
                    extra = {"origin": origin, "pending": log.pending}
                    save_checkpoint(out / "checkpoints", done, model, average.module, optimizers, extra)
                saved_at = time.monotonic()
            if stopping:
                break
        ranks.wait()  # for the last checkpoint
    averaged: nn.Module = average.module
    return averaged


def mean_of(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every value over records of the same names."""
    return {name: sum(record[name] for record in records) / len(records) for name in records[0]}


def moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Exponential moving average whose horizon grows with the run, so that early weights are soon forgotten."""

    def update(averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
        n = int(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update


@torch.no_grad()
def keep_exactly(averaged: nn.Module, current: nn.Module) -> None:
    """Take over, to the last bit, what has not changed: the mean of negative zeros is a positive one, which equals them
    and which another fingerprint would tell."""
    now = current.state_dict()
    for name, value in averaged.state_dict().items():
        if torch.equal(value, now[name]):
            value.copy_(now[name])


class Log:
    """Means of every value since the last flush, to a JSON-lines file, TensorBoard and a callback."""

    def __init__(
        self,
        out: Path,
        start: int,
        on_log: Callable[[dict[str, Any]], None],
        pending: Sequence[dict[str, float]] = (),
    ) -> None:
        path, rewritten = out / "log.jsonl", out / ".log.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        # Records after the checkpoint one resumes from are run again and written again.
        rewritten.write_text("".join(f"{line}\n" for line in lines if _step_of(line) <= start))
        rewritten.replace(path)
        self.file = path.open("a")
        self.on_log, self.pending = on_log, list(pending)
        self.since = time.monotonic()
        self.board: Any = None
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            return
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=start)

    def add(self, values: dict[str, float]) -> None:
        self.pending.append(values)

    def flush(self, step: int, config: TrainConfig, lr: float) -> None:
        means = mean_of(self.pending)
        seconds = time.monotonic() - self.since
        record = {"step": step, "steps": config.steps, "lr": lr, **means}
        rate = len(self.pending) * config.batch_size / seconds
        self.file.write(json.dumps(record | {"clips_per_second": round(rate, 2)}) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in (means | {"lr": lr}).items():
                self.board.add_scalar(name, value, step)
        self.on_log(record | {"clips_per_second": rate})
        self.pending.clear()
        self.since = time.monotonic()

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def _step_of(line: str) -> float:
    """Step of a record of the log, infinite where a kill cut the line short."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError):
        return float("inf")


@dataclass
class StopRequest:
    """Whether someone asked the loop to save and stop after the running step.

    A repeated request stops at once. Not so where it is ``patient``: a launcher repeats to every process what they
    all got, and ends those that take too long itself.
    """

    requested: bool = False
    patient: bool = False

    def handle(self, number: int, frame: Any) -> None:
        """A signal handler."""
        if self.requested and not self.patient:
            signal.default_int_handler(number, frame)
        self.requested = True


@contextmanager
def stop_on_signals(*, patient: bool = False) -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a :class:`StopRequest` (in the main thread, where alone Python handles signals).

    The handlers from before come back, but after a :class:`~pyratok.train.ranks.LostRankError` SIGTERM is ignored.
    """
    stop, before = StopRequest(patient=patient), {}
    if threading.current_thread() is threading.main_thread():
        before = {name: signal.signal(name, stop.handle) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    except LostRankError:
        # A launcher that misses one process ends the others at once; this one has yet to say what happened.
        if before:
            before[signal.SIGTERM] = signal.SIG_IGN
        raise
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
