"""The network that weighs statements about a clip: each by itself, whatever the size of the clip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pyratok.config import TextHeadConfig
from pyratok.model.answerer import Answerer, AnswererConfig, load_answerer, padded, save_answerer
from pyratok.model.pretrained import ModelLoadError
from pyratok.model.text_head import TextHead
from pyratok.recipes.nano import nano_answering
from pyratok.types import ModelId, TextEmbedding
from tiny import CONFIG

HEAD = TextHeadConfig(width=8, num_blocks=1, kernel=3)
SHAPE = AnswererConfig(
    features=16, num_levels=4, text_dim=12, head=HEAD, width=16, narrow=4, num_blocks=1, num_layers=2, num_heads=2
)
TOKENIZER = ModelId(name="tiny", fingerprint="0123456789abcdef")
BATCH, STATEMENTS, WORDS = 2, 4, 5


def answerer(**changes: Any) -> Answerer:
    """Random, also where training begins with the identity."""
    made = Answerer(replace(SHAPE, **changes)).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def clip(t: int = 3, h: int = 4, w: int = 4) -> Tensor:
    return torch.randn(BATCH, SHAPE.features, t, h, w)


def statements() -> tuple[Tensor, Tensor]:
    """The later, the longer."""
    lengths = torch.arange(STATEMENTS) + WORDS + 1 - STATEMENTS
    mask = (torch.arange(WORDS) < lengths[:, None]).expand(BATCH, -1, -1)
    return torch.randn(BATCH, STATEMENTS, WORDS, SHAPE.text_dim) * mask[..., None], mask


@pytest.mark.parametrize("head", [HEAD, None], ids=["with a head", "without"])
class TestForward:
    @given(order=st.permutations(range(STATEMENTS)))
    def test_the_order_of_statements_does_not_matter(self, head: TextHeadConfig | None, order: list[int]) -> None:
        torch.manual_seed(0)
        model, features, (words, mask) = answerer(head=head), clip(), statements()
        found = model(features, words, mask)
        assert found.shape == (BATCH, STATEMENTS)
        assert found.unique().numel() == found.numel()
        torch.testing.assert_close(model(features, words[:, order], mask[:, order]), found[:, order])

    def test_neither_other_statements_nor_other_clips_nor_padding_matter(self, head: TextHeadConfig | None) -> None:
        model, features, (words, mask) = answerer(head=head), clip(), statements()
        found = model(features, words, mask)
        for index in range(STATEMENTS):
            length = int(mask[0, index].sum())
            one = model(features[:1], words[:1, index : index + 1, :length], mask[:1, index : index + 1, :length])
            torch.testing.assert_close(one[:, 0], found[:1, index])
        noise = torch.where(mask[..., None], words, 9.0)
        torch.testing.assert_close(model(features, noise, mask), found)

    @pytest.mark.parametrize("grid", [(1, 1, 1), (1, 3, 5), (9, 16, 16)])
    def test_clips_of_any_size_are_read(self, head: TextHeadConfig | None, grid: tuple[int, int, int]) -> None:
        model = answerer(head=head, max_cells=64)
        found = model(clip(*grid), *statements())
        assert found.isfinite().all()
        assert model.num_cells(grid) <= 64

    def test_clip_and_statement_both_count_and_gradients_reach_all_that_learns(
        self, head: TextHeadConfig | None
    ) -> None:
        model, features, (words, mask) = answerer(head=head), clip().requires_grad_(), statements()
        (model(features, words.requires_grad_(), mask) * torch.randn(BATCH, STATEMENTS)).sum().backward()
        assert features.grad is not None
        assert features.grad.abs().sum(1).min() > 0
        assert words.grad is not None
        assert bool((words.grad.abs().sum(-1) > 0).eq(mask).all())
        for name, parameter in model.named_parameters():
            learns = parameter.requires_grad
            assert learns != name.startswith("head.")
            # A key's bias moves all scores of a query alike.
            assert not learns or name.endswith("key.bias") or (parameter.grad is not None and parameter.grad.any())


def test_hidden_cells_are_not_looked_at() -> None:
    model, features, (words, mask) = answerer(head=None, num_blocks=0), clip(), statements()
    hidden = torch.rand(BATCH, model.num_cells(features.shape[2:])) < 0.5
    found = model(features, words, mask, hidden)
    assert not torch.allclose(found, model(features, words, mask))
    other = torch.where(hidden.view(BATCH, 1, *features.shape[2:]), torch.randn_like(features), features)
    torch.testing.assert_close(model(other, words, mask, hidden), found)
    assert not torch.allclose(model(other, words, mask), found)


def test_places_are_told_apart() -> None:
    features, (words, mask) = torch.zeros(BATCH, SHAPE.features, 1, 4, 4), statements()
    features[0, :, :, :, 0], features[1, :, :, :, 3] = 1, 1
    found = answerer()(features, words[:1].expand_as(words), mask)
    assert (found[0] - found[1]).abs().min() > 1e-4


def test_a_word_is_drawn_to_the_cells_that_look_like_it() -> None:
    """Nothing is learned yet: what the text head sees decides where the last heads of attention look."""
    model = answerer(num_blocks=0, num_layers=1)
    head = TextHead(HEAD, SHAPE.features, SHAPE.num_levels, SHAPE.text_dim)
    model.take_head(head)
    assert all(torch.equal(head.state_dict()[name], value) for name, value in model.head.state_dict().items())  # type: ignore[union-attr]
    features, (words, _) = clip(), statements()
    _, vectors = model._see(features, None)
    assert vectors is not None
    words[:, 0, 0] = 3 * vectors[:, 7]
    pull = model._pull(words, vectors, None)
    assert pull is not None
    assert pull[:, -1, 1].argmax(-1).tolist() == [7, 7]
    torch.testing.assert_close(pull[:, -1, 1, 7], torch.full((BATCH,), 10.0))
    assert not pull[:, 0].any()


def test_nano_is_small() -> None:
    (stage,) = nano_answering().stages
    assert stage.answering is not None
    assert sum(p.numel() for p in Answerer(stage.answering.answerer).parameters()) <= 4_000_000


def test_texts_are_padded() -> None:
    def text(length: int) -> TextEmbedding:
        tokens = torch.randn(1, length, 3)
        return TextEmbedding(tokens=tokens, mask=torch.ones(1, length, dtype=torch.bool), pooled=tokens[:, 0])

    texts = [text(3), text(5)]
    for multiple, length in ((1, 5), (4, 8)):
        words, mask = padded(texts, multiple)
        assert words.shape == (2, length, 3)
        assert mask.sum(1).tolist() == [3, 5]
        torch.testing.assert_close(words[mask], torch.cat([found.tokens[0] for found in texts]))
        assert not words[~mask].any()


class TestConfig:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"width": 0}, "width must be at least 1, got 0"),
            ({"num_blocks": -1}, "num_blocks must be 0 or more, got -1"),
            ({"width": 15}, "multiple of num_heads, got 15 and 2"),
        ],
    )
    def test_sizes_that_cannot_be_are_refused(self, changes: dict[str, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            replace(SHAPE, **changes)

    def test_it_has_the_shape_of_its_tokenizer(self) -> None:
        config = AnswererConfig.reading(CONFIG, width=32)
        assert (config.features, config.num_levels, config.text_dim, config.head, config.width) == (16, 4, 12, None, 32)
        config.require_tokenizer(CONFIG)
        with pytest.raises(ValueError, match=r"head has to be that of its tokenizer, TextHeadConfig.*, not None"):
            config.require_tokenizer(replace(CONFIG, text_head=HEAD))


class TestFiles:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> tuple[Answerer, Path]:
        model = answerer()
        save_answerer(model, tmp_path / "a", TOKENIZER)
        return model, tmp_path / "a"

    def test_it_comes_back_from_disk_to_its_own_tokenizer(self, saved: tuple[Answerer, Path]) -> None:
        model, folder = saved
        again = load_answerer(folder, TOKENIZER)
        assert again.config == SHAPE
        assert not again.training
        assert not any(parameter.requires_grad for parameter in again.parameters())
        features, said = clip(), statements()
        assert torch.equal(again(features, *said), model(features, *said))
        with pytest.raises(ModelLoadError, match=r"tiny \(0123456789abcdef\), not of other \(ffff"):
            load_answerer(folder, ModelId(name="other", fingerprint="f" * 16))

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_damaged_files_are_refused(self, saved: tuple[Answerer, Path], name: str) -> None:
        path = saved[1] / name
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ModelLoadError, match="a: "):
            load_answerer(saved[1])
