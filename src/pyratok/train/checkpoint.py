"""Training checkpoints: everything needed to go on, without pickle.

One folder per checkpoint: ``model.safetensors``, ``average.safetensors`` (EMA), ``optimizer-<i>.safetensors`` and
``state.json``: step, settings of the optimisers, log values not yet written, and ``origin``, the settings that decide
what the run learns. It is written under a temporary name, fsynced and renamed, so that a folder with its final name is
whole; the newest ``keep`` are kept.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pyratok.files import write_atomically
from pyratok.vae.hub import read_json, replacing_folder

PREFIX = "step-"
NAME = re.compile(rf"{PREFIX}\d{{8,}}")


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
    try:
        with replacing_folder(final) as unfinished:
            write_tensors(unfinished / "model.safetensors", trainable_state(model))
            write_tensors(unfinished / "average.safetensors", trainable_state(average))
            groups = []
            for index, optimizer in enumerate(optimizers):
                state = optimizer.state_dict()
                tensors = {
                    f"{i}.{name}": value
                    for i, entry in state["state"].items()
                    for name, value in entry.items()
                    if isinstance(value, Tensor)
                }
                write_tensors(unfinished / f"optimizer-{index}.safetensors", tensors)
                groups.append(state["param_groups"])
            state_json = json.dumps({"step": step, "groups": groups, **extra}, indent=1)
            (unfinished / "state.json").write_text(state_json, encoding="utf-8")
            shutil.rmtree(final, ignore_errors=True)
    finally:
        # What a process that was killed here left behind.
        for left in folder.glob(f".{PREFIX}*"):
            shutil.rmtree(left, ignore_errors=True)
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder``, if any."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def _checkpoints(folder: Path) -> list[Path]:
    """Oldest first; whatever else lies in the folder is none of ours."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if NAME.fullmatch(path.name) and path.is_dir())


def checkpoint_to_resume(out: Path, resume: bool, origin: Mapping[str, Any] | None = None) -> Path | None:
    """The newest checkpoint of the run in ``out``, if there is one.

    ``origin``: the settings that decide what the run learns, JSON-ready. Raises ValueError where nobody asked to go on,
    where the checkpoint was made with another ``origin`` (naming the first field that differs), and where it is
    damaged.
    """
    found = latest_checkpoint(out / "checkpoints")
    if found is None:
        return None
    if not resume:
        raise ValueError(f"{out} already holds checkpoints; pass --resume to go on, or choose another folder")
    difference = next(_differing(_read_state(found).get("origin"), origin), None)
    if difference is not None:
        field, before, now = difference
        advice = "give the same again, or choose another folder"
        raise ValueError(f"{out}: this run was begun with {field} = {before!r}, not {now!r}; {advice}")
    return found


def _differing(before: Any, now: Any, field: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Fields with different values; those that only one side has come from another version, or were not given."""
    if isinstance(before, dict) and isinstance(now, Mapping):
        for key in (key for key in before if key in now):
            yield from _differing(before[key], now[key], f"{field}.{key}".lstrip("."))
    elif field and before != now:
        yield field, before, now


def load_checkpoint(
    path: Path, model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> dict[str, Any]:
    """Restore everything in place; returns the content of ``state.json``.

    Raises ValueError for a checkpoint that is damaged or belongs to another model or optimiser.
    """
    state = _read_state(path)
    try:
        restore(model, load_file(path / "model.safetensors"))
        restore(average, load_file(path / "average.safetensors"))
        for index, optimizer in enumerate(optimizers):
            entries = load_file(path / f"optimizer-{index}.safetensors")
            optimizer.load_state_dict(
                {"state": _by_parameter(entries, optimizer), "param_groups": state["groups"][index]}
            )
    except (OSError, SafetensorError, ValueError, LookupError, RuntimeError, TypeError) as error:
        raise _refusal(path, error) from error
    return state


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = read_json(path / "state.json")
    except ValueError as error:
        raise _refusal(path, error) from error
    if type(state.get("step")) is not int:
        raise _refusal(path, f"state.json has step = {state.get('step')!r}, which should be an integer")
    return state


def _refusal(path: Path, reason: object) -> ValueError:
    return ValueError(f"{path}: cannot go on from this checkpoint: {reason}")


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
    """A safetensors file."""
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """A JSON file, whole or not at all."""
    write_atomically(path, json.dumps(values, indent=1))
