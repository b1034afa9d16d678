"""The training loop. It reads top to bottom: set up, restore, then one step after another.

Everything random in step i is a function of (seed, i): the clips (``MixedClips``), and the choices of the objective.
So a run that was killed and resumed goes through the same losses as one that was not.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
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
from pyratok.train.objectives import LossWeights, Objective
from pyratok.train.optim import OptimConfig, build_optimizers

Tensors = tuple[Tensor, ...] | list[Tensor]


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
    """Train ``objective.model`` and return its averaged (EMA) copy.

    Writes ``out/log.jsonl`` (one record every ``log_every`` steps), TensorBoard events when that package is
    installed, and ``out/checkpoints``. Without ``resume`` an ``out`` that holds checkpoints is refused, with it those
    of a run of another ``origin`` (by default that of ``config``). SIGTERM and SIGINT save and return after the
    running step.
    """
    origin = {"train": config.origin()} if origin is None else origin
    previous = checkpoint_to_resume(out, resume, origin)
    if len(dataset) < config.steps * config.batch_size:
        raise ValueError(f"{config.steps} steps of {config.batch_size} clips need more than {len(dataset)} clips")
    model = objective.model
    average = AveragedModel(model, multi_avg_fn=moving_average(config.optim.ema_decay), use_buffers=True)
    optimizers = build_optimizers(model.named_parameters(), config.optim)
    start, pending = 0, list[dict[str, float]]()
    if previous is not None:
        state = load_checkpoint(previous, model, average.module, optimizers)
        start, pending = state["step"], state.get("pending", [])
        average.n_averaged.fill_(start)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "train.json", to_dict(config))
    step_terms = torch.compile(objective) if config.compile else objective
    saved_at = time.monotonic()
    parameters = [p for p in model.parameters() if p.requires_grad]

    with closing(Log(out, start, on_log, pending)) as log, stop_on_signals() as stop:
        stream = batches(dataset, config.batch_size, start, config.workers)
        for step, clips in zip(range(start, config.steps), stream, strict=False):
            torch.manual_seed(config.seed * 1_000_003 + step)
            video, choices = objective.prepare(clips)
            video = video.contiguous(memory_format=torch.channels_last_3d)
            with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
                losses = step_terms(video, **choices)
            losses.total.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.optim.grad_clip)
            if not (torch.isfinite(norm) and torch.isfinite(losses.total)):
                with replacing(out / "bad-batch.safetensors") as unfinished:
                    write_tensors(unfinished, {"video": video})
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
                # What is logged next is a mean that began before this checkpoint.
                extra = {"origin": origin, "pending": log.pending}
                save_checkpoint(out / "checkpoints", done, model, average.module, optimizers, extra)
                saved_at = time.monotonic()
            if stop.requested:
                break
    averaged: nn.Module = average.module
    return averaged


def moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Exponential moving average whose horizon grows with the run, so that early weights are soon forgotten."""

    def update(averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
        n = int(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update


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


def _step_of(line: str) -> float:
    """Step of a record of the log, infinite where a kill cut the line short."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError):
        return float("inf")


@dataclass
class StopRequest:
    """Whether someone asked the loop to save and stop after the running step."""

    requested: bool = False

    def handle(self, number: int, frame: Any) -> None:
        """A signal handler; when the request is repeated it stops at once."""
        if self.requested:
            signal.default_int_handler(number, frame)
        self.requested = True


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a :class:`StopRequest` (in the main thread, where alone Python handles signals)."""
    stop, before = StopRequest(), {}
    if threading.current_thread() is threading.main_thread():
        before = {name: signal.signal(name, stop.handle) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
