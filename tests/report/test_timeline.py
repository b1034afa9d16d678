"""The timeline, read back from its SVG and from its pixels."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyratok.report.canvas import PIXELS_PER_UNIT, Box, Canvas, Image, Words
from pyratok.report.timeline import LEFT, RIGHT, WIDTH, span_text, timeline
from pyratok.tasks.localization import Span

SVG = "{http://www.w3.org/2000/svg}"


def clip(steps: int = 40, queries: int = 2) -> tuple[np.ndarray, np.ndarray]:
    scores = np.random.default_rng(0).normal(0.2, 0.1, (queries, steps))
    return scores, np.arange(steps + 1) / 10


def texts(drawn: Canvas) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(drawn.svg()).iter(f"{SVG}text")]


def test_queries_and_spans_are_named() -> None:
    scores, edges = clip()
    spans = [Span("a <dog>", 1.0, 2.0, 0.31), Span("a <dog>", 1.5, 2.5, 0.3)]
    found = texts(timeline("clip & more.mp4", ["a <dog>", "cat"], scores, edges, spans))
    assert {"clip & more.mp4", "a <dog>", "cat", span_text(spans[0]), "not found", "4 s"} <= set(found)
    assert f"{scores[0].max():.2f}" in found
    assert span_text(spans[1]) not in found  # there is no room


def test_spans_lie_where_they_are_in_time() -> None:
    scores, edges = clip(queries=1)
    drawn = timeline("x", ["dog"], scores, edges, [Span("dog", 1.0, 2.0, 0.3)])
    (band,) = [shape for shape in drawn.shapes if isinstance(shape, Box) and shape.opacity == 0.16]
    assert band.x == pytest.approx(LEFT + (WIDTH - LEFT - RIGHT) / 4)
    assert band.width == pytest.approx((WIDTH - LEFT - RIGHT) / 4)


def test_a_part_begins_at_its_own_time() -> None:
    scores, edges = clip(queries=1)
    assert "102 s" in texts(timeline("x", ["dog"], scores, edges + 100, []))


@settings(max_examples=30)
@given(steps=st.integers(1, 4000), queries=st.integers(1, 5), flat=st.booleans())
def test_shapes_stay_inside(steps: int, queries: int, flat: bool) -> None:
    scores, edges = clip(steps, queries)
    names = [f"query {number}" for number in range(queries)]
    spans = [Span(name, edges[0], edges[-1], 0.5) for name in names]
    drawn = timeline("x", names, scores * (not flat), edges, spans)
    boxes = [shape for shape in drawn.shapes if isinstance(shape, Box)]
    assert all(box.x >= 0 and box.x + box.width <= drawn.width + 1e-6 for box in boxes)
    assert all(box.y >= 0 and box.y + box.height <= drawn.height + 1e-6 for box in boxes)
    assert len(boxes) < 1000 * queries


def test_stills_stand_above_and_both_forms_hold_them() -> None:
    scores, edges = clip()
    still = np.zeros((12, 16, 3), np.uint8)
    still[..., 1] = 255
    drawn = timeline("x", ["dog", "cat"], scores, edges, [], [still] * 4)
    images = list(ElementTree.fromstring(drawn.svg()).iter(f"{SVG}image"))
    assert len(images) == 4
    assert all((image.get("href") or "").startswith("data:image/png;base64,") for image in images)
    pixels = drawn.pixels()
    assert pixels.shape == (drawn.height * PIXELS_PER_UNIT, drawn.width * PIXELS_PER_UNIT, 3)
    assert (pixels == [0, 255, 0]).all(-1).mean() > 0.1


def test_pixels_are_where_the_svg_has_them() -> None:
    picture = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)
    shapes = [Box(2, 3, 4, 5, "#000000", 0.5), Image(10, 0, 6, 4, picture), Words(18, 19, "I", "#00ff00", 10, "end")]
    pixels = Canvas(20, 20, "x", list(shapes)).pixels()
    grey = np.argwhere((pixels == 128).all(-1))
    assert (grey.min(0).tolist(), grey.max(0).tolist()) == ([6, 4], [15, 11])
    assert pixels[0, 20].tolist() == pixels[7, 25].tolist() == [255, 0, 0]
    assert pixels[0, 26].tolist() == pixels[7, 31].tolist() == [0, 0, 255]
    letter = np.argwhere((pixels == [0, 255, 0]).all(-1))
    assert letter[:, 1].max() < 36
    assert letter[:, 0].max() == 37


def test_shapes_beyond_the_edge_are_cut() -> None:
    image = np.zeros((3, 3, 3), np.uint8)
    shapes = [Box(-5, -5, 50, 50, "#112233"), Image(15, 15, 40, 40, image), Words(19, 3, "long words", "#000000")]
    assert Canvas(20, 20, "x", list(shapes)).pixels().shape == (40, 40, 3)


def test_what_xml_cannot_hold_is_left_out() -> None:
    drawn = Canvas(9, 9, "a\x00b\udce9c", [Words(0, 9, "\x1b[1m<&", "#000000")])
    assert ElementTree.fromstring(drawn.svg().encode()).findtext(f"{SVG}title") == "abc"
