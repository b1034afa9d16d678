"""Bits per token: what needs no model is exact, and a model that knows the caption needs fewer."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from pyratok.data.manifests import Entry
from pyratok.data.synthetic import CaptionedScenes, SceneConfig
from pyratok.data.words import is_unseen
from pyratok.eval.predictability import (
    PredictabilityProtocol,
    bit_entropies,
    evaluate_predictability,
    shuffled,
    word_entropy,
)
from pyratok.model.alignment import TokenLM, TokenLMConfig
from pyratok.quantization.usage import CodebookUsage, LevelUsage
from tiny import StubText, tiny_pyratok

pytest.importorskip("transformers")

PROTOCOL = PredictabilityProtocol(clips=3, counted_clips=4, windows=2, frames=5, size=32, batch_size=2)


def counted(ids: Tensor, num_bits: int) -> LevelUsage:
    usage = CodebookUsage(1, num_bits)
    usage.update([ids])
    return usage.summary().levels[0]


def test_entropy_of_words_is_exact_up_to_its_correction() -> None:
    usage = counted(torch.arange(8).repeat(1000), num_bits=4)
    assert word_entropy(usage) == pytest.approx(3 + 7 / (2 * math.log(2) * 8000))
    assert word_entropy(counted(torch.full((50,), 3), num_bits=4)) == 0
    assert bit_entropies(usage) == pytest.approx(3)  # the fourth bit never moves


def test_bits_one_by_one_cost_no_less_than_words() -> None:
    low = torch.randint(0, 16, (5000,), generator=torch.Generator().manual_seed(0))
    twice = counted(low | low << 4, num_bits=8)  # half of the bits repeat the others
    assert bit_entropies(twice) == pytest.approx(8, abs=0.01)
    assert word_entropy(twice) == pytest.approx(4, abs=0.01)


def test_words_too_wide_to_be_counted_are_refused() -> None:
    with pytest.raises(ValueError, match="words of 24 bits are too many"):
        word_entropy(counted(torch.arange(8), num_bits=24))


def test_a_wrong_caption_is_another_one() -> None:
    assert shuffled(["a", "a", "b", "a", "c"]) == ["b", "b", "a", "c", "a"]
    with pytest.raises(ValueError, match="2 clips with one caption leave none to shuffle"):
        shuffled(["a", "a"])


@pytest.fixture
def scenes(tmp_path: Path) -> CaptionedScenes:
    nouns = [noun for noun in "disc star cross square ring moon kite bell".split() if not is_unseen(noun)][:3]
    entries = []
    for number, noun in enumerate(nouns):
        drawing = np.zeros((24, 24, 4), np.uint8)
        cv2.circle(drawing, (12, 12), 6 + number, (40 * number, 200, 90, 255), -1)
        cv2.imwrite(str(tmp_path / f"{noun}.png"), drawing)
        entries.append(Entry(path=tmp_path / f"{noun}.png", caption=noun))
    return CaptionedScenes(entries, config=SceneConfig(objects=(1, 1)))


def test_every_level_is_measured_under_every_condition(scenes: CaptionedScenes) -> None:
    model = tiny_pyratok()
    model.text_encoder = StubText()
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_tokens_per_level": 6}
    lm = TokenLM(TokenLMConfig(num_levels=4, text_dim=StubText().dim, **shape)).eval()
    shares: list[float] = []
    record = evaluate_predictability(model, lm, scenes, PROTOCOL, on_share=shares.append)
    assert [level.level for level in record.levels] == [1, 2, 3, 4]
    for level in record.levels:
        assert set(level.predicted) == {"right caption", "shuffled captions", "no caption"}
        assert all(0 < bits < 40 for bits in level.predicted.values())
        assert 0 <= level.unigram <= 16
        assert 0 <= level.independent <= 16
    assert shares[-1] == 1
    assert evaluate_predictability(model, lm, scenes, PROTOCOL) == record
    first = record.to_dict()["levels"][0]
    assert first["predicted"]["right caption"] != first["predicted"]["no caption"]
