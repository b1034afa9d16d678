from __future__ import annotations

import base64
import re

import numpy as np
import pytest

from pyratok.report.contact_sheet import Tile, render, time_text
from pyratok.types import ModelId

MODEL = ModelId(name="tiny", fingerprint="f" * 16)


def tile(name: str, score: float, start: float | None = None, end: float | None = None, still: bool = True) -> Tile:
    return Tile(name=name, score=score, start=start, end=end, still=np.zeros((6, 8, 3), np.uint8) if still else None)


def test_clips_are_shown_with_their_places() -> None:
    tiles = [tile("a.pyra", 0.5, 20.0, 30.0), tile("more/b.pyra", 0.25), tile("c.pyra", -0.1, still=False)]
    page = render("a dog", "clips", tiles, 1234, MODEL)
    order = [page.index(name) for name in ("1. a.pyra", "2. more/b.pyra", "3. c.pyra")]
    assert order == sorted(order)
    assert "0.500 &middot; 20.0 to 30.0 s" in page
    assert "best 3 of 1,234 clips in clips" in page
    assert re.findall(r'width:([\d.]+)%"></i>', page) == ["100.0", "50.0", "0.0"]
    assert page.count("a part without its beginning") == 1
    pictures = re.findall(r"data:image/png;base64,([\w+/=]+)", page)
    assert [base64.b64decode(data)[:4] for data in pictures] == [b"\x89PNG"] * 2


def test_the_page_needs_nothing_beside_it_and_names_are_text() -> None:
    page = render("<script>", "a & b", [tile('"><b>.pyra', 0.1), tile("caf\udce9.pyra", 0.1)], 2, MODEL)
    assert "<script" not in page
    assert "<b>" not in page
    assert "a &amp; b" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    page.encode()


@pytest.mark.parametrize(("times", "text"), [((1.0, 2.04), "1.0 to 2.0 s"), ((None, None), ""), ((1.0, None), "")])
def test_times(times: tuple[float | None, float | None], text: str) -> None:
    assert time_text(*times) == text
