"""The language model over pyramids: what it computes, what it must not see, and where its gradient goes."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyratok.config import from_dict, to_dict
from pyratok.model.alignment import TokenLM, TokenLMConfig, WordHead, at_word
from pyratok.quantization.bits import ids_to_signs
from pyratok.quantization.lfq import quantize
from pyratok.types import Geometry, ModelId, TextEmbedding, TokenPyramid

transformers = pytest.importorskip("transformers")

GRIDS = (3, 1, 1), (2, 2, 1), (2, 2, 3)
CONFIG = TokenLMConfig(num_levels=3, text_dim=6, num_bits=4, hidden_size=16, num_layers=2, num_heads=2, chunk_bits=2)
HEADS: dict[str, dict[str, Any]] = {
    "bits": {"head": "bits"},
    "chained chunks": {"head": "chunks"},
    "chunks": {"head": "chunks", "chained": False},
    "full": {"head": "full"},
}


def make(**changes: Any) -> TokenLM:
    torch.manual_seed(1)
    return TokenLM(from_dict(TokenLMConfig, to_dict(CONFIG) | changes)).eval()


def words(batch: int = 2, num_bits: int = 4, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(1 << num_bits, (batch, *grid), generator=generator) for grid in GRIDS]
    return [ids_to_signs(level, num_bits) for level in ids]


def captions(lengths: list[int], size: int, side: str = "right", seed: int = 3) -> TextEmbedding:
    """Texts of the given lengths in ``size`` places, with noise where the mask is False."""
    generator = torch.Generator().manual_seed(seed)
    tokens, mask = torch.randn(len(lengths), size, 6) * 50, torch.zeros(len(lengths), size, dtype=torch.bool)
    for row, length in enumerate(lengths):
        place = slice(0, length) if side == "right" else slice(size - length, size)
        tokens[row, place] = torch.randn(max(lengths), 6, generator=generator)[:length]
        mask[row, place] = True
    return TextEmbedding(tokens=tokens, mask=mask, pooled=torch.zeros(len(lengths), 6))


def flat(lm: TokenLM, levels: list[Tensor], text: TextEmbedding | None = None) -> Tensor:
    with torch.no_grad():
        return torch.cat(lm(levels, text).token_nll, dim=1)


@pytest.mark.parametrize("head", HEADS)
def test_probabilities_of_all_words_add_up_to_one(head: str) -> None:
    lm, levels = make(**HEADS[head]), words(batch=1)
    token = 2, 1, 0, 1
    level, *cell = token
    total = torch.zeros(())
    for ids in range(16):
        changed = [signs.clone() for signs in levels]
        changed[level][0, :, cell[0], cell[1], cell[2]] = ids_to_signs(torch.tensor(ids), 4, dim=0)
        with torch.no_grad():
            nll = lm(changed).token_nll[level]
        total += nll.unflatten(1, GRIDS[level])[0, cell[0], cell[1], cell[2]].neg().exp()
    torch.testing.assert_close(total, torch.ones(()))


@pytest.mark.parametrize("head", HEADS)
def test_no_token_sees_itself_or_a_later_one(head: str) -> None:
    lm, levels, text = make(**HEADS[head]), words(), captions([3, 1], 3)
    before, place = flat(lm, levels, text), 0
    for level, grid in enumerate(GRIDS):
        for cell in itertools.product(*map(range, grid)):
            changed = [signs.clone() for signs in levels]
            changed[level][(slice(None), slice(None), *cell)] *= -1
            after = flat(lm, changed, text)
            torch.testing.assert_close(after[:, :place], before[:, :place])
            if place + 1 < before.shape[1]:
                assert not torch.allclose(after[:, place + 1 :], before[:, place + 1 :])
            place += 1
    assert place == before.shape[1]


def test_every_token_sees_the_caption() -> None:
    lm, levels = make(), words()
    # Single numbers may agree to the last bit by chance; with this seed the nearest are 7e-5 apart.
    right, wrong = flat(lm, levels, captions([3, 1], 3)), flat(lm, levels, captions([3, 1], 3, seed=5))
    assert (right != wrong).all()


def test_likelihood_is_that_of_the_sequence_done_by_hand() -> None:
    """One softmax over all words, against a direct computation over ``[caption] <SOI> q1 <Q-SEP> q2 ...``."""
    lm, levels, text = make(head="full"), words(), captions([2, 2], 2)
    pyramid = [(signs > 0).long().flatten(2).transpose(1, 2) for signs in levels]
    ids = [(bits * torch.tensor([1, 2, 4, 8])).sum(-1) for bits in pyramid]
    positions = [lm._positions(level, range(math.prod(grid)), grid) for level, grid in enumerate(GRIDS)]
    with torch.no_grad():
        inputs = torch.cat([lm.caption(text.tokens), lm._sequence([b * 2.0 - 1 for b in pyramid], positions)], dim=1)
        logits = lm.head.tables(lm.backbone(inputs_embeds=inputs).last_hidden_state)[:, 2:]
    first = 0
    for level, found in enumerate(lm(levels, text).token_nll):
        count = ids[level].shape[1]
        wanted = torch.nn.functional.cross_entropy(
            logits[:, first : first + count].transpose(1, 2), ids[level], reduction="none"
        )
        torch.testing.assert_close(found, wanted)
        first += count + 1


def test_places_are_those_of_the_sequence_of_a_pyramid() -> None:
    geometry = Geometry(frames=3, height=8, width=8, strides=((1, 8, 8), (2, 4, 8), (2, 4, 4)))
    ids = tuple(torch.zeros(2, *geometry.grid(level), dtype=torch.int32) for level in range(3))
    pyramid = TokenPyramid(ids, geometry, ModelId(name="none", fingerprint="0"), num_bits=4)
    lm, seen = make(), []
    lm.backbone.register_forward_pre_hook(lambda _, __, kw: seen.append(kw["inputs_embeds"]), with_kwargs=True)
    flat(lm, [ids_to_signs(level, 4) for level in pyramid.levels])
    assert seen[0].shape[1] == pyramid.to_sequence().shape[1]


def test_one_chunk_of_all_bits_is_the_full_softmax() -> None:
    levels = words()
    assert torch.equal(flat(make(head="full"), levels), flat(make(head="chunks", chunk_bits=4), levels))


def test_chunks_of_one_bit_are_independent_bits() -> None:
    levels = words()
    assert torch.equal(flat(make(head="bits"), levels), flat(make(chunk_bits=1, chained=False), levels))


@pytest.mark.parametrize("head", HEADS)
def test_a_uniform_model_pays_every_bit(head: str) -> None:
    lm = make(**HEADS[head])
    torch.nn.init.zeros_(lm.head.tables.weight)
    torch.nn.init.zeros_(lm.head.tables.bias)
    output = lm(words())
    torch.testing.assert_close(torch.stack(output.bits_per_token), torch.full((3,), 4.0))
    assert output.total.item() == pytest.approx(4 * math.log(2))


def test_total_is_the_mean_over_tokens() -> None:
    output = make()(words())
    counts = torch.tensor([values.shape[1] for values in output.token_nll])
    assert counts.tolist() == [3, 4, 12]
    torch.testing.assert_close(output.total, (torch.stack(output.nll) * counts).sum() / counts.sum())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_captions_changes_nothing(side: str) -> None:
    lm, levels = make(), words(3)
    padded = flat(lm, levels, captions([4, 0, 2], 7, side))
    for clip, length in enumerate([4, 0, 2]):
        text = captions([4, 0, 2], 4)
        alone = TextEmbedding(
            tokens=text.tokens[clip : clip + 1, :length], mask=text.mask[clip : clip + 1, :length], pooled=text.pooled
        )
        single = flat(lm, [signs[clip : clip + 1] for signs in levels], alone)
        torch.testing.assert_close(padded[clip : clip + 1], single)


def test_an_empty_caption_is_no_caption() -> None:
    lm, levels = make(), words()
    torch.testing.assert_close(flat(lm, levels, captions([0, 0], 5)), flat(lm, levels))


def test_levels_may_be_the_first_ones() -> None:
    lm, levels = make(), words()
    torch.testing.assert_close(flat(lm, levels[:2]), flat(lm, levels)[:, :7])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("target_gradient", [True, False])
def test_gradient_reaches_the_values_before_the_sign(head: str, target_gradient: bool) -> None:
    lm = make(**HEADS[head], target_gradient=target_gradient)
    presigns = [torch.randn(2, 4, *grid, requires_grad=True) for grid in GRIDS]
    hard = [quantize(z).detach() for z in presigns]
    output = lm([quantize(z) for z in presigns])
    torch.testing.assert_close(output.total, lm(hard).total)
    output.total.backward()
    for z in presigns:
        assert z.grad is not None
        assert z.grad.isfinite().all()
    last = presigns[-1].grad
    assert last is not None
    if target_gradient:
        assert all((z.grad != 0).all() for z in presigns if z.grad is not None)
    elif head != "chained chunks":
        # The last token of all is only ever predicted.
        assert not last[..., -1, -1, -1].any()
        assert last[:, :, 0].all()


def test_gradient_of_a_target_is_half_the_change_of_a_flip() -> None:
    table = torch.randn(5, 16)
    signs = ids_to_signs(torch.arange(5) * 3, 4, dim=-1).requires_grad_()
    value = at_word(table, signs)
    assert torch.equal(value, table[torch.arange(5), torch.arange(5) * 3])
    (gradient,) = torch.autograd.grad(value.sum(), signs)
    for bit in range(4):
        ids = torch.arange(5) * 3
        change = table[torch.arange(5), ids | 1 << bit] - table[torch.arange(5), ids & ~(1 << bit)]
        torch.testing.assert_close(gradient[:, bit], change / 2)


def test_following_the_gradient_makes_words_more_predictable() -> None:
    lm = make()
    presigns = [torch.randn(2, 4, *grid, requires_grad=True) for grid in GRIDS]
    optimizer = torch.optim.SGD(presigns, lr=20.0)
    before = lm([quantize(z) for z in presigns]).total
    for _ in range(10):
        optimizer.zero_grad()
        lm([quantize(z) for z in presigns]).total.backward()
        optimizer.step()
    assert lm([quantize(z) for z in presigns]).total < before


def test_a_fixed_pyramid_is_learned() -> None:
    lm, levels, text = make(), words(), captions([2, 1], 2)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = lm(levels, text).total
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


def test_every_parameter_gets_a_gradient() -> None:
    lm = make()
    lm(words(), captions([2, 1], 2)).total.backward()
    assert not [name for name, value in lm.named_parameters() if value.grad is None]


def test_a_window_large_enough_is_everything() -> None:
    levels = words()
    assert torch.equal(flat(make(max_tokens_per_level=12), levels), flat(make(), levels))


def test_windows_keep_order_position_and_time() -> None:
    lm, levels = make(max_tokens_per_level=3), words()
    for window, firsts in [(0.0, (0, 0, 0)), (0.5, (0, 0, 4)), (1.0, (0, 1, 9))]:
        output = lm(levels, window=window)
        assert output.kept == tuple(range(first, first + 3) for first in firsts)
        assert [values.shape for values in output.token_nll] == [(2, 3)] * 3
    outside = [*levels[:2], levels[2].clone()]
    outside[2].view(2, 4, -1)[..., :9] *= -1
    torch.testing.assert_close(lm(outside, window=1.0).total, lm(levels, window=1.0).total)
    # The same words elsewhere are predicted otherwise.
    moved = [levels[0], levels[1].clone(), levels[2].clone()]
    moved[1].view(2, 4, -1)[..., :3] = levels[1].flatten(2)[..., 1:]
    moved[2].view(2, 4, -1)[..., :3] = levels[2].flatten(2)[..., 9:]
    assert not torch.allclose(lm(moved, window=0.0).total, lm(levels, window=1.0).total)


def test_windows_are_drawn_by_the_generator() -> None:
    lm, levels = make(max_tokens_per_level=2), words()
    draws = [lm(levels, generator=torch.Generator().manual_seed(seed)).kept for seed in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len({kept[2].start for kept in draws}) > 1


def test_autocast_keeps_float32_where_it_matters() -> None:
    lm, levels, text = make(), words(), captions([2, 1], 4)
    leaves = [signs.clone().requires_grad_() for signs in levels]
    with torch.autocast("cpu", torch.bfloat16):
        output = lm(leaves, text)
    assert all(values.dtype == torch.float32 for values in output.token_nll)
    torch.testing.assert_close(output.total, lm(levels, text).total, atol=0.05, rtol=0)
    output.total.backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


def save_qwen_vl(folder: Path, dtype: torch.dtype) -> None:
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 11,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32},
    )
    transformers.Qwen2_5_VLForConditionalGeneration(config).to(dtype).save_pretrained(folder)


@pytest.mark.skipif(not hasattr(transformers, "Qwen2_5_VLTextModel"), reason="this transformers has no Qwen2.5-VL")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pretrained_decoder_as_backbone(dtype: torch.dtype, tmp_path: Path) -> None:
    save_qwen_vl(tmp_path, dtype)
    lm = make(backbone=str(tmp_path))
    assert lm.word.out_features == 32
    assert lm.backbone.dtype == dtype
    assert not [name for name, value in lm.named_parameters() if value.requires_grad and name.startswith("backbone")]
    assert not [name for name in lm.state_dict() if "embed_tokens" in name or "visual" in name or "lm_head" in name]
    levels = [signs.requires_grad_() for signs in words()]
    output = lm(levels, captions([3, 1], 3))
    output.total.backward()
    assert output.total.dtype == torch.float32
    assert all(signs.grad is not None and signs.grad.any() for signs in levels)
    assert all(value.grad is not None for value in lm.parameters() if value.requires_grad)
    torch.testing.assert_close(flat(lm, words(), captions([0, 0], 5)), flat(lm, words()))


def test_a_model_that_sees_the_future_is_refused(tmp_path: Path) -> None:
    shape = {"vocab_size": 9, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.BertModel(transformers.BertConfig(**shape)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="BertModel is no causal language model"):
        make(backbone=str(tmp_path))


def test_missing_backbone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        make(backbone=str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_levels": 0}, "num_levels.*0"),
        ({"max_tokens_per_level": 0}, "max_tokens_per_level.*0"),
        ({"hidden_size": 18, "num_heads": 4}, "hidden_size.*18 and 4"),
        ({"head": "softmax"}, "head: expected one of.*'softmax'"),
        ({"head": "full", "num_bits": 18}, r"2\*\*18 words is too wide"),
        ({"chunk_bits": 18, "num_bits": 18}, r"2\*\*18 words is too wide"),
        ({"chunk_bits": 3}, "divide num_bits = 4, got 3"),
    ],
)
def test_bad_configurations(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_bad_arguments() -> None:
    lm, levels = make(), words()
    with pytest.raises(ValueError, match="1 to 3 levels, got 0"):
        lm([])
    with pytest.raises(ValueError, match="1 to 3 levels, got 4"):
        lm([*levels, levels[0]])
    with pytest.raises(ValueError, match=r"level 2 should be signs \[2, 4, t, h, w\].*ids_to_signs"):
        lm([levels[0], levels[1][:, 0].long()])
    with pytest.raises(ValueError, match="level 3"):
        lm([*levels[:2], levels[2][:1]])
    with pytest.raises(ValueError, match=r"captions should be \[2, N, 6\]"):
        lm(levels, captions([1], 1))
    with pytest.raises(ValueError, match=r"window.*1\.5"):
        lm(levels, window=1.5)


def test_a_head_of_its_own() -> None:
    """Sixteen bits in two chunks, as the full model has them."""
    head = WordHead(8, 16, 8, chained=True)
    signs = ids_to_signs(torch.tensor([[0, 65535, 258]]), 16, dim=-1)
    logits = head.logits(torch.randn(1, 3, 8), signs)
    assert logits.shape == (1, 3, 2, 256)
    states = torch.randn(1, 3, 8)
    nll, rows = head(states, signs, signs), head.logits(states, signs).log_softmax(-1)
    picked = torch.tensor([[[0, 0], [255, 255], [2, 1]]]).unsqueeze(-1)
    torch.testing.assert_close(nll, -rows.gather(-1, picked).sum((-1, -2)))
