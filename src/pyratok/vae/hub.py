"""Model folders: on disk, or on the hub when, and only when, a hub id is given; how they are read and written."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pyratok.files import sync

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")


def resolve_folder(source: str | os.PathLike[str], wanted: Sequence[str] = ("*.json", "*.safetensors")) -> Path:
    """A folder as given, or the local snapshot of ``owner/name[@revision]``, fetched once.

    ``wanted``: patterns of what is fetched; ``*`` stands for folders too. Raises ValueError where there is neither,
    naming the extra to install where that is what is missing.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    # A name whose first part is a folder here is a mistyped path, not a hub id.
    is_path = folder.exists() or (folder.parent != Path() and folder.parent.is_dir())
    if is_path or not HUB_ID.fullmatch(os.fspath(source)):
        raise ValueError(f"{source}: no such folder")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(f"{source}: no such folder; to load it from the hub, pip install pyratok[hub]") from None
    name, _, revision = os.fspath(source).partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(wanted)))
    except Exception as error:
        raise ValueError(f"{source}: neither a folder here nor reachable on the hub ({error})") from error


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder``, which takes its place, fsynced, when the block ends without an error.

    A folder that is there then keeps its other files. Those of the block are moved in one by one, JSON last: what
    tells how the others are to be read. An OSError of the temporary folder is raised again in the name of ``folder``.
    """
    temporary = folder.parent / f".{folder.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        files = sorted(temporary.iterdir(), key=lambda path: path.suffix == ".json")
        for path in (*files, temporary):
            sync(path)
        if folder.exists():
            for path in files:
                path.replace(folder / path.name)
                sync(folder)
        else:
            temporary.replace(folder)
            sync(folder.parent)
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(temporary)):
            raise
        raise OSError(error.errno, error.strerror or str(error), os.fspath(folder)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return values


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, in float32; ValueError where it is missing or damaged."""
    try:
        return {name: value.float() for name, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path.name} cannot be read as safetensors ({error})") from error


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Fill a module, on the meta device until then, with exactly its own weights: the same names and shapes.

    Raises ValueError, before anything of the module's size is allocated, naming the first few that do not fit.
    """
    wanted = module.state_dict()
    for what, names in (("missing", wanted.keys() - weights.keys()), ("unknown", weights.keys() - wanted.keys())):
        if names:
            examples = ", ".join(sorted(names)[:3])
            raise ValueError(f"the weights do not fit the configuration: {len(names)} {what}, such as {examples}")
    for name, value in wanted.items():
        if value.shape != weights[name].shape:
            shapes = f"{tuple(weights[name].shape)}, the configuration asks for {tuple(value.shape)}"
            raise ValueError(f"the weights do not fit the configuration: {name} has shape {shapes}")
    module.to_empty(device="cpu").load_state_dict(weights)
