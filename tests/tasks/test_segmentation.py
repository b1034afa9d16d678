"""Masks from planted tokens, exact; tubes against a flood fill."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from torch import Tensor

from planted_colours import COLOURS, ColourTokenizer
from pyratok.config import TextHeadConfig
from pyratok.tasks.crf import CRFConfig
from pyratok.tasks.segmentation import Segmentation, connected_tubes, segment
from pyratok.types import TokenPyramid, Video
from tiny import CONFIG, StubText, random_video, tiny_pyratok

WORDS = ("red", "green")
BETWEEN = 0.33
"""A background near the middle of the cosines of the right colour, 1, and of white, -1/3."""


@pytest.fixture
def model() -> ColourTokenizer:
    return ColourTokenizer()


def stripes(left: str, right: str, frames: int, size: tuple[int, int] = (40, 64), border: int = 32) -> Tensor:
    clip = torch.empty(1, 3, frames, *size)
    clip[..., :border] = torch.tensor(COLOURS[left]).view(1, 3, 1, 1, 1)
    clip[..., border:] = torch.tensor(COLOURS[right]).view(1, 3, 1, 1, 1)
    return clip


def change(size: tuple[int, int] = (40, 64)) -> Video:
    """Red on the left, then green on the right: frames 0 to 4, then 5 to 7; the rest is white."""
    return Video(torch.cat([stripes("red", "white", 5, size), stripes("white", "green", 3, size)], dim=2), fps=12.0)


def expected(size: tuple[int, int] = (40, 64)) -> Tensor:
    masks = torch.zeros(2, 8, *size, dtype=torch.bool)
    masks[0, :5, :, :32] = True
    masks[1, 5:, :, 32:] = True
    return masks


@pytest.mark.parametrize("level", [0, 1, 2, -1, "fused"])
@pytest.mark.parametrize("size", [(40, 64), (33, 50)])
def test_masks_are_where_the_words_are(model: ColourTokenizer, level: Any, size: tuple[int, int]) -> None:
    """At the true size, no multiple of the strides; where scores fade in time and in space at once borders bend."""
    found = segment(model, model.encode(change(size)), WORDS, level=level, background=BETWEEN)
    truth = expected(size)
    steady, outer = [0, 1, 2, 6, 7], [*range(16), *range(48, size[1])]
    assert torch.equal(found.masks[:, steady], truth[:, steady])
    assert torch.equal(found.masks[..., outer], truth[..., outer])
    assert found.scores.dtype == torch.float32
    assert found.scores.shape == found.masks.shape
    assert found.scores[found.masks].min() > BETWEEN
    assert found.scores.abs().max() <= 1 + 1e-5
    assert (found.words, found.fps) == (WORDS, 12.0)


def test_fused_scores_are_the_mean_over_levels(model: ColourTokenizer) -> None:
    tokens = model.encode(change())
    single = [segment(model, tokens, WORDS, level=level).scores for level in range(3)]
    fused = segment(model, tokens, WORDS, level="fused").scores
    assert torch.allclose(fused, torch.stack(single).mean(0), atol=1e-6)


def test_a_prefix_is_read_at_its_last_level(model: ColourTokenizer) -> None:
    tokens = model.encode(change())
    short = segment(model, tokens.prefix(2), WORDS)
    assert torch.equal(short.scores, segment(model, tokens, WORDS, level=1).scores)


@pytest.mark.parametrize("level", [0, 2, "fused"])
@pytest.mark.parametrize(("steps", "first", "inner"), [((0, 2), 0, (0, 3)), ((1, 3), 1, (3, 8)), ((2, 3), 5, (6, 8))])
def test_a_part_is_as_it_is_in_the_whole(
    model: ColourTokenizer, level: Any, steps: tuple[int, int], first: int, inner: tuple[int, int]
) -> None:
    """Between the centres of its steps, beyond which it knows nothing of the rest."""
    tokens = model.encode(change())
    whole = segment(model, tokens, WORDS, level=level)
    part = segment(model, tokens.time_slice(*steps), WORDS, level=level)
    within = slice(inner[0] - first, inner[1] - first)
    assert torch.equal(part.masks[:, within], whole.masks[:, slice(*inner)])
    assert torch.allclose(part.scores[:, within], whole.scores[:, slice(*inner)], atol=1e-5)


def test_the_background_decides_what_is_nothing(model: ColourTokenizer) -> None:
    tokens = model.encode(change())
    assert not segment(model, tokens, WORDS, background=1.0).masks.any()
    assert segment(model, tokens, WORDS, background=None).masks.sum(0).eq(1).all()


def test_the_crf_moves_the_border_to_the_edge_of_the_picture(model: ColourTokenizer) -> None:
    video = stripes("red", "white", 5, border=36)
    tokens = model.encode(video)
    truth = torch.zeros(5, 40, 64, dtype=torch.bool)
    truth[..., :36] = True
    plain = segment(model, tokens, ["red"])
    refined = segment(model, tokens, ["red"], video=video, crf=CRFConfig(bilateral=10))
    wrong = [(found.masks[0] != truth).sum() for found in (plain, refined)]
    assert wrong[1] < wrong[0] / 4
    assert torch.equal(refined.scores, plain.scores)


def test_a_model_with_a_text_head() -> None:
    model = tiny_pyratok(config=replace(CONFIG, text_head=TextHeadConfig(width=8, num_blocks=1)))
    model.text_encoder = StubText()
    video = random_video(frames=6, height=40, width=30)
    tokens = model.encode(video)
    found = segment(model, tokens, ["a dog", "a cat"], level="fused", background=None, video=video, crf=CRFConfig())
    assert found.masks.shape == (2, 6, 40, 30)
    assert found.masks.any()


def test_bad_requests_are_refused(model: ColourTokenizer) -> None:
    video = change()
    tokens = model.encode(video)

    def refused(named: str, tokens: TokenPyramid = tokens, words: Any = WORDS, **options: Any) -> None:
        with pytest.raises(ValueError, match=named):
            segment(model, tokens, words, **options)

    refused("the same", words=["a dog", " A  dog"])
    refused("no letters", words=["red", "  "])
    refused("list of texts", words="red")
    refused("at least one", words=[])
    refused("levels 0 to 2", level=3)
    refused("'fused'", level="deep")
    refused(r"select\(index\)", tokens=model.encode(video.plain().repeat(2, 1, 1, 1, 1)))
    refused("background", background=2.0)
    refused("give the video", crf=CRFConfig())
    refused(r"\(1, 3, 8, 40, 64\), got one of \(1, 3, 7, 40, 64\)", video=video.plain()[:, :, 1:], crf=CRFConfig())
    refused(r"\[-1, 1\]", video=video.plain() * 3, crf=CRFConfig())
    other = replace(tokens, model=replace(tokens.model, fingerprint="0" * 16))
    refused("made by", tokens=other)


def test_a_model_without_language_is_refused() -> None:
    model = tiny_pyratok()
    model.text_encoder = StubText()
    with pytest.raises(ValueError, match="no text head"):
        segment(model, model.encode(random_video()), ["dog"])


def test_instances_are_tubes_best_first() -> None:
    masks = torch.zeros(2, 4, 10, 10, dtype=torch.bool)
    masks[0, :, :4, :4] = True
    masks[0, 2:, 6:, 6:] = True
    masks[0, 0, 9, 0] = True  # a speck
    masks[1, 1, 5, 5] = True  # alone, it is no speck
    scores = torch.zeros(2, 4, 10, 10)
    scores[0, :, :5, :5] = 0.4
    scores[0, 2:, 6:, 6:] = 0.7
    scores[1] = 0.5
    segmentation = Segmentation(("dog", "cat"), scores, masks, None)
    found = segmentation.instances()
    assert [(one.word, round(one.score, 6)) for one in found] == [("dog", 0.7), ("cat", 0.5), ("dog", 0.4)]
    assert [int(one.masks.sum()) for one in found] == [32, 1, 64]
    assert not found[0].masks[:2].any()
    assert len(segmentation.instances(min_share=0)) == 4
    assert not Segmentation(("dog",), scores[:1], masks[:1] & False, None).instances()
    with pytest.raises(ValueError, match="min_share"):
        segmentation.instances(min_share=2)


@given(arrays(np.bool_, array_shapes(min_dims=3, max_dims=3, max_side=6)))
def test_tubes_are_what_a_flood_reaches(mask: NDArray[np.bool_]) -> None:
    assert np.array_equal(connected_tubes(mask), flooded(mask))


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_large_tubes_too(seed: int) -> None:
    mask = np.random.default_rng(seed).random((4, 12, 12)) < 0.4
    assert np.array_equal(connected_tubes(mask), flooded(mask))


def flooded(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Numbers of the parts in the order of their first voxel, by walking from neighbour to neighbour."""
    labels = np.zeros(mask.shape, np.int64)
    for start in zip(*np.nonzero(mask), strict=True):
        if labels[start]:
            continue
        number, todo = labels.max() + 1, [start]
        while todo:
            place = todo.pop()
            inside = all(0 <= p < n for p, n in zip(place, mask.shape, strict=True))
            if inside and mask[place] and not labels[place]:
                labels[place] = number
                for axis in range(3):
                    for step in (-1, 1):
                        todo.append(tuple(p + step * (axis == a) for a, p in enumerate(place)))
    return labels
