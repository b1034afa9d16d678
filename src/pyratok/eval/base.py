"""What protocols share."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import torch

import pyratok


@dataclass(frozen=True, kw_only=True)
class HashedProtocol:
    """A protocol whose ``digest`` says which results may be compared: those with the same one."""

    @property
    def digest(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """The fields and the digest, ready for JSON."""
        return asdict(self) | {"digest": self.digest}


def versions() -> dict[str, str]:
    """What a record was measured with."""
    return {"pyratok": pyratok.__version__, "torch": torch.__version__}
