"""Learning to answer from finished tokens: it can be learned, and what is usual is of no use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from pyratok.config import TextHeadConfig
from pyratok.data.questions import Kind, Question
from pyratok.data.synthetic import SceneConfig
from pyratok.model.answerer import Answerer, AnswererConfig, load_answerer
from pyratok.model.pretrained import from_pretrained, read_config
from pyratok.recipes.nano import nano_answering
from pyratok.train.answering import (
    HELD_OUT_EVERY,
    AnsweringConfig,
    AnsweringObjective,
    AnsweringParts,
    AskedBatch,
    StatementTable,
    StoredQuestions,
    balancing_weights,
)
from pyratok.train.dryrun import outline
from pyratok.train.objectives import Part
from pyratok.train.run import Recipe, run
from pyratok.train.stages import Plan, run_plan
from pyratok.train.stored import Tokenised, _write
from pyratok.types import TextEmbedding
from tiny import CONFIG, StubText, tiny_pyratok
from tiny_training import OPTIM, settings

MODEL = replace(CONFIG, text_head=TextHeadConfig(width=16, num_blocks=1, kernel=3))
SMALL = {"width": 16, "narrow": 8, "num_blocks": 1, "num_layers": 2, "num_heads": 2}
ANSWERING = AnsweringConfig(answerer=AnswererConfig.reading(MODEL, **SMALL), questions=2, hidden=0.0)
GRIDS = ((5, 2, 2), (3, 4, 4), (2, 4, 4), (2, 4, 4))
PLACES = ("on the left", "on the right", "at the top", "in the centre")


def where(answer: int, noun: str = "frog") -> Question:
    return Question(text=f"Where is the {noun}?", options=PLACES, answer=answer, kind="where")


def ids(count: int) -> tuple[Tensor, ...]:
    """The first clips are the same, however many there are."""
    rows = [torch.Generator().manual_seed(row) for row in range(count)]
    return tuple(
        torch.stack([torch.randint(1 << 16, grid, generator=row, dtype=torch.int32) for row in rows]) for grid in GRIDS
    )


def batch_of(*asked: Sequence[Question], held_out: Sequence[int] = ()) -> AskedBatch:
    return AskedBatch(
        levels=ids(len(asked)),
        questions=tuple(map(tuple, asked)),
        weights=tuple((1.0,) * len(questions) for questions in asked),
        held_out=tuple(row in held_out for row in range(len(asked))),
    )


def objective(config: AnsweringConfig = ANSWERING) -> AnsweringObjective:
    tokenizer = tiny_pyratok(config=MODEL)
    answerer = Answerer(config.answerer)
    answerer.take_head(tokenizer.text_head)
    return AnsweringObjective(AnsweringParts(tokenizer.requires_grad_(False), answerer), config, StubText())


def step(target: AnsweringObjective, batch: AskedBatch) -> Any:
    video, choices = target.prepare(batch)
    return target(video, **choices)


class TestObjective:
    def test_a_small_set_is_learned_to_the_last_question(self) -> None:
        """Also where the same is asked of clips that differ in nothing but their words."""
        target = objective()
        batch = batch_of(*([where(row % 4), where((row + 1) % 4, "old man")] for row in range(6)))
        learning = [parameter for parameter in target.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=1e-3)
        for _ in range(400):
            losses = step(target, batch)
            optimizer.zero_grad()
            losses.total.backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            if losses.metrics["accuracy"] == 1:
                break
        assert losses.metrics["accuracy"] == 1
        assert losses.metrics["accuracy_where"] == 1
        again = objective()
        again.load_state_dict(target.state_dict())
        flipped = [
            [replace(q, options=q.options[::-1], answer=3 - q.answer) for q in asked] for asked in batch.questions
        ]
        assert step(again, batch_of(*flipped)).metrics["accuracy"] == 1

    def test_at_first_it_knows_nothing(self) -> None:
        """With the same weights for all statements the loss is the logarithm of their number."""
        target = objective()
        torch.nn.init.zeros_(target.model.answerer.out.weight)
        losses = step(target, batch_of([where(0)], [where(2), where(1, "cat")]))
        assert losses.total.item() == pytest.approx(np.log(4), rel=1e-5)

    def test_held_out_clips_teach_nothing_and_are_watched(self) -> None:
        target = objective()
        questions = [where(0)], [where(1), where(2, "cat")]
        alone = step(target, batch_of(*questions))
        both = step(target, batch_of(*questions, [where(3)], held_out=[2]))
        torch.testing.assert_close(both.total, alone.total)
        assert float(both.metrics["held_out"]) in (0.0, 1.0)
        assert alone.metrics["held_out"] == alone.metrics["accuracy"]

    def test_weights_count(self) -> None:
        target, batch = objective(), batch_of([where(0)], [where(1)])
        first, second = (step(target, replace(batch, weights=w)).total for w in (((2.0,), (0.0,)), ((0.0,), (2.0,))))
        torch.testing.assert_close(step(target, batch).total, (first + second) / 2)

    def test_choices_are_those_of_the_whole_step(self) -> None:
        target = objective(replace(ANSWERING, hidden=0.5))
        batch = batch_of(*([where(row)] for row in range(4)))

        def choices(part: Part | None, rows: slice) -> dict[str, Tensor]:
            torch.manual_seed(3)
            some = AskedBatch(
                levels=tuple(level[rows] for level in batch.levels),
                questions=batch.questions[rows],
                weights=batch.weights[rows],
                held_out=batch.held_out[rows],
            )
            return target.prepare(some, part)[1]

        whole, half = choices(None, slice(4)), choices(Part(first=2, size=2, total=4), slice(2, 4))
        assert whole["hidden"].sum(1).tolist() == [16] * 4
        assert whole.keys() == half.keys()
        assert all(torch.equal(value[2:], half[name]) for name, value in whole.items())

    def test_nothing_of_the_tokenizer_learns(self) -> None:
        learning = {name for name, p in objective().named_parameters() if p.requires_grad}
        assert learning
        assert all(name.startswith("model.answerer.") and ".head." not in name for name in learning)


class TestStoredQuestions:
    COUNT = 2 * HELD_OUT_EVERY

    @pytest.fixture
    def shard(self, tmp_path: Path) -> Path:
        """Clips whose first word, and whose question, say which they are."""
        levels = ids(self.COUNT)
        for row in range(self.COUNT):
            levels[0][row, 0, 0, 0] = row
        questions = [[where(row % 4, f"noun {row}").__dict__] for row in range(self.COUNT)]
        _write(tmp_path / "s", [Tokenised(levels=levels, tensors={}, texts={"questions": questions})])
        return tmp_path / "s"

    def test_clips_come_with_their_questions_each_once_a_round(self, shard: Path) -> None:
        shown = self.COUNT - 2
        rounds = 2 * (shown + shown // (HELD_OUT_EVERY - 1) + 1)
        kept = StoredQuestions([shard], length=rounds, seed=1)
        met: dict[bool, list[int]] = {True: [], False: []}
        for item in map(kept.__getitem__, range(rounds)):
            number = int(item.levels[0][0, 0, 0])
            assert item.questions == (where(number % 4, f"noun {number}"),)
            met[item.held_out].append(number)
        assert set(met[True]) == {0, HELD_OUT_EVERY}
        for turn in (met[False][:shown], met[False][shown : 2 * shown]):
            assert sorted(turn) == [number for number in range(self.COUNT) if number % HELD_OUT_EVERY]
        again = StoredQuestions([shard], length=rounds, seed=1)
        assert torch.equal(again[40].levels[0], kept[40].levels[0])
        batch = kept.collate([kept[i] for i in range(HELD_OUT_EVERY)])
        assert batch.held_out == (True, *[False] * (HELD_OUT_EVERY - 1))
        with pytest.raises(IndexError):
            kept[rounds]

    def test_of_few_clips_none_is_held_out(self, shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pyratok.train.answering.HELD_OUT_EVERY", self.COUNT + 1)
        kept = StoredQuestions([shard], length=self.COUNT)
        assert {int(kept[i].levels[0][0, 0, 0]) for i in range(self.COUNT)} == set(range(self.COUNT))
        assert not any(kept[i].held_out for i in range(self.COUNT))


def test_kinds_and_answers_count_alike() -> None:
    def asked(kind: Kind, true: str, times: int) -> list[Question]:
        return [Question(text="?", options=(true, "x", "y", "z"), answer=0, kind=kind)] * times

    questions = asked("where", "left", 6) + asked("where", "right", 2) + asked("count", "one", 4)
    weights = balancing_weights(questions)
    assert weights == {("where", "left"): 0.5, ("where", "right"): 1.5, ("count", "one"): 1.5}
    rare = balancing_weights(questions * 9 + asked("colour", "red", 1))
    assert rare["colour", "red"] == 4


class TestStatementTable:
    def test_every_sentence_is_embedded_once_and_as_it_is(self) -> None:
        asked: list[Sequence[str]] = []

        class Counted(StubText):
            def encode(self, texts: Sequence[str]) -> TextEmbedding:
                asked.append(texts)
                return super().encode(texts)

        table = StatementTable(Counted(), max_tokens=10)
        texts = ["a frog", "the old man is here", "", "a frog"]
        words, mask = table.embed(texts)
        assert words.shape == (4, 16, StubText.dim)
        assert mask.sum(1).tolist() == [6, 10, 0, 6]
        torch.testing.assert_close(words[0, :6].float(), StubText().encode(texts[:1]).tokens[0], atol=2e-3, rtol=1e-3)
        assert torch.equal(table.embed(texts)[0], words)
        assert sorted(text for (text,) in asked) == ["", "a frog", "the old man is here"]

    def test_memory_is_bounded(self) -> None:
        table = StatementTable(StubText(), max_tokens=8, max_bytes=2_000)
        for turn in range(50):
            table.embed([f"frog {turn}", "a cat"])
            assert table.bytes <= 2_000
        assert "a cat" in table.known
        assert "frog 0" not in table.known


def recipe(**changes: Any) -> Recipe:
    """nano's, on a tiny model."""
    (stage,) = nano_answering().stages
    return replace(
        stage,
        model=MODEL,
        data=replace(stage.data, exclude=(), scene=SceneConfig(sizes=(0.3, 0.6))),
        answering=replace(ANSWERING, kinds=("where", "count"), hidden=0.2),
        stored=40,
        train=settings(steps=2, frames=9, size=32, batch_size=8, losses=stage.train.losses, optim=OPTIM),
        **changes,
    )


