"""What a prior is told in words: prompts are checked, embedded, and compared with the captions that it learned from."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

from pyratok.files import write_atomically
from pyratok.model.base import VideoTokenizer
from pyratok.tasks.generation.config import NO_TEXT
from pyratok.tasks.generation.prior import Prior
from pyratok.types import TextEmbedding

WORDS, EXAMPLES = "words.json", "prompts.json"
"""Beside the weights of a prior: the words of the captions that it was trained on, and a few prompts to begin with."""


def check_prompt(prompt: str) -> str:
    """The prompt without the spaces around it. Raises ValueError where that leaves nothing."""
    if not prompt.strip():
        raise ValueError("the prompt is empty; say what there is to be seen, or give none at all")
    return prompt.strip()


def embed_prompt(model: VideoTokenizer, prior: Prior, prompt: str) -> TextEmbedding:
    """A prompt as ``prior`` reads it; one that the text encoder of ``model`` cuts is warned of.

    Raises ValueError for an empty prompt, and where the prior has learned vectors of another width.
    """
    prompt = check_prompt(prompt)
    text = model.embed_captions(prompt, 1)
    assert text is not None
    found, wanted = text.pooled.shape[1], prior.config.text_dim
    if wanted == NO_TEXT:
        raise ValueError("this prior has learned videos without captions and cannot be told anything; give no prompt")
    if found != wanted:
        raise ValueError(
            f"this prior has learned captions of width {wanted}, the text encoder of the model gives {found}; "
            "give no prompt, or train it on shards with embeddings of that encoder"
        )
    encoder = model.text_encoder
    if encoder is not None and int(text.mask.sum()) >= encoder.max_tokens:
        shorter = model.embed_captions(prompt[:-1], 1)
        if shorter is not None and bool((shorter.pooled == text.pooled).all()):
            warnings.warn(
                f"the prompt is cut: no more is read than its first {encoder.max_tokens} tokens", stacklevel=2
            )
    return text


def words_of(caption: str) -> set[str]:
    """The words of a caption, case aside."""
    return set(re.findall(r"\w+", caption.casefold()))


def save_words(folder: str | os.PathLike[str], words: Iterable[str]) -> None:
    write_atomically(Path(folder) / WORDS, json.dumps(sorted(words), ensure_ascii=False) + "\n")


def save_examples(folder: str | os.PathLike[str], prompts: Iterable[str]) -> None:
    write_atomically(Path(folder) / EXAMPLES, json.dumps(list(prompts), ensure_ascii=False, indent=1) + "\n")


def example_prompts(folder: str | os.PathLike[str]) -> list[str]:
    """Prompts that show what the prior in ``folder`` does; none where it does not say.

    Raises ValueError for a damaged list.
    """
    found = _strings(Path(folder) / EXAMPLES)
    return [check_prompt(prompt) for prompt in found or ()]


def unseen_words(folder: str | os.PathLike[str], prompt: str) -> list[str]:
    """Words of a prompt that no caption had which the prior in ``folder`` was trained on; none where it does not say.

    Raises ValueError for a damaged list.
    """
    known = _strings(Path(folder) / WORDS)
    return [] if known is None else sorted(words_of(prompt) - set(known))


def _strings(path: Path) -> list[str] | None:
    """The list of strings in a JSON file; None where there is no file. Raises ValueError for anything else in it."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no list of texts ({error}); delete it, or copy it again") from error
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{path}: no list of texts; delete it, or copy it again")
    return found
