"""Token language models on disk: safetensors and JSON, strict, bound to the tokenizer whose tokens they read."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors.torch import save_file

from pyratok.config import from_dict, to_dict
from pyratok.model.alignment import TokenLM, TokenLMConfig
from pyratok.model.pretrained import CONFIG, WEIGHTS, ModelLoadError
from pyratok.types import ModelId
from pyratok.vae.hub import read_json, read_weights, replacing_folder, resolve_folder

FORMAT, VERSION = "pyratok-token-lm", 1


def save_token_lm(lm: TokenLM, folder: str | os.PathLike[str], tokenizer: ModelId) -> None:
    """Write ``config.json`` and ``model.safetensors``; the folder appears whole or not at all.

    Where there is one already, what a crash leaves in between is refused by :func:`load_token_lm`. ``tokenizer``: whose
    tokens it has learned. A pretrained backbone, which is no part of the state, is named and not copied.
    """
    header = {"format": FORMAT, "version": VERSION, "tokenizer": to_dict(tokenizer), "lm": to_dict(lm.config)}
    with replacing_folder(Path(folder)) as unfinished:
        save_file({name: value.contiguous() for name, value in lm.state_dict().items()}, unfinished / WEIGHTS)
        (unfinished / WEIGHTS).chmod(0o644)  # safetensors leaves it readable by its owner alone
        (unfinished / CONFIG).write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")
        (Path(folder) / CONFIG).unlink(missing_ok=True)  # it would say whose tokens the new weights have learned


def load_token_lm(folder: str | os.PathLike[str], tokenizer: ModelId | None = None) -> TokenLM:
    """Read a language model for inference (evaluation mode, no gradients).

    Raises :class:`ModelLoadError` for a damaged or foreign folder, and, where ``tokenizer`` is given, for a model that
    has learned the tokens of another one: both are named.
    """
    try:
        path = resolve_folder(folder)
        header = read_json(path / CONFIG)
        if (header.get("format"), header.get("version")) != (FORMAT, VERSION):
            raise ValueError(f"{CONFIG} is not that of a {FORMAT} of version {VERSION}")
        learned = from_dict(ModelId, header["tokenizer"])
        if tokenizer is not None and learned.fingerprint != tokenizer.fingerprint:
            raise ValueError(f"this language model has learned the tokens of {learned}, not of {tokenizer}")
        lm = TokenLM(from_dict(TokenLMConfig, header["lm"]))
        lm.load_state_dict(read_weights(path / WEIGHTS))
    except KeyError as error:
        raise ModelLoadError(f"{folder}: {CONFIG} has no {error}") from None
    except (OSError, ValueError, RuntimeError) as error:  # torch's own for weights that do not fit
        raise ModelLoadError(f"{folder}: {error}") from error
    return lm.eval().requires_grad_(False)
