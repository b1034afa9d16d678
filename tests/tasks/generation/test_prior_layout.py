"""Places: every word once, where it is, in the order asked for; and what a prior's configuration refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyratok.config import from_dict, to_dict
from pyratok.tasks.generation.config import PriorConfig
from pyratok.tasks.generation.layout import layout_of
from pyratok.types import Geometry
from tiny_priors import CONFIG, GEOMETRY, STRIDES, random_tokens


@pytest.mark.parametrize("order", ["level", "time", "cell"])
@pytest.mark.parametrize("frames", [1, 5, 7, 9])
def test_flattened_and_back(order: str, frames: int) -> None:
    geometry = Geometry(frames=frames, height=16, width=24, strides=STRIDES)
    tokens, layout = random_tokens(geometry=geometry), layout_of(geometry, order)
    back = layout.unflatten(layout.flatten(tokens.levels))
    assert all(torch.equal(a, b) for a, b in zip(back, tokens.levels, strict=True))


def test_by_level_is_the_sequence_of_the_paper() -> None:
    tokens, layout = random_tokens(), layout_of(GEOMETRY, "level")
    sequence = tokens.to_sequence()
    assert torch.equal(layout.flatten(tokens.levels), sequence[sequence < tokens.soi_id].reshape(2, -1))
    marks = (sequence[0] == tokens.separator_id).nonzero()[:, 0]
    assert layout.begins_level.nonzero()[:, 0].tolist() == [int(mark) - 1 - i for i, mark in enumerate(marks)]


@pytest.mark.parametrize("order", ["level", "time"])
def test_steps_are_those_of_time_slices(order: str) -> None:
    tokens, layout = random_tokens(1), layout_of(GEOMETRY, order)
    words = layout.flatten(tokens.levels)[0]
    for step in range(GEOMETRY.latent_steps):
        part = tokens.time_slice(step, step + 1)
        wanted = torch.cat([ids.flatten() for ids in part.levels])
        assert torch.equal(words[layout.step == step], wanted)


def test_by_time_all_levels_of_a_step_come_before_the_next() -> None:
    layout = layout_of(GEOMETRY, "time")
    assert (layout.step.diff() >= 0).all()
    first = int((layout.step == 0).sum())
    assert [layout.steps_within(n) for n in (0, first - 1, first, len(layout))] == [0, 0, 1, 3]
    by_level = layout_of(GEOMETRY, "level")
    assert [by_level.steps_within(len(layout) - n) for n in (9, 8, 1, 0)] == [1, 2, 2, 3]


def test_by_cell_the_words_of_a_cell_on_levels_of_one_grid_are_a_stack() -> None:
    layout = layout_of(GEOMETRY, "cell")
    assert (layout.step.diff() >= 0).all()
    # Grids 5x1x2, 3x2x4 and 3x2x4: the first level alone, the others together.
    assert [len(places) for places in layout.at_depth] == [5 * 2 + 3 * 8, 3 * 8]
    first, second = layout.at_depth[0][layout.level[layout.at_depth[0]] == 1], layout.at_depth[1]
    assert torch.equal(second, first + 1)
    assert torch.equal(layout.position[first, 1:], layout.position[second, 1:])
    assert (layout.level[second] == 2).all()
    assert torch.equal(layout.stack[first], layout.stack[second])
    step = layout.step == 1
    assert layout.level[step].tolist() == [0] * 4 + [1, 2] * 8
    by_time = layout_of(GEOMETRY, "time")
    assert torch.equal(layout.order[step].sort().values, by_time.order[by_time.step == 1].sort().values)


def test_positions_of_all_levels_share_one_space() -> None:
    layout = layout_of(GEOMETRY, "level")
    coarse, fine = (layout.position[layout.level == level] for level in (0, 1))
    # The centre of a coarse cell lies between its four fine ones; the last step of both ends with the last frame.
    assert coarse[0].tolist() == [0, 0, 1, 1]
    assert fine[:2, 2:].tolist() == [[0.5, 0.5], [0.5, 1.5]]
    assert coarse[-1, 1] == fine[-1, 1] == 2
    assert len({tuple(p) for p in layout.position.tolist()}) == len(layout)
    assert len(layout.angles(16).unique(dim=0)) == len(layout)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "other"}, "kind"),
        ({"order": "time", "kind": "masked"}, "order"),
        ({"order": "cell", "kind": "scale"}, "order"),
        ({"hidden_size": 24}, "multiple of eight times"),
        ({"chunk_bits": 7}, "at most num_bits = 6"),
        ({"num_layers": 0}, "num_layers"),
        ({"text_dropout": 1.0}, "text_dropout"),
        ({"frames": 0}, "at least one frame"),
    ],
)
def test_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(PriorConfig, to_dict(CONFIG) | change)


def test_the_configuration_comes_back_from_json() -> None:
    assert from_dict(PriorConfig, to_dict(CONFIG)) == CONFIG


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (Geometry(frames=13, height=16, width=24, strides=STRIDES), "up to 9 frames of 24x16, asked for 13"),
        (Geometry(frames=9, height=24, width=16, strides=STRIDES), "asked for 9 frames of 16x24"),
        (Geometry(frames=9, height=16, width=24, strides=STRIDES[1:]), "strides"),
        (Geometry(frames=8, height=16, width=24, strides=STRIDES, first_step=1), "from step 1"),
    ],
)
def test_clips_that_were_never_met(geometry: Geometry, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CONFIG.check(geometry)
