"""Questions about a clip, answered from its tokens: one of some options, or in the reader's own words.

```
tokens ── Reader ── a score per option ── the best one is the answer
              ├─ AnswererReader         is the option true?
              ├─ TokenLMReader          how likely are the tokens, were the option true?
              ├─ LanguageModelReader    how likely is the option, behind the tokens and the question?
              └─ SimilarityReader       how near do the tokens lie to the option, asserted?
```

Source: PyraTok (arXiv 2601.16210), sec. 4, video QA. The paper has the third reader; the others need no large
language model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pyratok.data.questions import statement
from pyratok.model.alignment import TokenLM, require_causal
from pyratok.model.answerer import Answerer, load_answerer, padded
from pyratok.model.base import VideoTokenizer, led_by_a_frame
from pyratok.model.projector import TokenProjector, load_projector
from pyratok.model.pyratok import PyraTok
from pyratok.model.token_lm_files import load_token_lm
from pyratok.tasks.cells import cell_vectors
from pyratok.tasks.classification import check_texts
from pyratok.text.reader import PromptedLM
from pyratok.types import ModelId, TextEmbedding, TokenPyramid


class Reader(Protocol):
    """Reads the tokens of one clip with a question in mind."""

    def scores(self, model: VideoTokenizer, tokens: TokenPyramid, question: str, options: Sequence[str]) -> Tensor:
        """How well each option answers the question: float32 ``[N]``, higher is better, comparable within one call.

        Raises ValueError for tokens that lack a level which the reader needs.
        """
        ...


@runtime_checkable
class Writer(Protocol):
    """A reader that can answer in words of its own."""

    def write(self, model: VideoTokenizer, tokens: TokenPyramid, question: str) -> str: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """``text``; and, where there were options, which of them it is and the ``scores`` of all, float32 ``[N]``."""

    text: str
    option: int | None = None
    scores: Tensor | None = None


@torch.no_grad()
def ask(
    model: VideoTokenizer,
    tokens: TokenPyramid,
    question: str,
    options: Sequence[str] | None = None,
    *,
    reader: Reader,
) -> Answer:
    """Answer a question about one clip: with the best of ``options`` (of equal ones the first), or freely without.

    Raises ValueError for a question or an option without letters or digits, fewer than two options, two that are the
    same but for case and spaces, a batch of clips, tokens of another model or without the levels that the reader
    needs, and for a free answer asked of a reader that can only choose.
    """
    if not any(map(str.isalnum, question)):
        raise ValueError(f"the question has no letters: {question!r}; ask in words, such as 'Where is the dog?'")
    if tokens.batch_size != 1:
        raise ValueError(f"questions are about one clip, got {tokens.batch_size}; take one by tokens.select(index)")
    model.check_tokens(tokens)
    question = question.strip()
    if options is None:
        if not isinstance(reader, Writer):
            raise ValueError(
                f"{type(reader).__name__} only chooses: give options to choose from, or a LanguageModelReader"
            )
        return Answer(text=reader.write(model, tokens, question))
    checked = check_texts(options, "option")
    if len(checked) < 2:
        raise ValueError(f"there is no choice with {len(checked)} option; give two or more, or none at all")
    scores = reader.scores(model, tokens, question, checked).float().cpu()
    best = int(scores.argmax())
    return Answer(text=checked[best], option=best, scores=scores)


class AnswererReader:
    """Chooses the option whose statement a small network, trained to tell true ones from false ones, believes most.

    A score is a logit, which depends on no other option.
    """

    def __init__(self, answerer: Answerer) -> None:
        self.answerer = answerer

    @classmethod
    def load(cls, folder: str | os.PathLike[str], tokenizer: ModelId) -> AnswererReader:
        """From a folder of :func:`~pyratok.model.answerer.save_answerer`; refuses another tokenizer's."""
        return cls(load_answerer(folder, tokenizer))

    @torch.no_grad()
    def scores(self, model: VideoTokenizer, tokens: TokenPyramid, question: str, options: Sequence[str]) -> Tensor:
        if not isinstance(model, PyraTok):
            raise ValueError(f"an answerer reads the tokens of a PyraTok, {model.name} is a {type(model).__name__}")
        require_levels(tokens, self.answerer.config.num_levels, "this answerer")
        place = self.answerer.verdict
        features = model.lapq.pyramid(model.signs_of(led_by_a_frame(tokens)))[-1]
        texts = [model.embed_captions(statement(question, option), 1) for option in options]
        words, mask = padded([text for text in texts if text is not None])
        logits: Tensor = self.answerer(features.to(place), words[None].to(place), mask[None].to(place.device))
        return logits[0].float()


