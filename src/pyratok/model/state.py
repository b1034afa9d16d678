"""The state of a stream: all that the chunks still to come need of those before, as a value that can be saved.

File: safetensors, one tensor per tail of :class:`~pyratok.nn.carry.Carry` in the order of the layers, and JSON under
``pyratok`` in the metadata that says whose state it is, with a SHA-256 over everything.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pyratok.files import write_atomically
from pyratok.nn.carry import Carry
from pyratok.types import ModelId

FORMAT, VERSION = "pyratok-stream-state", 1
Direction = Literal["encode", "decode"]


class StateError(ValueError):
    """A state that belongs to another stream, or a state file that is missing, damaged or foreign."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamState:
    """Where a stream stands after ``steps`` latent steps.

    ``direction``: what the stream does. ``size``: clips in the batch, and rows and columns of the padded video.
    ``tails``: of every causal layer its last steps of input; a few frames of activations, no more for a longer stream.
    """

    direction: Direction
    model: ModelId
    size: tuple[int, int, int]
    steps: int = 0
    tails: tuple[Tensor, ...] = ()

    def carry(self) -> Carry:
        """For the pass over the next chunk; the state itself stays as it is and can be continued again."""
        return Carry(self.tails if self.steps else None)

    def after(self, carry: Carry, steps: int) -> StreamState:
        """The state ``steps`` latent steps later, after a pass with ``carry``."""
        return replace(self, steps=self.steps + steps, tails=carry.tails())

    def check(self, wanted: StreamState) -> None:
        """Raises :class:`StateError` unless this state is of the same kind of stream, model and size as ``wanted``."""
        if self.direction != wanted.direction:
            raise StateError(f"this is the state of a stream that {self.direction}s; to {wanted.direction}, begin anew")
        if self.model.fingerprint != wanted.model.fingerprint:
            raise StateError(f"this state belongs to {self.model}, this model is {wanted.model}; load the former")
        if self.size != wanted.size:
            mine, other = ("{} x {}x{}".format(*size) for size in (self.size, wanted.size))
            raise StateError(f"this state is of padded clips of {mine} pixels, got {other}; a stream keeps its size")


def save_state(state: StreamState, path: str | os.PathLike[str]) -> None:
    """Write a state to a file, whole or not at all. Raises OSError."""
    fields = {
        "format": FORMAT,
        "version": VERSION,
        "direction": state.direction,
        "model": {"name": state.model.name, "fingerprint": state.model.fingerprint},
        "size": state.size,
        "steps": state.steps,
        "tails": len(state.tails),
    }
    tails = [tail.cpu().contiguous() for tail in state.tails]
    metadata = {"pyratok": json.dumps(fields | {"sha256": _digest(fields, tails)})}
    write_atomically(Path(path), save({str(index): tail for index, tail in enumerate(tails)}, metadata))


def load_state(path: str | os.PathLike[str]) -> StreamState:
    """Read a state back, onto the CPU; a model takes it to its own device.

    Raises :class:`StateError` for a file that is missing, damaged or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            fields: dict[str, Any] = json.loads((file.metadata() or {})["pyratok"])
            if (fields["format"], fields["version"]) != (FORMAT, VERSION):
                raise StateError(f"{os.fspath(path)}: not a stream state of version {VERSION}")
            tails = [file.get_tensor(str(index)) for index in range(fields["tails"])]
        if fields.pop("sha256") != _digest(fields, tails):
            raise StateError(f"{os.fspath(path)}: the file is damaged; its content does not match its digest")
        return StreamState(
            direction=fields["direction"],
            model=ModelId(**fields["model"]),
            size=tuple(fields["size"]),
            steps=fields["steps"],
            tails=tuple(tail.clone(memory_format=torch.channels_last_3d) for tail in tails),
        )
    except StateError:
        raise
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise StateError(f"{os.fspath(path)}: cannot be read as a stream state ({error})") from error


def _digest(fields: dict[str, Any], tails: Sequence[Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for tail in tails:
        digest.update(f"{tail.dtype}{list(tail.shape)}".encode())
        # As bytes, since numpy does not know bfloat16.
        digest.update(tail.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
