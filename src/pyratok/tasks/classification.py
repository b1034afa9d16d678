"""Zero-shot classification: which of some names does a clip go with?

One vector per clip against one per name, by cosine; nothing is trained for the names.

Source: PyraTok (arXiv 2601.16210), sec. 4 (language-aligned tokens against class names). The averaging of prompts is
that of CLIP (arXiv 2103.00020), sec. 3.1.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pyratok.model.base import VideoTokenizer
from pyratok.tasks.steps import Tokens, step_vectors

TEMPLATES = ("{}", "a video of {}", "a clip that shows {}", "there is {} in the picture")
"""Sentences that suit things ("dog"), things with an article and activities ("riding a bike") alike."""

TEXTS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Classification:
    """``scores`` float32 ``[B, N]``: the cosine of each clip with each of ``names``, in [-1, 1]."""

    names: tuple[str, ...]
    scores: Tensor

    def ranked(self, clip: int = 0) -> tuple[tuple[str, float], ...]:
        """Names and scores of one clip of the batch, best first; of equal scores, in the order given."""
        order = self.scores[clip].sort(descending=True, stable=True)
        return tuple((self.names[i], score) for i, score in zip(order.indices, order.values.tolist(), strict=True))


def classify(
    model: VideoTokenizer, tokens: Tokens, names: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Classification:
    """Compare every clip with every name.

    Raises ValueError for names and templates as :func:`embed_names`, and for tokens of another model.
    """
    vectors = clip_vectors(model, tokens)
    words = embed_names(model, names, templates)
    return Classification(tuple(names), (vectors @ words.T).float().cpu())


def clip_vectors(model: VideoTokenizer, tokens: Tokens) -> Tensor:
    """One unit vector ``[B, D]`` per clip: the mean of what the tokens of its last level held say."""
    return F.normalize(step_vectors(model, tokens).mean(dim=1), dim=-1)


def embed_names(model: VideoTokenizer, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """One unit vector ``[N, D]`` per name: the mean of its unit vectors in all templates, ``{}`` being the name.

    Raises ValueError for names as :func:`check_texts`, for no templates, and for one without ``{}``.
    """
    names = check_texts(names, "name")
    if isinstance(templates, str) or not templates:
        raise ValueError(f"templates are one or more texts in a list, such as ['a video of {{}}'], got {templates!r}")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"a template has {{}} where the name belongs, got {template!r}")
    prompts = [template.replace("{}", name) for name in names for template in templates]
    vectors = embed_texts(model, prompts).unflatten(0, (len(names), len(templates)))
    return F.normalize(vectors.mean(dim=1), dim=-1)


def embed_texts(model: VideoTokenizer, texts: Sequence[str]) -> Tensor:
    """:meth:`~pyratok.model.base.VideoTokenizer.embed_text` of any number of texts ``[N, D]``, some at a time."""
    starts = range(0, len(texts), TEXTS_AT_ONCE)
    return torch.cat([model.embed_text(texts[start : start + TEXTS_AT_ONCE]) for start in starts])


def check_texts(texts: Sequence[str], what: str) -> list[str]:
    """The texts without the spaces around them.

    Raises ValueError for a bare string, for none, for one without letters or digits, and for two that are the same
    but for case and spaces; ``what`` a text is called in the message.
    """
    if isinstance(texts, str):
        raise ValueError(f"expected a list of texts, one per {what}; a single one is [{texts!r}]")
    if not texts:
        raise ValueError(f"nothing was asked for: give at least one {what}")
    seen: dict[str, int] = {}
    for number, text in enumerate(texts, start=1):
        if not any(map(str.isalnum, text)):
            raise ValueError(f"{what} {number} has no letters: {text!r}; say in words what to look for")
        same = seen.setdefault(" ".join(text.casefold().split()), number)
        if same != number:
            raise ValueError(f"{what} {same} and {what} {number} are the same, {text!r}; leave one of them out")
    return [text.strip() for text in texts]
