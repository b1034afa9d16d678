"""Token language models on disk: safetensors and JSON, strict, bound to the tokenizer whose tokens they read."""

from __future__ import annotations

import os

from pyratok.config import from_dict, to_dict
from pyratok.model.alignment import TokenLM, TokenLMConfig
from pyratok.model.companions import companion, require_tokenizer, save_companion
from pyratok.types import ModelId
from pyratok.vae.hub import read_weights

FORMAT, VERSION = "pyratok-token-lm", 1


def save_token_lm(lm: TokenLM, folder: str | os.PathLike[str], tokenizer: ModelId) -> None:
    """Write ``config.json`` and ``model.safetensors`` as :func:`~pyratok.model.companions.save_companion` does.

    ``tokenizer``: whose tokens it has learned. A pretrained backbone, which is no part of the state, is named and not
    copied.
    """
    header = {"format": FORMAT, "version": VERSION, "tokenizer": to_dict(tokenizer), "lm": to_dict(lm.config)}
    save_companion(folder, header, lm.state_dict())


def load_token_lm(folder: str | os.PathLike[str], tokenizer: ModelId | None = None) -> TokenLM:
    """Read a language model for inference (evaluation mode, no gradients).

    Raises :class:`~pyratok.model.pretrained.ModelLoadError` for a damaged or foreign folder, and, where ``tokenizer``
    is given, for a model that has learned the tokens of another one: both are named.
    """
    with companion(folder, FORMAT, VERSION) as (weights, header):
        require_tokenizer("language model", from_dict(ModelId, header["tokenizer"]), tokenizer)
        lm = TokenLM(from_dict(TokenLMConfig, header["lm"]))
        lm.load_state_dict(read_weights(weights))
    return lm.eval().requires_grad_(False)
