from __future__ import annotations

import pytest
import torch
from torch import nn

from pyratok.nn.attention import TextAttention
from pyratok.types import TextEmbedding
from tiny import StubText

WIDTH, HEADS = 8, 2


@pytest.fixture
def attention() -> TextAttention:
    """With an open gate."""
    layer = TextAttention(WIDTH, StubText.dim, HEADS)
    nn.init.constant_(layer.gate, 0.7)
    return layer


def features(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, WIDTH, 3, 4, 5)


def text(*captions: str) -> TextEmbedding:
    return StubText().encode(captions)


def with_tokens(embedding: TextEmbedding, tokens: torch.Tensor, mask: torch.Tensor) -> TextEmbedding:
    return TextEmbedding(tokens=tokens, mask=mask, pooled=embedding.pooled)


def test_closed_gate_is_the_identity() -> None:
    layer, x = TextAttention(WIDTH, StubText.dim, HEADS), features()
    assert layer.gate == 0
    assert torch.equal(layer(x, None), x)
    assert torch.equal(layer(x, text("a dog", "rain on a roof")), x)


def test_padded_tokens_have_no_influence(attention: TextAttention) -> None:
    x, caption = features(), text("a dog", "a cat")
    longer = torch.cat([caption.tokens, 1e3 * torch.randn(2, 7, StubText.dim)], dim=1)
    mask = torch.cat([caption.mask, torch.zeros(2, 7, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(attention(x, with_tokens(caption, longer, mask)), attention(x, caption))


def test_a_caption_does_not_depend_on_the_rest_of_the_batch(attention: TextAttention) -> None:
    x = features()
    both = attention(x, text("a dog", "rain on a roof at night"))
    for row, caption in enumerate(("a dog", "rain on a roof at night")):
        torch.testing.assert_close(both[row : row + 1], attention(x[row : row + 1], text(caption)))


def test_words_matter_and_their_order_of_storage_does_not(attention: TextAttention) -> None:
    x, caption = features(1), text("a dog")
    assert not torch.allclose(attention(x, caption), attention(x, text("a cat")))
    mirrored = with_tokens(caption, caption.tokens.flip(1), caption.mask.flip(1))
    torch.testing.assert_close(attention(x, mirrored), attention(x, caption))


def test_no_caption_is_attention_to_the_null_text_alone(attention: TextAttention) -> None:
    x, caption = features(), text("a dog", "a cat")
    nothing = with_tokens(caption, caption.tokens, torch.zeros_like(caption.mask))
    torch.testing.assert_close(attention(x, None), attention(x, nothing))
    torch.testing.assert_close(attention(x, None), attention(x, text("", "")))
    said = attention(x, None) - x
    torch.testing.assert_close(said, said[:1, :, :1, :1, :1].expand_as(said))


def test_gate_learns_from_the_start() -> None:
    layer = TextAttention(WIDTH, StubText.dim, HEADS)
    layer(features(1), text("a dog")).square().sum().backward()
    assert layer.gate.grad is not None
    assert layer.gate.grad != 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_result_has_the_type_of_the_features(attention: TextAttention, dtype: torch.dtype) -> None:
    x, caption = features(1).to(dtype), text("a dog")
    attention.to(dtype)
    assert attention(x, None).dtype == attention(x, caption).dtype == dtype
