"""How much memory is left."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def available_memory() -> int | None:
    """Bytes that this process may still use, by the machine and by its control group; None where nothing tells.

    Where the system tells the size of its memory alone, that is the answer.
    """
    known = []
    with suppress(OSError, ValueError, StopIteration):
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        known.append(next(int(line.split()[1]) << 10 for line in meminfo if line.startswith("MemAvailable:")))
    with suppress(OSError, ValueError):  # "max", where there is no limit
        known.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    if not known and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(known, default=None)
