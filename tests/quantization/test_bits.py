from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyratok.quantization.bits import ids_to_signs, sign, signs_to_ids

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@relaxed
@given(num_bits=st.integers(1, 31), data=st.data())
def test_ids_and_signs_are_inverse(num_bits: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, (1 << num_bits) - 1), min_size=1, max_size=8))
    ids = torch.tensor(values, dtype=torch.int32)
    signs = ids_to_signs(ids, num_bits)
    assert signs.shape == (len(values), num_bits)
    assert set(signs.unique().tolist()) <= {-1.0, 1.0}
    assert torch.equal(signs_to_ids(signs), ids)


def test_bit_i_of_an_id_is_sign_i() -> None:
    assert ids_to_signs(torch.tensor([0b0110]), 4).tolist() == [[-1, 1, 1, -1]]
    assert signs_to_ids(torch.tensor([[1.0, -1, -1, 1]])).tolist() == [0b1001]


@pytest.mark.parametrize("dim", [0, 1, 4, -1, -2])
def test_bits_may_lie_along_any_axis(dim: int) -> None:
    ids = torch.randint(0, 1 << 16, (2, 3, 4, 5), dtype=torch.int32)
    signs = ids_to_signs(ids, 16, dim=dim)
    assert signs.shape[dim] == 16
    assert torch.equal(signs_to_ids(signs, dim=dim), ids)


def test_sign_of_zero_is_plus_one_in_every_type() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        signs = sign(torch.tensor([0.0, -0.0, 1e-30, -1e-30], dtype=torch.float64).to(dtype))
        assert signs.dtype == dtype
        assert signs[:3].tolist() == [1, 1, 1]
    assert sign(torch.tensor([-1e-30])).item() == -1


@pytest.mark.parametrize("num_bits", [0, 32])
def test_words_have_1_to_31_bits(num_bits: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 31 bits, got {num_bits}"):
        signs_to_ids(torch.ones(2, num_bits))
