from __future__ import annotations

import pytest
import torch
from torch import Tensor

from planted_colours import ColourTokenizer, ColourWords, coloured
from pyratok.tasks import classification
from pyratok.tasks.classification import TEMPLATES, check_texts, classify, clip_vectors, embed_names, embed_texts
from pyratok.types import TextEmbedding, TokenPyramid
from tiny import StubText, tiny_pyratok

NAMES = ["red", "green", "blue"]


@pytest.fixture
def model() -> ColourTokenizer:
    return ColourTokenizer()


@pytest.fixture
def tokens(model: ColourTokenizer) -> TokenPyramid:
    """A green, a red and a blue clip."""
    return model.encode(torch.cat([coloured((name, 5)).plain() for name in ("green", "red", "blue")]))


def test_every_clip_finds_its_name(model: ColourTokenizer, tokens: TokenPyramid) -> None:
    found = classify(model, tokens, NAMES)
    assert found.scores.shape == (3, 3)
    assert found.scores.dtype == torch.float32
    assert [found.ranked(clip)[0][0] for clip in range(3)] == ["green", "red", "blue"]
    for clip in range(3):
        (_, best), *others = found.ranked(clip)
        assert best > 0.99
        assert all(score == pytest.approx(-1 / 3, abs=0.05) for _, score in others)


def test_the_order_of_names_and_clips_does_not_matter(model: ColourTokenizer, tokens: TokenPyramid) -> None:
    scores, turned = (classify(model, tokens, names).scores for names in (NAMES, NAMES[::-1]))
    torch.testing.assert_close(turned.flip(1), scores)
    torch.testing.assert_close(classify(model, tokens.select(1), NAMES).scores, scores[1:2])


def test_equal_scores_keep_the_order_given(model: ColourTokenizer, tokens: TokenPyramid) -> None:
    ranked = classify(model, tokens, ["ox", "cow", "elk"]).ranked()
    assert [name for name, _ in ranked] == ["ox", "cow", "elk"]


def test_clip_vectors_have_unit_length(model: ColourTokenizer, tokens: TokenPyramid) -> None:
    torch.testing.assert_close(clip_vectors(model, tokens).norm(dim=1), torch.ones(3))


class Counting(ColourWords):
    """Every text is a direction of its own, of its length."""

    asked: tuple[str, ...] = ()

    def encode(self, texts: list[str]) -> TextEmbedding:  # type: ignore[override]
        self.asked += tuple(texts)
        angle = torch.tensor([float(len(text)) for text in texts])
        pooled = torch.stack([angle.cos(), angle.sin(), torch.zeros(len(texts))], dim=1)
        return TextEmbedding(tokens=pooled[:, None], mask=torch.ones(len(texts), 1, dtype=torch.bool), pooled=pooled)


def mean_direction(*vectors: Tensor) -> Tensor:
    total = torch.stack(vectors).mean(0)
    return total / total.norm()


def test_templates_are_averaged_after_normalisation(model: ColourTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    words = model.text_encoder = Counting()
    templates = ("{}", "one {}", "{} beside {}")
    found = embed_names(model, [" ox ", "{}!1"], templates)
    assert words.asked == ("ox", "one ox", "ox beside ox", "{}!1", "one {}!1", "{}!1 beside {}!1")
    vectors = model.embed_text(words.asked)
    torch.testing.assert_close(found, torch.stack([mean_direction(*vectors[:3]), mean_direction(*vectors[3:])]))
    monkeypatch.setattr(classification, "TEXTS_AT_ONCE", 2)
    torch.testing.assert_close(embed_names(model, [" ox ", "{}!1"], templates), found)


def test_one_plain_template_is_the_name_itself(model: ColourTokenizer) -> None:
    torch.testing.assert_close(embed_names(model, NAMES, ["{}"]), model.embed_text(NAMES))
    torch.testing.assert_close(embed_texts(model, NAMES), model.embed_text(NAMES))
    assert all("{}" in template for template in TEMPLATES)


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ("red", r"one per name; a single one is \['red'\]"),
        ([], "give at least one name"),
        (["red", " "], "name 2 has no letters: ' '"),
        (["red", "?!"], "name 2 has no letters"),
        (["red", "blue", " Red "], "name 1 and name 3 are the same, ' Red '"),
        (["big  dog", "Big dog"], "name 1 and name 2 are the same"),
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(
    model: ColourTokenizer, tokens: TokenPyramid, names: list[str], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        classify(model, tokens, names)


def test_letters_of_any_script_and_digits_are_text() -> None:
    assert check_texts([" 猫", "кот", "7"], "name") == ["猫", "кот", "7"]


@pytest.mark.parametrize(
    ("templates", "complaint"), [([], "one or more texts"), ("{}", "one or more texts"), (["a name"], "got 'a name'")]
)
def test_bad_templates_are_refused(model: ColourTokenizer, templates: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        embed_names(model, NAMES, templates)


def test_tokens_without_language_or_of_another_model_are_refused(model: ColourTokenizer) -> None:
    plain = tiny_pyratok()
    plain.text_encoder = StubText()
    tokens = plain.encode(coloured(("red", 5)))
    with pytest.raises(ValueError, match="has no text head"):
        classify(plain, tokens, NAMES)
    with pytest.raises(ValueError, match="these tokens were made by"):
        classify(model, tokens, NAMES)
