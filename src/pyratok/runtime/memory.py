"""Bytes: as people write them, as a process holds them, as a pass over tensors needs them."""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_BINARY = {f"{unit}i": 1024**power for power, unit in enumerate("kmgt", start=1)}


def parse_bytes(text: str | int) -> int:
    """``4GiB``, ``1.5 GB``, ``512M`` (decimal, as GB) or a plain number of bytes. Raises ValueError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?i?)(?:b|bytes)?\s*", str(text).lower())
    scale = (_UNITS | _BINARY).get(found[2]) if found else None
    if found is None or scale is None or (count := int(float(found[1]) * scale)) < 1:
        raise ValueError(f"expected an amount of memory such as 4GiB, 1.5GB or 512MiB, got {text!r}")
    return count


def format_bytes(count: float) -> str:
    """Binary units, as budgets of memory are given: ``2.75 GiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if count >= 100 or unit == "bytes" else f"{count:.3g} {unit}"


def resident_bytes(peak: bool = False) -> int | None:
    """Memory that this process holds, or the most that it ever held; None where the system does not tell."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        field = "VmHWM:" if peak else "VmRSS:"
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))
    return None


def tensor_bytes(tensors: Sequence[Tensor]) -> int:
    """Of tensors that share no memory."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make while it is active, and the most that live at once.

    Works on fake tensors too, where a pass of any size costs nothing. What a kernel needs for itself is not seen.

    >>> with TensorMemory() as memory:
    ...     y = (torch.ones(10) + 1).sum()     # doctest: +SKIP
    >>> memory.peak                            # doctest: +SKIP
    84
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._watch(leaf)
        return result

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        # The address of the storage, not of its memory: meta tensors have none. It is free again only after _release.
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size).atexit = False

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size