@pytest.fixture
def sprites(tmp_path: Path) -> Path:
    folder = tmp_path / "sprites"
    folder.mkdir()
    for shade, noun in enumerate(("tiger", "house", "kite", "boat")):
        cv2.imwrite(str(folder / f"{noun}.png"), np.full((20, 20, 4), 255 - 60 * shade, dtype=np.uint8))
        (folder / f"{noun}.txt").write_text(f"A {noun}")
    return folder


def test_a_run_ends_with_an_answerer_of_a_tokenizer_that_stays(
    sprites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyratok.train.assembly.MiniLM", StubText)
    start = tiny_pyratok(config=MODEL)
    start.save_pretrained(tmp_path / "start")
    records: list[dict[str, Any]] = []
    plan = Plan(name="tiny", stages=(recipe(),))
    model = run_plan(plan, [sprites], tmp_path / "out", init=tmp_path / "start", on_log=records.append)
    assert read_config(model)[1]["digest"] == read_config(tmp_path / "start")[1]["digest"]
    names = {"answers", "accuracy", "accuracy_where", "accuracy_count", "held_out"}
    assert names <= records[0].keys()
    assert "accuracy_order" not in records[0]
    found = load_answerer(tmp_path / "out" / "answerer", from_pretrained(model).model_id)
    assert torch.equal(found.head.out.weight, start.text_head.out.weight)  # type: ignore[union-attr]

    # Stored clips are met again, and the run goes on from where it was.
    shard = next((tmp_path / "out" / "tokens").glob("*/*"))
    stored_at = shard.stat().st_mtime_ns
    longer = replace(plan.stages[0], train=replace(plan.stages[0].train, steps=4))
    folder = tmp_path / "out" / "1-answering"
    run(longer, [sprites], folder, init=tmp_path / "start", resume=True, cache=tmp_path / "out" / "frames")
    assert len((folder / "log.jsonl").read_text().splitlines()) == 4
    assert [shard.stat().st_mtime_ns] == [p.stat().st_mtime_ns for p in (tmp_path / "out" / "tokens").glob("*/*")]
    assert shard.stat().st_mtime_ns == stored_at


def test_a_dry_run_knows_what_learns() -> None:
    pytest.importorskip("transformers")
    found = outline(recipe())
    assert found.terms == {"answers": 1.0}
    assert set(found.trainable) == {"answerer"}
    assert "text head" in found.frozen


def test_choices_are_checked() -> None:
    for changes, message in (
        ({"stored": 0}, "needs stored, a number of clips"),
        ({"answering": None}, r"and answering\.answerer"),
        ({"model": CONFIG}, "head has to be that of its tokenizer, None"),
        ({"decoder": "full"}, "are stored as tokens in the stages language and answering alone"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(recipe(), **changes)
    for changes, message in (
        ({"questions": 0}, r"questions must be in 1\.\.6"),
        ({"kinds": ("why",)}, r"one or more of what, .*, got \['why'\]"),
        ({"hidden": 1.0}, "hidden is a share"),
        ({"max_text_tokens": 0}, "max_text_tokens must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(ANSWERING, **changes)
