"""Learning to tell true statements about a clip from false ones, from its finished tokens.

    shards ── ids ──► signs ──► q^(L) ──┐
           └─ questions ─► statements ──┴► answerer ──► a logit per option ──► cross-entropy

Clips are met again and again with the same questions, so that a share of their cells is hidden, anew each time. Every
32nd clip that is met is one that nothing is learned from: the accuracy there says what is understood, and what only
remembered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from pyratok.data.questions import KINDS, NUM_OPTIONS, Question
from pyratok.model.answerer import Answerer, AnswererConfig, padded
from pyratok.model.pyratok import PyraTok
from pyratok.nn.collective import mean_across_ranks
from pyratok.text.base import TextEncoder
from pyratok.train.objectives import LossWeights, Named, Objective, Part
from pyratok.train.stored import Rounds, all_signs, read_shards, signs_of
from pyratok.types import LossTerms, TextEmbedding

HELD_OUT_EVERY = 32
MAX_WEIGHT = 4.0
"""Of a question whose answer is rarely true."""
MAX_TEXT_BYTES = 384 << 20
"""What embedded statements may take in memory; one takes 8 kB with MiniLM."""


@dataclass(frozen=True, kw_only=True)
class AnsweringConfig:
    """How an answerer is trained.

    ``questions``: how many a clip is stored with, at most, each of another of the ``kinds``. ``hidden``: share of the
    cells of a clip that the answerer does not see. ``max_text_tokens``: longer statements are cut.
    """

    answerer: AnswererConfig
    questions: int = 3
    kinds: tuple[str, ...] = KINDS
    hidden: float = 0.2
    max_text_tokens: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.questions <= len(KINDS):
            raise ValueError(f"questions must be in 1..{len(KINDS)}, the number of kinds, got {self.questions}")
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"kinds of questions are one or more of {', '.join(KINDS)}, got {list(self.kinds)}")
        if not 0 <= self.hidden < 1:
            raise ValueError(f"hidden is a share in [0, 1), got {self.hidden}")
        if self.max_text_tokens < 1:
            raise ValueError(f"max_text_tokens must be at least 1, got {self.max_text_tokens}")


@dataclass(frozen=True, kw_only=True, eq=False)
class AskedItem:
    """A clip: ``levels`` int32 ids ``[t, h, w]`` each, its questions and what each of them weighs.

    ``held_out``: nothing is to be learned from it.
    """

    levels: tuple[Tensor, ...]
    questions: tuple[Question, ...]
    weights: tuple[float, ...]
    held_out: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class AskedBatch:
    """``levels`` int32 ids ``[B, t, h, w]`` each; the rest of each clip as in :class:`AskedItem`."""

    levels: tuple[Tensor, ...]
    questions: tuple[tuple[Question, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    held_out: tuple[bool, ...]


class StoredQuestions(Dataset[AskedItem]):
    """The clips of some shards with their questions, ``length`` of them counted with repetition.

    Item i is a pure function of (seed, i) and the shards. Questions weigh such that all kinds count alike, and within
    a kind all answers: whoever learns what is usual learns nothing. The mean weight is one, but for the limit.
    """

    def __init__(self, shards: Sequence[Path], *, length: int, seed: int = 0) -> None:
        clips = read_shards(shards)
        self.levels, self.length = clips.levels, length
        self.questions = [tuple(_question(fields) for fields in asked) for asked in clips.texts["questions"]]
        self.weights = balancing_weights([question for asked in self.questions for question in asked])
        numbers = range(len(self.questions))
        held_out = numbers[::HELD_OUT_EVERY] if len(numbers) >= HELD_OUT_EVERY else ()
        self.shown = sorted(set(numbers) - set(held_out))
        self.held_out = tuple(held_out)
        self.shown_rounds = Rounds(len(self.shown), seed)
        self.held_out_rounds = Rounds(max(1, len(self.held_out)), seed)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> AskedItem:
        if not 0 <= index < self.length:
            raise IndexError(f"clip {index} of {self.length}")
        before, place = divmod(index, HELD_OUT_EVERY)
        is_held_out = place == 0 and bool(self.held_out)
        if is_held_out:
            clip = self.held_out[self.held_out_rounds[before]]
        else:
            clip = self.shown[self.shown_rounds[index - before - 1 if self.held_out else index]]
        asked = self.questions[clip]
        return AskedItem(
            levels=tuple(ids[clip].int() for ids in self.levels),
            questions=asked,
            weights=tuple(self.weights[_answer_of(question)] for question in asked),
            held_out=is_held_out,
        )

    def collate(self, items: Sequence[AskedItem]) -> AskedBatch:
        return AskedBatch(
            levels=tuple(torch.stack(ids) for ids in zip(*(item.levels for item in items), strict=True)),
            questions=tuple(item.questions for item in items),
            weights=tuple(item.weights for item in items),
            held_out=tuple(item.held_out for item in items),
        )


class AnsweringParts(nn.Module):
    """What a run holds: the tokenizer, which stays as it is, and the answerer that learns its tokens."""

    def __init__(self, tokenizer: PyraTok, answerer: Answerer) -> None:
        super().__init__()
        self.tokenizer, self.answerer = tokenizer, answerer


class AnsweringObjective(Objective):
    """Cross-entropy among the options of every question, in nats; watched: the share answered rightly.

    ``accuracy`` is that of all questions that are learned from, ``accuracy_KIND`` of one kind, ``held_out`` of those
    that are not; where a batch has no such question, it is what ``accuracy`` is.
    """

    model: AnsweringParts

    def __init__(self, parts: AnsweringParts, config: AnsweringConfig, text_encoder: TextEncoder) -> None:
        super().__init__(parts, LossWeights())
        self.config = config
        self.statements = StatementTable(text_encoder, config.max_text_tokens)

    def prepare(self, batch: AskedBatch, part: Part | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The signs of the last level take the place of the clips, all else is choices."""
        part = part or Part.whole(len(batch.questions))
        last, choices = signs_of(batch.levels, self.model.tokenizer)
        room = len(batch.questions), self.config.questions
        kind, answer = torch.full(room, -1), torch.zeros(room, dtype=torch.long)
        weight, learned = torch.zeros(room), torch.zeros(room, dtype=torch.bool)
        sentences = [[""] * (self.config.questions * NUM_OPTIONS) for _ in batch.questions]
        for row, asked in enumerate(batch.questions):
            for place, question in enumerate(asked[: self.config.questions]):
                kind[row, place], answer[row, place] = KINDS.index(question.kind), question.answer
                weight[row, place], learned[row, place] = batch.weights[row][place], not batch.held_out[row]
                sentences[row][place * NUM_OPTIONS : (place + 1) * NUM_OPTIONS] = question.statements
        words, mask = self.statements.embed([sentence for row in sentences for sentence in row])
        choices |= {"kind": kind, "answer": answer, "weight": weight, "learned": learned}
        choices |= {"words": words.unflatten(0, (len(sentences), -1)), "mask": mask.unflatten(0, (len(sentences), -1))}
        if self.config.hidden:
            cells = self.model.answerer.num_cells(last.shape[2:])
            # The places of a random order: exactly as many are hidden in every clip.
            order = part.of(torch.rand(part.total, cells)).argsort(dim=1).argsort(dim=1)
            choices["hidden"] = (order < int(self.config.hidden * cells)) & ~torch.tensor(batch.held_out)[:, None]
        return last, choices

    def terms(self, video: Tensor, **choices: Tensor) -> tuple[Named, Named]:
        tokenizer, answerer = self.model.tokenizer, self.model.answerer
        with torch.no_grad():
            features = tokenizer.lapq.pyramid(all_signs(video, choices, tokenizer))[-1]
        words = choices["words"].float()
        logits = answerer(features, words, choices["mask"], choices.get("hidden")).float()
        logits = logits.unflatten(1, (-1, NUM_OPTIONS))
        nats = F.cross_entropy(logits.flatten(0, 1), choices["answer"].flatten(), reduction="none")
        learned, kind = choices["learned"], choices["kind"]
        # This rank's part of the mean over the questions of all ranks.
        count = mean_across_ranks(learned.float().sum()).clamp_min(1e-6)
        loss = (nats.view_as(learned) * choices["weight"] * learned).sum() / count
        with torch.no_grad():
            right = (logits.argmax(-1) == choices["answer"]).float()
            accuracy = _share(right, learned, right.new_zeros(()))
            found = {"accuracy": accuracy, "held_out": _share(right, (kind >= 0) & ~learned, accuracy)}
            found |= {
                f"accuracy_{name}": _share(right, learned & (kind == number), accuracy)
                for number, name in enumerate(KINDS)
                if name in self.config.kinds
            }
        return {"answers": loss}, found

    def forward(self, video: Tensor, **choices: Tensor) -> LossTerms:
        terms, metrics = self.terms(video, **choices)
        return LossTerms(terms=terms, weights={"answers": 1.0}, metrics=metrics)


