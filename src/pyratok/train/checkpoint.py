"""Training checkpoints: everything needed to go on, without pickle.

One folder per checkpoint: ``model.safetensors``, ``average.safetensors`` (EMA), ``optimizer-<i>.safetensors`` and
``state.json``. It is written under a temporary name, fsynced and renamed, so that a folder with its final name is
whole; the newest ``keep`` are kept.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PREFIX = "step-"


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    average: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    extra: dict[str, Any],
    keep: int = 2,
) -> Path:
    """Write the state after ``step`` steps; returns its folder. When that fails, the last one is still there."""
    final = folder / f"{PREFIX}{step:08d}"
    temporary = folder / f".{final.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write_tensors(temporary / "model.safetensors", trainable_state(model))
        write_tensors(temporary / "average.safetensors", trainable_state(average))
        groups = []
        for index, optimizer in enumerate(optimizers):
            state = optimizer.state_dict()
            tensors = {
                f"{i}.{name}": value
                for i, entry in state["state"].items()
                for name, value in entry.items()
                if isinstance(value, Tensor)
            }
            write_tensors(temporary / f"optimizer-{index}.safetensors", tensors)
            groups.append(state["param_groups"])
        write_json(temporary / "state.json", {"step": step, "groups": groups, **extra})
        shutil.rmtree(final, ignore_errors=True)
        temporary.replace(final)
        _sync(folder)
    finally:
        # Also what a process that was killed here left behind.
        for unfinished in folder.glob(f".{PREFIX}*"):
            shutil.rmtree(unfinished, ignore_errors=True)
    for old in sorted(folder.glob(f"{PREFIX}*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder``, if any."""
    return max(folder.glob(f"{PREFIX}*"), default=None)


def checkpoint_to_resume(out: Path, resume: bool) -> Path | None:
    """The newest checkpoint of the run in ``out``; ValueError where there is one but nobody asked to go on from it."""
    found = latest_checkpoint(out / "checkpoints")
    if found is not None and not resume:
        raise ValueError(f"{out} already holds checkpoints; pass --resume to go on, or choose another folder")
    return found


def load_checkpoint(
    path: Path, model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> dict[str, Any]:
    """Restore everything in place; returns the content of ``state.json``.

    Raises ValueError for a checkpoint that is damaged or belongs to another model or optimiser.
    """
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
        restore(model, load_file(path / "model.safetensors"))
        restore(average, load_file(path / "average.safetensors"))
        for index, optimizer in enumerate(optimizers):
            entries = load_file(path / f"optimizer-{index}.safetensors")
            optimizer.load_state_dict(
                {"state": _by_parameter(entries, optimizer), "param_groups": state["groups"][index]}
            )
    except (OSError, SafetensorError, ValueError, LookupError, RuntimeError) as error:
        raise ValueError(f"{path}: cannot go on from this checkpoint: {error}") from error
    return state


def _by_parameter(entries: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """State tensors, saved as ``<number of the parameter>.<name>``, laid out in memory as their parameters are.

    The fused AdamW of the CPU walks through both as flat memory and does not notice when their layouts differ.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in entries.items():
        number, name = key.split(".", 1)
        like = parameters[int(number)]
        laid_out = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
        state.setdefault(int(number), {})[name] = laid_out.detach()
    return state


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that train, and all buffers: frozen weights are found again where they came from."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def restore(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load what :func:`trainable_state` gave, refusing any other set of names."""
    wanted = set(trainable_state(model))
    if set(state) != wanted:
        missing, foreign = sorted(wanted - set(state))[:3], sorted(set(state) - wanted)[:3]
        raise ValueError(f"checkpoint does not fit the model: missing {missing}, foreign {foreign}")
    model.load_state_dict(state, strict=False)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file, fsynced."""
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, path)
    _sync(path)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """A JSON file, fsynced and renamed into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(values, indent=1))
    _sync(temporary)
    temporary.replace(path)


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
