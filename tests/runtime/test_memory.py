"""Amounts of memory as text, and tensors counted while they live."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyratok.runtime.memory import TensorMemory, format_bytes, parse_bytes, resident_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4GiB", 4 << 30),
        ("4 gib", 4 << 30),
        ("4Gi", 4 << 30),
        ("1.5GB", 1_500_000_000),
        ("512M", 512_000_000),
        (".5 KiB", 512),
        ("100", 100),
        (1 << 40, 1 << 40),
    ],
)
def test_amounts(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "four", "-1GiB", "0", "4 GiB 2", "4PiB", "4i", "1e9", "nan"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 4GiB"):
        parse_bytes(text)


@given(st.integers(1, 1 << 45))
def test_what_is_shown_is_what_it_is(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.01)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_most_that_lives_at_once(device: str) -> None:
    with TensorMemory() as memory:
        x = torch.empty(1000, device=device)  # 4000 bytes
        view = x.view(10, 100)[2:]
        y = view + 1  # 3200 more
        assert (memory.live, memory.peak) == (7200, 7200)
        del x, view
        assert memory.live == 3200
        y = y * 2
        del y
    assert memory.live == 0
    assert memory.peak == 7200


def test_a_process_holds_memory() -> None:
    now, most = resident_bytes(), resident_bytes(peak=True)
    assert now is None or (most is not None and 0 < now <= most * 1.01)
