"""Text encoders among transformers' models: Qwen2.5-VL, Llama 3, Gemma 3, Qwen3, BERT, MPNet, (UM)T5 and others.

PyraTok (arXiv 2601.16210), sec. 3.2.3 and table 6, takes its captions from the language model of the alignment loss.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from pyratok.text.hf_loading import load_text_model, load_tokenizer
from pyratok.types import TextEmbedding
from pyratok.vae.hub import resolve_folder

Pooling = Literal["mean", "last"]
POOLINGS = ("mean", "last")


class HFTextEncoder:
    """The text part of a transformers model, frozen; see :class:`pyratok.text.base.TextEncoder`.

    Not an ``nn.Module``: a tokenizer that holds one does not carry its weights into checkpoints. Of a model that also
    sees, the vision tower is neither built nor read; of an encoder-decoder, the decoder is not.

    ``folder_or_id``: a folder, or a hub id, which alone is fetched. ``pooling``: the unit-length ``mean`` of a text's
    tokens, or its ``last`` one, which in a causal model has seen all others. ``layer``: which hidden states, as
    transformers counts them: 0 the word embeddings, -1 the last, after the final norm. ``max_tokens``: longer texts
    are cut; lowered to what the model can take. ``dtype``: what the model computes in, by default what its folder
    says; results are float32.

    A text without any token (an empty one, where the tokenizer adds no marks) has a mask that is False throughout,
    and a ``pooled`` of one mark alone. ``tokens`` is 0 where the mask is False.

    Raises ValueError for a bad argument and for a folder that does not hold such a model, naming file and fix;
    ImportError naming the package that is missing (transformers; bitsandbytes, for ``load_in_4bit``; that of AWQ).
    """

    def __init__(
        self,
        folder_or_id: str | os.PathLike[str],
        *,
        pooling: Pooling = "mean",
        layer: int = -1,
        max_tokens: int = 64,
        load_in_4bit: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
        folder = resolve_folder(folder_or_id)
        tokenizer = load_tokenizer(folder)
        self._model: Any = load_text_model(folder, device=device, dtype=dtype, load_in_4bit=load_in_4bit)
        self._tokenizer: Any = tokenizer
        config = self._model.config
        if not -config.num_hidden_layers - 1 <= layer <= config.num_hidden_layers:
            raise ValueError(
                f"layer must be from 0 (word embeddings) to {config.num_hidden_layers} (last), or count from -1 "
                f"backwards, got {layer}"
            )
        config.use_cache = False
        self.name = folder.resolve().name if folder == Path(folder_or_id) else os.fspath(folder_or_id)
        self.dim: int = config.hidden_size
        limits = tokenizer.model_max_length, getattr(config, "max_position_embeddings", max_tokens)
        self.max_tokens: int = min(max_tokens, *limits)
        self.pooling, self.layer = pooling, layer
        self.device = torch.device(device)

    def to(self, device: torch.device | str) -> HFTextEncoder:
        """Move the weights, and with them the results of :meth:`encode`."""
        self.device = torch.device(device)
        self._model.to(self.device)
        return self

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextEmbedding:
        """Hidden states, mask and unit-length pooled vector of ``B`` texts."""
        if isinstance(texts, str) or not texts:
            raise ValueError(f"encode takes a sequence of one or more texts, got {texts!r}; a single one is [text]")
        ids = self._tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]
        empty = torch.tensor([not row for row in ids], device=self.device)
        # Padded here, on the right: a token then sees the same whatever the tokenizer thinks of padding.
        rows = [torch.tensor(row or [self._mark()]) for row in ids]
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        padded = pad_sequence(rows, batch_first=True).to(self.device)
        mask = torch.arange(padded.shape[1], device=self.device) < lengths[:, None]
        tokens = self._hidden(padded, mask).masked_fill(~mask[..., None], 0)
        if self.pooling == "mean":
            pooled = tokens.sum(1)
        else:
            pooled = tokens[torch.arange(len(rows), device=self.device), lengths - 1]
        mask = mask & ~empty[:, None]
        return TextEmbedding(
            tokens=tokens.masked_fill(~mask[..., None], 0), mask=mask, pooled=F.normalize(pooled, dim=-1)
        )

    def _hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states of the chosen layer, float32 ``[B, N, D]``."""
        last = self.layer in (-1, self._model.config.num_hidden_layers)
        with torch.autocast(self.device.type, enabled=False):
            output = self._model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=not last)
        states: Tensor = output.last_hidden_state if last else output.hidden_states[self.layer]
        return states.float()

    def _mark(self) -> int:
        """A token that says nothing, to stand for a text that has none."""
        marks = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id, self._tokenizer.pad_token_id)
        return next((mark for mark in marks if mark is not None), 0)
