"""Modules beside a tokenizer on disk, bound to it: safetensors and JSON, strict, there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from pyratok.model.pretrained import CONFIG, WEIGHTS, ModelLoadError, resolve
from pyratok.types import ModelId
from pyratok.vae.hub import read_json, replacing_folder, resolve_folder

LM, ANSWERER = "lm", "answerer"
"""Folders of companions that ship within that of their model."""


def shipped_companion(model: str | os.PathLike[str] | None, name: str) -> Path | None:
    """The folder of a companion within that of a model, as ``from_pretrained`` takes it; None where it brings none."""
    folder = resolve(model) / name
    return folder if (folder / CONFIG).is_file() else None


def save_companion(folder: str | os.PathLike[str], header: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write ``config.json`` and ``model.safetensors``; the folder appears whole or not at all.

    Where there is one already, what a crash leaves in between is refused by :func:`companion`.
    """
    with replacing_folder(Path(folder)) as unfinished:
        save_file({name: value.contiguous() for name, value in state.items()}, unfinished / WEIGHTS)
        (unfinished / WEIGHTS).chmod(0o644)  # safetensors leaves it readable by its owner alone
        (unfinished / CONFIG).write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")
        (Path(folder) / CONFIG).unlink(missing_ok=True)  # it would say whose tokens the new weights have learned


@contextmanager
def companion(folder: str | os.PathLike[str], kind: str, version: int) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The file of weights and the header of a folder of that ``kind``.

    Whatever the block finds wrong with them, as ValueError, KeyError of the header or torch's RuntimeError for weights
    that do not fit, becomes a :class:`ModelLoadError` that names the folder.
    """
    try:
        path = resolve_folder(folder)
        header = read_json(path / CONFIG)
        if (header.get("format"), header.get("version")) != (kind, version):
            raise ValueError(f"{CONFIG} is not that of a {kind} of version {version}")
        yield path / WEIGHTS, header
    except KeyError as error:
        raise ModelLoadError(f"{folder}: {CONFIG} has no {error}") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelLoadError(f"{folder}: {error}") from error


def require_tokenizer(what: str, learned: ModelId, wanted: ModelId | None) -> None:
    """Raise ValueError for tokens of another tokenizer than the one asked for, naming both."""
    if wanted is not None and learned.fingerprint != wanted.fingerprint:
        raise ValueError(f"this {what} has learned the tokens of {learned}, not of {wanted}")
