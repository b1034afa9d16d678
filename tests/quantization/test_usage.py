from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyratok.quantization.usage import CodebookUsage

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def same(a: CodebookUsage, b: CodebookUsage) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def counted(*batches: list[Tensor], num_levels: int = 2, num_bits: int = 6) -> CodebookUsage:
    usage = CodebookUsage(num_levels, num_bits)
    for batch in batches:
        usage.update(batch)
    return usage


def random_batch(seed: int, num_bits: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, 1 << num_bits, (2, 3, side, side), generator=generator, dtype=torch.int32) for side in (1, 2)
    ]


@relaxed
@given(st.permutations(range(5)), st.integers(0, 5), st.sampled_from([6, 24]))
def test_merge_of_any_split_in_any_order_equals_the_whole(order: list[int], cut: int, num_bits: int) -> None:
    batches = [random_batch(seed, num_bits) for seed in range(5)]
    whole = counted(*batches, num_bits=num_bits)
    a = counted(*(batches[i] for i in order[:cut]), num_bits=num_bits)
    b = counted(*(batches[i] for i in order[cut:]), num_bits=num_bits)
    assert same(a.merge(b), whole)
    assert same(b.merge(a), whole)
    assert a.merge(b).summary() == whole.summary()


def test_merge_is_associative_and_leaves_its_parts_alone() -> None:
    a, b, c = (counted(random_batch(seed)) for seed in range(3))
    before = counted(random_batch(0))
    assert same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert same(a, before)
    assert same(a.merge(CodebookUsage(2, 6)), a)


def test_sum_of_states_over_ranks_is_the_merge() -> None:
    a, b = counted(random_batch(0)), counted(random_batch(1))
    summed = {name: tensor + b.state_dict()[name] for name, tensor in a.state_dict().items()}
    assert all(tensor.dtype == torch.int64 for tensor in summed.values())
    assert same(CodebookUsage.from_state_dict(summed), a.merge(b))


def test_state_is_a_copy() -> None:
    usage = counted(random_batch(0))
    state = usage.state_dict()
    again = CodebookUsage.from_state_dict(state)
    state["words"].zero_()
    assert same(usage, again)


def test_uniform_ids_use_everything() -> None:
    ids = torch.arange(1 << 16, dtype=torch.int32).repeat(3)
    level = counted([ids], num_levels=1, num_bits=16).summary().levels[0]
    assert level.tokens == 3 << 16
    assert level.unique == 1 << 16
    assert level.share == 1
    assert level.perplexity == pytest.approx(1 << 16)
    assert level.dead_codes == 0
    assert level.bit_means == (0.5,) * 16
    assert level.dead_bits == ()
    assert level.max_deviation == 0


def test_constant_ids_use_one_word() -> None:
    level = counted([torch.full((1, 2, 3, 4), 0b101, dtype=torch.int32)], num_levels=1).summary().levels[0]
    assert (level.unique, level.dead_codes, level.share) == (1, 63, 1 / 64)
    assert level.perplexity == pytest.approx(1)
    assert level.bit_means == (1, 0, 1, 0, 0, 0)
    assert level.dead_bits == (0, 1, 2, 3, 4, 5)
    assert level.max_deviation == 0.5


def test_pooled_counts_levels_together() -> None:
    summary = counted([torch.tensor([0, 1]), torch.tensor([1, 2])]).summary()
    assert [level.unique for level in summary.levels] == [2, 2]
    assert (summary.pooled.tokens, summary.pooled.unique) == (4, 3)
    assert summary.pooled.perplexity == pytest.approx(2**1.5)


def test_bit_is_dead_only_outside_one_percent() -> None:
    ids = torch.zeros(1000, dtype=torch.int32)
    ids[:9] |= 1
    ids[:10] |= 2
    ids[:990] |= 4
    ids[:991] |= 8
    level = counted([ids], num_levels=1, num_bits=4).summary().levels[0]
    assert level.dead_bits == (0, 3)
    assert level.max_deviation == pytest.approx(0.491)


def test_prefix_of_levels_counts_only_those() -> None:
    summary = counted(random_batch(0)[:1]).summary()
    assert [level.tokens for level in summary.levels] == [6, 0]


def test_nothing_seen_says_so_in_plain_numbers() -> None:
    for num_bits in (6, 24):
        summary = CodebookUsage(2, num_bits).summary()
        assert summary.pooled.tokens == 0
        assert summary.pooled.bit_means == ()
        json.dumps(asdict(summary), allow_nan=False)


def test_large_vocabulary_counts_bits_alone() -> None:
    usage = counted(random_batch(0, 24), num_bits=24)
    assert usage.words.numel() == 0
    level = usage.summary().levels[1]
    assert (level.unique, level.share, level.perplexity, level.dead_codes) == (None,) * 4
    assert len(level.bit_means) == 24


@pytest.mark.parametrize("bad", [-1, 64])
def test_foreign_ids_are_refused_and_nothing_is_counted(bad: int) -> None:
    usage = CodebookUsage(2, 6)
    with pytest.raises(ValueError, match=r"level 2 holds ids outside \[0, 2\*\*6\)"):
        usage.update([torch.tensor([1, 2]), torch.tensor([bad])])
    assert same(usage, CodebookUsage(2, 6))


def test_mismatches_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot merge 2 levels of 6 bits with 3 levels of 6 bits"):
        CodebookUsage(2, 6).merge(CodebookUsage(3, 6))
    with pytest.raises(ValueError, match="counting 1 levels, got 2"):
        CodebookUsage(1, 6).update(random_batch(0))
    with pytest.raises(ValueError, match="at least one level"):
        CodebookUsage(0, 6)
    with pytest.raises(ValueError, match="1 to 31 bits"):
        CodebookUsage(1, 32)
    state = CodebookUsage(2, 6).state_dict()
    with pytest.raises(ValueError, match="needs 'ones'"):
        CodebookUsage.from_state_dict({"tokens": state["tokens"]})
    with pytest.raises(ValueError, match="has shapes"):
        CodebookUsage.from_state_dict(state | {"words": torch.zeros(2, 5, dtype=torch.int64)})
