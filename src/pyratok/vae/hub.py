"""Model folders: on disk, or on the hub when, and only when, a hub id is given."""

from __future__ import annotations

import os
import re
from pathlib import Path

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")


def resolve_folder(source: str | os.PathLike[str]) -> Path:
    """A folder as given, or the local snapshot of ``owner/name[@revision]``, fetched once.

    Raises ValueError where there is neither, naming the extra to install where that is what is missing.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists() or not HUB_ID.fullmatch(os.fspath(source)):
        raise ValueError(f"{source}: no such folder")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(f"{source}: no such folder; to load it from the hub, pip install pyratok[hub]") from None
    name, _, revision = os.fspath(source).partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:
        raise ValueError(f"{source}: neither a folder here nor reachable on the hub ({error})") from error