class TokenLMReader:
    """Chooses the option under whose statement a small language model finds the tokens most likely.

    The score is ``log p(tokens | statement) - log p(tokens)`` in nats, summed over the tokens modelled: how much the
    statement tells of the clip. Trained on clips captioned by true statements
    (:class:`~pyratok.data.questions.QuestionedScenes`), it learns what follows for the tokens if one holds.

    Where the language model sees a window of a level at a time, ``windows`` of them, spread evenly over the clip, are
    read and added up, the same for every option.
    """

    def __init__(self, lm: TokenLM, windows: int = 3) -> None:
        if windows < 1:
            raise ValueError(f"at least one window has to be read, got {windows}")
        self.lm, self.windows = lm, windows

    @classmethod
    def load(cls, folder: str | os.PathLike[str], tokenizer: ModelId, windows: int = 3) -> TokenLMReader:
        """From a folder of :func:`~pyratok.model.token_lm_files.save_token_lm`; refuses another tokenizer's."""
        return cls(load_token_lm(folder, tokenizer), windows)

    @torch.no_grad()
    def scores(self, model: VideoTokenizer, tokens: TokenPyramid, question: str, options: Sequence[str]) -> Tensor:
        config, place = self.lm.config, self.lm.start
        require_levels(tokens, config.num_levels, "this language model over tokens")
        signs = [level.to(place) for level in model.signs_of(tokens.prefix(config.num_levels))]
        most = config.max_tokens_per_level
        whole = most is None or all(level[0, 0].numel() <= most for level in signs)
        starts = [0.5] if whole or self.windows == 1 else torch.linspace(0, 1, self.windows).tolist()

        def log_likelihood(text: TextEmbedding | None) -> Tensor:
            outputs = (self.lm(signs, text, window=start) for start in starts)
            return -torch.stack([torch.cat(output.token_nll, dim=1).double().sum() for output in outputs]).sum()

        captions = (model.embed_captions(statement(question, option), 1) for option in options)
        found = torch.stack([log_likelihood(_move(caption, place.device)) for caption in captions])
        return (found - log_likelihood(None)).float()


class LanguageModelReader:
    """A transformers language model that reads the tokens of all levels, projected to its width, before the question.

    An option scores its mean log-likelihood per token, in nats, as an answer; without options the reader writes the
    most likely answer. The ``projector`` is trained for one tokenizer and one language model; ValueError for another
    language model, or for one that sees the future.
    """

    def __init__(self, lm: PromptedLM, projector: TokenProjector) -> None:
        require_causal(lm.backbone, lm.width)
        wanted = projector.config.width, projector.config.language_model
        if (lm.width, _last(lm.name)) != (wanted[0], _last(wanted[1])):
            raise ValueError(
                f"this projector was trained for {wanted[1]} of width {wanted[0]}, got {lm.name} of width {lm.width}; "
                "load that language model, from a folder of that name"
            )
        self.lm, self.projector = lm, projector

    @classmethod
    def load(
        cls, language_model: str | os.PathLike[str], projector: str | os.PathLike[str], tokenizer: ModelId
    ) -> LanguageModelReader:
        """From two folders, or the hub id of the language model; refuses a projector of another tokenizer."""
        return cls(PromptedLM(language_model), load_projector(projector, tokenizer))

    @torch.no_grad()
    def scores(self, model: VideoTokenizer, tokens: TokenPyramid, question: str, options: Sequence[str]) -> Tensor:
        return self.lm.log_likelihoods(self._project(model, tokens), question, options)

    @torch.no_grad()
    def write(self, model: VideoTokenizer, tokens: TokenPyramid, question: str, max_new_tokens: int = 64) -> str:
        return self.lm.write(self._project(model, tokens), question, max_new_tokens)

    def _project(self, model: VideoTokenizer, tokens: TokenPyramid) -> Tensor:
        """``[n, width]``."""
        levels = self.projector.config.num_levels
        require_levels(tokens, levels, "this projector")
        projected: Tensor = self.projector(
            [level.to(self.projector.marks) for level in model.signs_of(tokens)[:levels]]
        )
        return projected[0]


class SimilarityReader:
    """Chooses the option whose statement lies nearest to what the tokens say; no language model, nothing to train.

    The score is a mean of cosines over ``levels`` (all that are held by default; counted from 0, or from the last one
    with -1): of the statement with the clip's mean, and with the single token that is nearest to it.

    It can tell *what* is there, and colours as far as the text space has them. Both ways of pooling forget where and
    when a token was, so *where*, *which way*, *how many* and *in which order* are guessed, unless the tokens'
    own vectors say so. A baseline, and what is left where there is no language model.
    """

    def __init__(self, levels: Sequence[int] | None = None) -> None:
        if levels is not None and not levels:
            raise ValueError("there is no level to read; give at least one, or None for all")
        self.levels = None if levels is None else tuple(levels)

    @torch.no_grad()
    def scores(self, model: VideoTokenizer, tokens: TokenPyramid, question: str, options: Sequence[str]) -> Tensor:
        held = len(tokens.levels)
        levels = range(held) if self.levels is None else self.levels
        needed = max(level + 1 if level >= 0 else -level for level in levels)
        require_levels(tokens, needed, "this reader")
        statements = model.embed_text([statement(question, option) for option in options])
        found = []
        for level in levels:
            cells = cell_vectors(model, tokens, level).flatten(0, -2)
            mean = torch.nn.functional.normalize(cells.mean(0), dim=0)
            nearest = (torch.nn.functional.normalize(cells, dim=-1) @ statements.T).amax(0)
            found.append((statements @ mean + nearest) / 2)
        return torch.stack(found).mean(0)


def require_levels(tokens: TokenPyramid, count: int, who: str) -> None:
    """Raise ValueError for tokens of fewer than ``count`` levels."""
    held = len(tokens.levels)
    if held < count:
        raise ValueError(
            f"{who} needs {count} levels, these tokens hold {held}; load the .pyra with all its levels, or encode the "
            "video again"
        )


def _move(text: TextEmbedding | None, device: torch.device) -> TextEmbedding | None:
    if text is None:
        return None
    return TextEmbedding(tokens=text.tokens.to(device), mask=text.mask.to(device), pooled=text.pooled.to(device))


def _last(name: str) -> str:
    """The name of a hub id or folder without its owner and revision."""
    return name.rpartition("/")[2].partition("@")[0]