class StatementTable:
    """Sentences as the vectors of a text encoder, each computed once as long as there is room, in float16."""

    def __init__(self, encoder: TextEncoder, max_tokens: int, max_bytes: int = MAX_TEXT_BYTES) -> None:
        self.encoder, self.max_tokens, self.max_bytes = encoder, max_tokens, max_bytes
        self.known: dict[str, TextEmbedding] = {}
        self.bytes = 0

    def embed(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Words float16 ``[S, N, D]`` and mask ``[S, N]``, on the CPU; of an empty text nothing is a word.

        N is the next multiple of 8, so that a compiled step sees few shapes.
        """
        found = padded([self._text(text) for text in texts], multiple=8)
        while self.bytes > self.max_bytes and self.known:
            self.bytes -= _size(self.known.pop(next(iter(self.known))))
        return found

    def _text(self, text: str) -> TextEmbedding:
        said = self.known.pop(text, None)
        if said is None:
            new = self.encoder.encode([text])
            tokens = new.tokens[:, : self.max_tokens].to("cpu", torch.float16)
            mask = new.mask[:, : self.max_tokens].cpu() if text else torch.zeros(tokens.shape[:2], dtype=torch.bool)
            said = TextEmbedding(tokens=tokens, mask=mask, pooled=new.pooled.to("cpu", torch.float16))
            self.bytes += _size(said)
        self.known[text] = said  # the one met last is the last to go
        return said


def balancing_weights(questions: Sequence[Question]) -> dict[tuple[str, str], float]:
    """By kind and true option: what a question weighs, so that all kinds, and all answers of a kind, count alike."""
    asked = Counter(map(_answer_of, questions))
    answers = Counter(kind for kind, _ in asked)
    return {
        (kind, true): min(MAX_WEIGHT, len(questions) / (len(answers) * answers[kind] * count))
        for (kind, true), count in asked.items()
    }


def _answer_of(question: Question) -> tuple[str, str]:
    return question.kind, question.options[question.answer]


def _question(fields: dict[str, object]) -> Question:
    """As JSON holds it."""
    return Question(**{**fields, "options": tuple(fields["options"])})  # type: ignore[arg-type]


def _share(right: Tensor, of: Tensor, otherwise: Tensor) -> Tensor:
    count = of.sum()
    return torch.where(count > 0, (right * of).sum() / count.clamp_min(1), otherwise)


def _size(text: TextEmbedding) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (text.tokens, text.mask, text.pooled))
