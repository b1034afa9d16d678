"""Vectors per step of time: the same from the whole, from parts, from files."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fakes import moving_video
from planted_colours import ColourTokenizer
from pyratok.codec.container import PyraWriter, open_tokens, save_tokens
from pyratok.config import TextHeadConfig
from pyratok.model.pyratok import PyraTok
from pyratok.tasks import steps
from pyratok.tasks.steps import step_edges, step_vectors
from pyratok.types import Geometry, TokenPyramid, Video
from tiny import CONFIG, random_video, tiny_pyratok


@pytest.fixture(scope="module")
def model() -> PyraTok:
    return tiny_pyratok(config=replace(CONFIG, text_head=TextHeadConfig(width=16, num_blocks=2, kernel=3)))


@pytest.fixture(scope="module")
def tokens(model: PyraTok) -> TokenPyramid:
    return model.encode(random_video(2, frames=39))


@pytest.mark.parametrize("level", [0, 1, -1])
def test_parts_of_a_long_clip_say_what_the_whole_says(
    model: PyraTok, tokens: TokenPyramid, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = step_vectors(model, tokens, level)
    cells = model.text_features(tokens, level)[:, : whole.shape[1]]
    by_length = (cells * cells.norm(dim=-1, keepdim=True)).mean(dim=(2, 3))
    torch.testing.assert_close(whole, by_length)
    for cells in (1, 100, 400):
        monkeypatch.setattr(steps, "CELLS_AT_ONCE", cells)
        torch.testing.assert_close(step_vectors(model, tokens, level), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("level", [0, 1, -1])
def test_a_part_that_begins_later_lies_where_it_belongs(model: PyraTok, tokens: TokenPyramid, level: int) -> None:
    part = tokens.time_slice(3, 10)
    begin, end = tokens.geometry.level_steps(level, 3, 10)
    whole, found = step_vectors(model, tokens, level)[:, begin:end], step_vectors(model, part, level)
    assert found.shape == whole.shape
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-4)


def test_files_say_what_tokens_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ColourTokenizer()
    tokens = model.encode(moving_video(frames=31))
    save_tokens(tokens, tmp_path / "whole.pyra")
    with PyraWriter(tmp_path / "growing.pyra", segment_steps=3) as file:
        for start in range(0, tokens.geometry.latent_steps, 2):
            file.append(tokens.time_slice(start, min(start + 2, tokens.geometry.latent_steps)))
    for level in (0, 2):
        wanted = step_vectors(model, tokens, level)
        for name in ("whole.pyra", "growing.pyra"):
            with monkeypatch.context() as patch:
                patch.setattr(steps, "CELLS_AT_ONCE", 1)
                torch.testing.assert_close(step_vectors(model, open_tokens(tmp_path / name), level), wanted)


def test_padding_has_no_say() -> None:
    """Neither in space, where the last row is repeated, nor in time, where the last frame is."""
    model = ColourTokenizer()
    video = torch.zeros(1, 3, 6, 40, 64)
    video[:, 0, :, 32:] = 1
    found = step_vectors(model, model.encode(video))
    assert found.shape == (1, 3, 3)  # frame 0, 1 to 4, and 5
    red = 8 / 40  # of 64 rows with the padding, 32 would be
    torch.testing.assert_close(found[..., 0], torch.full((1, 3), red), atol=0.05, rtol=0)
    assert step_vectors(model, model.encode(video), level=0).shape == (1, 6, 3)


def test_levels_that_are_not_held_are_refused(model: PyraTok, tokens: TokenPyramid) -> None:
    for level in (2, -3):
        with pytest.raises(ValueError, match=f"hold levels 0 to 1, asked for level {level}"):
            step_vectors(model, tokens.prefix(2), level)
    with pytest.raises(ValueError, match="these tokens were made by"):
        step_vectors(ColourTokenizer(), tokens)


def test_edges_of_a_clip_and_of_its_end() -> None:
    geometry = Geometry(frames=8, height=16, width=16, strides=((2, 16, 16), (4, 8, 8)))
    assert step_edges(geometry, 0).tolist() == [0, 1, 3, 5, 7, 8]
    assert step_edges(geometry, 1).tolist() == [0, 1, 5, 8]
    later = replace(geometry, frames=5, first_step=2)
    assert step_edges(later, 0).tolist() == [5, 7, 9, 10]
    assert step_edges(later, 1).tolist() == [5, 9, 10]


@given(frames=st.integers(1, 40), places=st.sets(st.integers(1, 10)), level=st.integers(0, 1))
def test_edges_of_parts_join_up(frames: int, places: set[int], level: int) -> None:
    geometry = Geometry(frames=frames, height=1, width=1, strides=((2, 1, 1), (4, 1, 1)))
    ids = tuple(torch.zeros(1, *geometry.grid(index), dtype=torch.int32) for index in range(2))
    whole = TokenPyramid(ids, geometry, ColourTokenizer().model_id)
    inner = sorted(place for place in places if place < geometry.latent_steps)
    bounds = [0, *inner, geometry.latent_steps]
    parts = [step_edges(whole.time_slice(a, b).geometry, level).tolist() for a, b in pairwise(bounds)]
    assert all(before[-1] == after[0] for before, after in pairwise(parts))
    assert [parts[0][0], *(edge for part in parts for edge in part[1:])] == step_edges(geometry, level).tolist()


def test_what_is_said_leads_what_is_not() -> None:
    """A mean of features, not of directions: grey cells have nothing to say."""
    model = ColourTokenizer()
    video = torch.zeros(1, 3, 1, 32, 32)
    video[..., :8, :8] = torch.tensor([1.0, -1.0, -1.0])[:, None, None, None]
    direction = F.normalize(step_vectors(model, model.encode(Video(video)))[0, 0], dim=0)
    assert direction @ model.embed_text(["red"])[0] > 0.9
