"""What one run of a benchmark leaves behind: a JSON file of its own in the folder of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyratok.files import write_atomically

RESULTS = Path(__file__).resolve().parent / "results"
FORMAT = 2

Record = dict[str, Any]


def write(record: Record, folder: Path) -> None:
    """Keep a record as ``<folder>/<benchmark>.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{record['benchmark']}.json", json.dumps(record, indent=1) + "\n")


def read(folder: Path, benchmark: str) -> Record | None:
    """The record of a benchmark if it may be shown: there, of the present format, and of the full sizes."""
    path = folder / f"{benchmark}.json"
    if not path.is_file():
        return None
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    return record if record.get("format") == FORMAT and not record["quick"] else None
