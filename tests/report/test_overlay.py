"""Masks in colour over their video, with a legend that names them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyratok.data.video_io import load_video, probe
from pyratok.report.lettering import lettering
from pyratok.report.overlay import GROUND, INK, legend, outline, overlay, save_overlay, word_colours
from pyratok.tasks.segmentation import Segmentation


def a_mask(frames: int = 2, side: int = 256) -> np.ndarray:
    mask = np.zeros((1, frames, side, side), np.bool_)
    mask[0, 0, 20:60, 30:80] = True
    return mask


def test_masks_are_tinted_and_outlined_and_the_rest_stays() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    before, mask = frames.copy(), a_mask()
    out, (colour,) = overlay(frames, mask, ["dog"])[:, :256], word_colours(1)
    assert np.array_equal(frames, before)
    assert np.array_equal(out[~mask[0]], frames[~mask[0]])
    assert (out[outline(mask[0])] == colour).all()
    inside = mask[0] & ~outline(mask[0])
    distances = [np.abs(picture[inside].astype(int) - colour).mean() for picture in (out, frames)]
    assert distances[0] < 0.6 * distances[1]


def test_small_clips_are_enlarged_pixel_by_pixel() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 40, 50, 3), dtype=np.uint8)
    out = overlay(frames, np.zeros((1, 1, 40, 50), np.bool_), ["dog"])
    assert out.shape[2] == 7 * 50
    assert np.array_equal(out[:, : 7 * 40 : 7, ::7], frames)


def test_the_outline_is_inside_and_not_along_the_border_of_the_picture() -> None:
    mask = np.zeros((1, 6, 6), np.bool_)
    mask[0, :4, :4] = True
    found = outline(mask)
    assert not (found & ~mask).any()
    assert np.argwhere(found[0]).tolist() == [[0, 3], [1, 3], [2, 3], [3, 0], [3, 1], [3, 2], [3, 3]]


def test_colours_are_far_apart_and_keep_their_places() -> None:
    colours = word_colours(8).astype(int)
    gaps = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(8)
    assert gaps.min() > 60
    assert np.array_equal(word_colours(3), colours[:3])


@settings(max_examples=30)
@given(words=st.lists(st.text(max_size=12), min_size=1, max_size=6), width=st.integers(16, 200))
def test_every_word_has_its_colour_in_the_legend(words: list[str], width: int) -> None:
    picture = legend(words, width)
    assert picture.shape[1:] == (width, 3)
    assert picture.shape[0] % 2 == 0
    for colour in word_colours(len(words)):
        assert (picture == colour).all(-1).any()


def test_words_that_do_not_fit_side_by_side_go_below_each_other() -> None:
    one, two = legend(["dog"], 320), legend(["a large dog", "a small cat"], 320)
    assert len(one) < len(two)
    assert set(np.unique(one.min(-1))) == {GROUND, INK, word_colours(1).min()}


@pytest.mark.parametrize(("frames", "name"), [(5, "x.mp4"), (1, "x.png")])
def test_files_hold_the_overlay(tmp_path: Path, frames: int, name: str) -> None:
    masks = torch.zeros(1, frames, 256, 256, dtype=torch.bool)
    masks[:, :, :128] = True
    found = Segmentation(("dog",), torch.zeros(masks.shape), masks, 12.0)
    save_overlay(torch.full((1, 3, frames, 256, 256), -1.0), found, tmp_path / name, fps=12.0)
    back = load_video(tmp_path / name)
    assert back.shape[2] == frames
    assert back.shape[3] > 256
    assert probe(tmp_path / name).width == 256
    assert back[0, 0, :, 10:100, 20:200].mean() > -0.5
    assert back[0, :, :, 140:250, 20:200].max() < -0.9


def test_letters_are_told_apart_and_others_are_boxes() -> None:
    known = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,-:'!?/()%&+= "
    assert len({lettering(letter).tobytes() for letter in known}) == len(known)
    assert np.array_equal(lettering("Café"), lettering("CAFE"))
    assert np.array_equal(lettering("猫"), lettering("ж"))
    assert lettering("猫")[0].all()
    assert lettering("two", 3).shape == (21, 51)
    assert not lettering("").any()
