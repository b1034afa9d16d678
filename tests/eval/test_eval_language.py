"""The language benchmark, asked of a tokenizer that knows every answer and of one that knows none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fakes import FakeTokenizer
from pyratok.data.manifests import Entry
from pyratok.data.synthetic import CaptionedScenes, SceneConfig
from pyratok.data.words import is_unseen
from pyratok.eval.language import LanguageProtocol, changed_bits, evaluate_language, fewest_others
from pyratok.types import TextEmbedding

NAMES = "disc star cross square ring moon kite bell drum leaf boat lamp shoe cup tent".split()
COLOURS = {
    name: F.normalize(torch.randn(3, generator=torch.Generator().manual_seed(i)), dim=0) for i, name in enumerate(NAMES)
}
PROTOCOL = LanguageProtocol(clips=6, ways=3, frames=5, size=64, batch_size=4)


def test_nouns_that_share_a_word_are_no_choice() -> None:
    assert fewest_others(["polar bear", "brown bear", "brown dog", "cat"]) == 1
    assert fewest_others(["cat"]) == 0


class ColourWords:
    """A text is the colour that its noun is drawn in."""

    name, dim, max_tokens = "colours", 3, 8

    def encode(self, texts: Sequence[str]) -> TextEmbedding:
        def colour(text: str) -> Tensor:
            return next((COLOURS[name] for name in NAMES if name in text.split()), torch.ones(3) / 3**0.5)

        pooled = torch.stack([colour(text) for text in texts])
        return TextEmbedding(tokens=pooled[:, None], mask=torch.ones(len(texts), 1, dtype=torch.bool), pooled=pooled)


class Knowing(FakeTokenizer):
    """Reads colours off its tokens: on grey ground an object's token points to its noun."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = ColourWords()

    def read(self, signs: Sequence[Tensor]) -> Tensor:
        t, h, w = self.strides[len(signs) - 1]
        video = self.reconstruct(signs)
        frames = torch.cat([video[:, :, :1], video[:, :, 1:].unflatten(2, (-1, t)).mean(3)], dim=2)
        return F.avg_pool3d(frames, (1, h, w))


class Blind(Knowing):
    def read(self, signs: Sequence[Tensor]) -> Tensor:
        return torch.ones_like(super().read(signs))


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    """Squares in the colours of their names, and a grey photograph."""
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((96, 96, 3), 128, np.uint8))
    found = []
    for name, colour in COLOURS.items():
        rgb = ((colour + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
        canvas = np.full((40, 40, 4), 255, np.uint8)
        canvas[..., :3] = rgb[::-1]
        cv2.imwrite(str(tmp_path / f"{name}.png"), canvas)
        found.append(Entry(path=tmp_path / f"{name}.png", caption=name))
    return found


def scores(tokenizer: FakeTokenizer, entries: list[Entry]) -> dict[tuple[str, str], float]:
    def scenes(config: SceneConfig) -> CaptionedScenes:
        ground = Entry(path=entries[0].path.with_name("grey.png"))
        return CaptionedScenes(entries, [ground], config=replace(config, plain=0.0))

    record = evaluate_language(tokenizer.eval(), scenes, PROTOCOL)
    return {(score.name, score.nouns): score.value for score in record.scores}


def test_there_are_seen_and_unseen_names() -> None:
    assert 3 <= sum(map(is_unseen, NAMES)) <= len(NAMES) - 3


def test_knowing_beats_guessing(entries: list[Entry]) -> None:
    knowing, blind = scores(Knowing(), entries), scores(Blind(), entries)
    assert knowing.keys() == blind.keys()
    for nouns in ("seen", "unseen"):
        assert knowing["classification", nouns] >= 0.8
        assert knowing["pointing", nouns] >= 0.8
        assert knowing["pointing", nouns] > blind["pointing", nouns]
        # This tokenizer takes no heed of captions.
        assert knowing["bits changed by a wrong caption", nouns] == 0
        assert knowing["classification, wrong caption", nouns] == knowing["classification", nouns]
    assert knowing["retrieval, recall at 5", "seen"] >= knowing["retrieval, recall at 1", "seen"] >= 0.5


def test_the_same_clips_every_time(entries: list[Entry]) -> None:
    assert scores(Knowing(), entries) == scores(Knowing(), entries)


def test_too_few_nouns_to_choose_from(entries: list[Entry]) -> None:
    with pytest.raises(ValueError, match="a choice of 3 needs more nouns than"):
        scores(Knowing(), [entry for entry in entries if entry.caption in ("disc", "star")])


def test_changed_bits() -> None:
    tokens = FakeTokenizer().eval().encode(torch.zeros(1, 3, 1, 32, 32))
    flipped = [ids ^ 1 for ids in tokens.levels]
    assert changed_bits(tokens, tokens) == 0
    assert changed_bits(tokens, replace(tokens, levels=tuple(flipped))) == pytest.approx(1 / 16)
