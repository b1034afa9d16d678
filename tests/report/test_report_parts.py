"""Pictures, plots and the stopwatch of the report."""

from __future__ import annotations

from itertools import pairwise, product
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pyratok.data.video_io import load_video, to_uint8
from pyratok.report.png import encode_png
from pyratok.report.stopwatch import Stopwatch
from pyratok.report.svg import Line, bit_bars, frame_ticks, line_chart, nice_ticks, spread
from pyratok.report.tokenmaps import sprite_sheet, token_colours
from pyratok.report.units import human_bytes, human_seconds


@settings(max_examples=20, deadline=None)
@given(image=arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_png_round_trip(image: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("png") / "image.png"
    path.write_bytes(encode_png(image))
    assert np.array_equal(to_uint8(load_video(path))[0], image)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 2), "uint8"), ((2, 2, 4), "uint8"), ((0, 2, 3), "uint8"), ((1, 1, 3), "float32")]
)
def test_png_refuses_what_it_cannot_hold(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(ValueError, match="uint8"):
        encode_png(np.zeros(shape, dtype))


def test_equal_words_have_equal_colours_and_unequal_clusters_do_not() -> None:
    ids = torch.tensor([0, 0xFFFF, 0, 0xFFFF, 0x00FF, 0x00FF]).reshape(1, 2, 3).to(torch.int32)
    colours = token_colours(ids, 16).reshape(-1, 3)
    assert torch.equal(colours[0], colours[2])
    assert torch.equal(colours[1], colours[3])
    assert not torch.allclose(colours[0], colours[1], atol=0.1)
    assert 0 <= float(colours.min()) <= float(colours.max()) <= 1


@pytest.mark.parametrize("num_bits", [1, 2, 16])
def test_a_level_of_one_word_is_grey(num_bits: int) -> None:
    colours = token_colours(torch.ones(2, 3, 4, dtype=torch.int32), num_bits)
    assert torch.equal(colours, torch.full((2, 3, 4, 3), 0.5))


def test_colours_do_not_depend_on_the_order_of_tokens() -> None:
    ids = torch.randint(0, 1 << 16, (4, 5, 6), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    there = token_colours(ids, 16)
    assert torch.allclose(token_colours(ids.flip(0), 16).flip(0), there, atol=1e-5)


def test_steps_stand_side_by_side() -> None:
    colours = torch.rand(3, 2, 4, 3)
    sheet = sprite_sheet(colours)
    assert sheet.shape == (2, 12, 3)
    assert np.array_equal(sheet[:, 4:8], sprite_sheet(colours[1:2]))


@given(low=st.floats(-1e3, 1e3), span=st.floats(0, 1e3), count=st.integers(2, 8))
def test_ticks_enclose_the_values_evenly(low: float, span: float, count: int) -> None:
    ticks = nice_ticks(low, low + span, count)
    tolerance = 1e-6 * max(1.0, abs(low), span)
    assert ticks[0] <= low + tolerance
    assert ticks[-1] >= low + span - tolerance
    assert 2 <= len(ticks) <= count + 3
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0], atol=tolerance)


@given(frames=st.integers(1, 5000))
def test_frame_ticks_are_frames(frames: int) -> None:
    ticks = frame_ticks(frames)
    assert ticks[0] == 0
    assert ticks[-1] < frames
    assert len(ticks) <= 9


@given(positions=st.lists(st.floats(0, 200), min_size=1, max_size=8))
def test_labels_keep_their_distance_and_order(positions: list[float]) -> None:
    placed = spread(positions, 10.0)
    ranked = sorted(placed)
    assert all(b - a >= 10.0 - 1e-6 for a, b in pairwise(ranked))
    both = list(zip(positions, placed, strict=True))
    assert all(x <= y for (a, x), (b, y) in product(both, both) if a < b)
    assert sum(placed) == pytest.approx(sum(positions), abs=1e-6)


def test_labels_with_room_stay() -> None:
    assert spread([50.0, 10.0, 30.0], 10.0) == [50.0, 10.0, 30.0]


@pytest.mark.parametrize("values", [[20.0], [20.0, 20.0], [20.0, 25.0, 100.0]])
def test_plots_are_well_formed_and_stay_inside(values: list[float]) -> None:
    drawn = ElementTree.fromstring(line_chart([Line("a <b>", "red", values)], title="PSNR & more", decimals=1))
    assert [line.get("style") for line in drawn.iter("polyline")] == ["stroke:red"]
    points = [tuple(map(float, p.split(","))) for p in next(drawn.iter("polyline")).get("points", "").split()]
    assert len(points) == len(values)
    _, _, width, height = map(float, drawn.get("viewBox", "").split())
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)


def test_bit_bars_have_a_bar_per_bit() -> None:
    drawn = ElementTree.fromstring(bit_bars([0.0, 0.5, 1.0], "blue"))
    bars = [(float(r.get("y", "")), float(r.get("height", ""))) for r in drawn.iter("rect")]
    assert bars == [(22.0, 22.0), (22.0, 1.0), (0.0, 22.0)]


def test_stopwatch_keeps_finished_steps_in_order() -> None:
    watch = Stopwatch()
    with watch.step("first"):
        pass
    with pytest.raises(RuntimeError), watch.step("broken"):
        raise RuntimeError
    with watch.step("second"):
        pass
    assert list(watch.seconds) == ["first", "second"]
    assert all(seconds >= 0 for seconds in watch.seconds.values())


def test_units() -> None:
    assert [human_bytes(n) for n in (0, 999, 1000, 15_200, 3e6, 2e13)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "15.2 kB",
        "3.0 MB",
        "20.0 TB",
    ]
    assert (human_seconds(0.0123), human_seconds(12.34)) == ("12 ms", "12.3 s")
