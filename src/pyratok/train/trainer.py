"""The training loop. It reads top to bottom: set up, restore, then one step after another.

Everything random in step i is a function of (seed, i): the clips (``MixedClips``), and the choices of the objective.
So a run that was killed and resumed goes through the same losses as one that was not.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pyratok.config import to_dict
from pyratok.data.datasets import MixedClips, batches, to_signed
from pyratok.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint, write_json, write_tensors
from pyratok.train.objectives import LossWeights, Objective
from pyratok.train.optim import OptimConfig, build_optimizers


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. ``frames`` and ``size`` (pixels) are those of the square training clips."""

    steps: int
    batch_size: int = 8
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
        for name in ("steps", "batch_size", "frames", "size", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the batch is kept beside the checkpoints."""


def train(
    objective: Objective,
    dataset: MixedClips,
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    on_log: Callable[[dict[str, Any]], None] = lambda record: None,
) -> nn.Module:
    """Train ``objective.model`` and return its averaged (EMA) copy.

    Writes ``out/log.jsonl`` (one record every ``log_every`` steps), TensorBoard events when that package is
    installed, and ``out/checkpoints``. Without ``resume`` an ``out`` that holds checkpoints is refused.
    """
    model = objective.model
    average = AveragedModel(model, multi_avg_fn=moving_average(config.optim.ema_decay), use_buffers=True)
    optimizers = build_optimizers(model.named_parameters(), config.optim)
    checkpoints = out / "checkpoints"
    start, previous = 0, latest_checkpoint(checkpoints)
    if previous is not None:
        if not resume:
            raise ValueError(f"{out} already holds checkpoints; pass --resume to go on, or choose another folder")
        start = int(load_checkpoint(previous, model, average.module, optimizers)["step"])
        average.n_averaged.fill_(start)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "train.json", to_dict(config))
    log = Log(out, start, on_log)
    step_terms = torch.compile(objective) if config.compile else objective
    stop = StopRequest()
    saved_at = time.monotonic()
    parameters = [p for p in model.parameters() if p.requires_grad]

    for step, clips in enumerate(batches(dataset, config.batch_size, start, config.workers), start=start):
        if step >= config.steps:
            break
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        choices = objective.draw(config.batch_size, generator)
        video = to_signed(clips).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            losses = step_terms(video, **choices)
        losses.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.optim.grad_clip)
        if not torch.isfinite(norm):
            write_tensors(out / "bad-batch.safetensors", {"clips": clips})
            raise NonFiniteLossError(f"loss or gradient not finite at step {step}; see {out}/bad-batch.safetensors")
        lr = config.optim.lr_at(step, config.steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
        average.update_parameters(model)

        log.add({**losses.scalars(), "grad_norm": float(norm)})
        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            log.flush(done, config, lr)
        due = time.monotonic() - saved_at > config.checkpoint_minutes * 60
        if due or stop.requested or done == config.steps:
            save_checkpoint(checkpoints, done, model, average.module, optimizers, {"seed": config.seed})
            saved_at = time.monotonic()
        if stop.requested:
            break
    log.close()
    averaged: nn.Module = average.module
    return averaged


def moving_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """Exponential moving average whose horizon grows with the run, so that early weights are soon forgotten."""

    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        n = int(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update


class Log:
    """Means of every value since the last flush, to a JSON-lines file, TensorBoard and a callback."""

    def __init__(self, out: Path, start: int, on_log: Callable[[dict[str, Any]], None]) -> None:
        path = out / "log.jsonl"
        kept = []
        if path.exists():
            # Records after the checkpoint one resumes from are run again and written again.
            kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= start]
        path.write_text("".join(line + "\n" for line in kept))
        self.file = path.open("a")
        self.on_log, self.pending = on_log, list[dict[str, float]]()
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
        means = {name: sum(v[name] for v in self.pending) / len(self.pending) for name in self.pending[0]}
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


class StopRequest:
    """SIGTERM and SIGINT ask the loop to save and stop after the running step; a second one stops at once."""

    def __init__(self) -> None:
        self.requested = False
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested:
            signal.default_int_handler(number, frame)
        self.requested = True
