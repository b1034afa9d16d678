"""Where words look: maps of planted tokens, at the places and times of the true video."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pyratok.config import TextHeadConfig
from pyratok.model.pyratok import PyraTok
from pyratok.tasks.attention import attention
from pyratok.tasks.cells import cell_vectors
from pyratok.types import TokenPyramid
from tiny import CONFIG, LAPQ, StubText, random_video, tiny_pyratok

WORDS = ["dog", "a red kite"]
WITH_HEAD = replace(CONFIG, text_head=TextHeadConfig(width=16, num_blocks=2, kernel=3))


@pytest.fixture
def model() -> PyraTok:
    model = tiny_pyratok(config=WITH_HEAD)
    model.text_encoder = StubText()
    return model


def plant(model: PyraTok, monkeypatch: pytest.MonkeyPatch, word: str, level: int, cell: tuple[int, int, int]) -> None:
    """One token of a level says the word, all others of all levels say the opposite."""
    vector = model.embed_text([word])[0]

    def say(tokens: TokenPyramid, asked: int = -1) -> Tensor:
        features = -vector.expand(*tokens.levels[asked].shape, -1).clone()
        if asked == level:
            features[(0, *cell)] = vector
        return features

    monkeypatch.setattr(model, "text_features", say)


class TestMaps:
    def test_one_map_per_word_and_level_that_sums_to_one(self, model: PyraTok) -> None:
        tokens = model.encode(random_video(frames=9))
        found = attention(model, tokens, WORDS)
        assert found.words == tuple(WORDS)
        for level, (cosines, weights) in enumerate(zip(found.cosines, found.weights, strict=True)):
            assert cosines.shape == weights.shape == (2, *tokens.levels[level].shape[1:])
            assert cosines.abs().max() <= 1 + 1e-6
            torch.testing.assert_close(weights.sum((1, 2, 3)), torch.ones(2))
            assert torch.equal(cosines.flatten(1).argmax(1), weights.flatten(1).argmax(1))
        torch.testing.assert_close(found.cosines[-1][0], model.text_space(tokens)[0] @ model.embed_text(["dog"])[0])

    def test_a_lower_temperature_looks_at_fewer_places(self, model: PyraTok) -> None:
        tokens = model.encode(random_video())
        peaks = [attention(model, tokens, WORDS, temperature=t).weights[-1].amax((1, 2, 3)) for t in (1.0, 0.1, 0.01)]
        assert (peaks[0] < peaks[1]).all()
        assert (peaks[1] < peaks[2]).all()

    def test_a_word_looks_where_it_is(self, model: PyraTok, monkeypatch: pytest.MonkeyPatch) -> None:
        """Step 1 of the last level is frames 1 to 4; its token in row 2, column 3 covers pixels 16-23 and 24-31."""
        tokens = model.encode(random_video(frames=9))
        plant(model, monkeypatch, "dog", 3, (1, 2, 3))
        frames = attention(model, tokens, ["dog"]).frames()
        assert frames.shape == (1, 9, 32, 32)
        assert frames.max() == 1
        looked_at = (frames[0] == 1).nonzero()
        assert (looked_at >= torch.tensor([1, 16, 24])).all()
        assert (looked_at <= torch.tensor([4, 23, 31])).all()


class TestTrueSize:
    def test_odd_sizes_are_cut_to_the_true_ones(self, model: PyraTok) -> None:
        tokens = model.encode(random_video(frames=7, height=20, width=37))
        found = attention(model, tokens, WORDS)
        assert found.weights[-1].shape == (2, 3, 3, 5), "tokens of padding alone are left out"
        for level in range(4):
            frames = found.frames(level)
            assert frames.shape == (2, 7, 20, 37)
            torch.testing.assert_close(frames.amax((1, 2, 3)), torch.ones(2), atol=0.2, rtol=0)

    def test_a_part_of_a_video_has_the_maps_of_its_frames(self, model: PyraTok) -> None:
        """The head looks back, so what lies next to the cut may differ; sizes and times do not."""
        tokens = model.encode(random_video(frames=17))
        part = tokens.time_slice(2, 5)
        assert part.geometry.first_step == 2
        found = attention(model, part, WORDS)
        assert found.frames().shape == (2, 12, 32, 32)
        assert [maps.shape[1] for maps in found.weights] == [12, 6, 3, 3]
        for level in range(4):
            assert cell_vectors(model, part, level).shape[:3] == part.levels[level].shape[1:]


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ([], {}, "at least one word"),
        ("dog", {}, r"a single one is \['dog'\]"),
        (["dog", " Dog"], {}, "are the same"),
        (["..."], {}, "has no letters"),
        (["dog"], {"temperature": 0.0}, "above 0, got 0.0"),
    ],
)
def test_bad_questions_are_refused(model: PyraTok, words: Any, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention(model, model.encode(random_video()), words, **options)


def test_tokens_it_cannot_read_are_refused(model: PyraTok) -> None:
    with pytest.raises(ValueError, match=r"got 2; take one by tokens\.select"):
        attention(model, model.encode(random_video(2)), WORDS)
    with pytest.raises(ValueError, match="were made by"):
        attention(tiny_pyratok(seed=1, config=WITH_HEAD), model.encode(random_video()), WORDS)
    plain = tiny_pyratok()
    with pytest.raises(ValueError, match="has no text head"):
        attention(plain, plain.encode(random_video()), WORDS)
    with pytest.raises(ValueError, match="levels 0 to 3, asked for level 4"):
        attention(model, model.encode(random_video()), WORDS).frames(4)


def test_the_width_is_that_of_the_text(model: PyraTok) -> None:
    assert cell_vectors(model, model.encode(random_video())).shape[-1] == LAPQ.text_dim
