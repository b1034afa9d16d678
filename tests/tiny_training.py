"""A training run of seconds, in this process or as one of its own: ``python tiny_training.py OUT [options]``."""

from __future__ import annotations

import argparse
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyratok.config import LaPQConfig
from pyratok.data.datasets import MixedClips
from pyratok.train.objectives import LossWeights, TokenizerObjective
from pyratok.train.optim import OptimConfig
from pyratok.train.trainer import TrainConfig, train
from pyratok.vae.wan_blocks import channels_last_
from tiny import CONFIG, tiny_pyratok

STEPS = 8
FRAMES, SIZE = 5, 16
LAPQ: LaPQConfig = replace(CONFIG.lapq, level_dropout=0.5)
OPTIM = OptimConfig(warmup=2, lr=1e-2, ema_decay=0.9)


class Noise:
    """A source of clips without files: a few smooth waves."""

    def sample(self, rng: np.random.Generator, frames: int, size: int) -> np.ndarray:
        phase, speed = rng.uniform(0, 6, 3), rng.uniform(0.2, 1, 3)
        t, y, x = np.meshgrid(np.arange(frames), np.arange(size), np.arange(size), indexing="ij")
        waves = [np.sin(phase[c] + speed[c] * (x + y / 2 + t)) for c in range(3)]
        return ((np.stack(waves, axis=-1) + 1) * 127.5).astype(np.uint8)


def clips(length: int, seed: int = 0) -> MixedClips:
    return MixedClips([Noise()], [1.0], frames=FRAMES, size=SIZE, length=length, seed=seed)


def settings(**changes: Any) -> TrainConfig:
    """Every step is logged and kept; nothing is compiled."""
    values: dict[str, Any] = {
        "steps": STEPS,
        "batch_size": 2,
        "frames": FRAMES,
        "size": SIZE,
        "workers": 0,
        "bf16": False,
        "compile": False,
        "log_every": 1,
        "checkpoint_minutes": 0.0,
        "optim": OPTIM,
    }
    return TrainConfig(**values | changes)


def tiny_objective() -> TokenizerObjective:
    """In the memory layout that the recipes train in."""
    model = tiny_pyratok(config=replace(CONFIG, lapq=LAPQ)).train()
    channels_last_(model)
    return TokenizerObjective(model, LossWeights())


def run(out: Path, config: TrainConfig, resume: bool = False, on_log: Any = lambda record: None) -> torch.nn.Module:
    """Train the tiny tokenizer; ``on_log`` sees every record before the checkpoint of its step is written."""
    return train(tiny_objective(), clips(config.steps * config.batch_size), config, out, resume=resume, on_log=on_log)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=1)
    parser.add_argument("--checkpoint-minutes", type=float, default=0.0)
    parser.add_argument("--optimizer", default="muon")
    parser.add_argument("--kill-at", type=int, default=-1, help="step at which the process kills itself")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    def kill(record: dict[str, Any]) -> None:
        if record["step"] >= arguments.kill_at >= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    config = settings(
        steps=arguments.steps,
        workers=arguments.workers,
        log_every=arguments.log_every,
        checkpoint_minutes=arguments.checkpoint_minutes,
        optim=replace(OPTIM, name=arguments.optimizer),
    )
    run(arguments.out, config, on_log=kill)


if __name__ == "__main__":
    main()
