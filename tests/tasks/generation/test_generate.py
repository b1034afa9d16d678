"""Sampling through the one door: seeds, batches, continuations, gaps, guidance and parts as they are ready."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pyratok.tasks.generation.generate import Known, generate, outside
from pyratok.types import Geometry, TokenPyramid
from tiny_priors import GEOMETRY, KINDS, STRIDES, TOKENIZER, random_text, random_tokens, tiny_prior

every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_a_seed_brings_a_clip_back_alone_or_in_a_batch(kind: str) -> None:
    prior, text = tiny_prior(kind), random_text(1)
    both = generate(prior, text, GEOMETRY, batch=2, seed=4, steps=3)
    assert (both.geometry, both.model, both.batch_size) == (GEOMETRY, TOKENIZER, 2)
    assert both == generate(prior, text, GEOMETRY, batch=2, seed=4, steps=3)
    assert both.select(1) == generate(prior, text, GEOMETRY, seed=5, steps=3)
    assert both.select(0) != both.select(1)
    assert both.select(0) != generate(prior, None, GEOMETRY, seed=4, steps=3)


@every_kind
def test_guidance_of_one_is_plain_and_more_is_not(kind: str) -> None:
    prior, text = tiny_prior(kind), random_text()
    plain = generate(prior, text, GEOMETRY, steps=3)
    assert plain == generate(prior, text, GEOMETRY, steps=3, guidance=1.0)
    assert plain != generate(prior, text, GEOMETRY, steps=3, guidance=3.0)
    # With the same said to both sides, guidance has nothing to point at.
    silent = replace(text, mask=torch.zeros_like(text.mask))
    assert generate(prior, silent, GEOMETRY, steps=3, guidance=3.0) == generate(prior, None, GEOMETRY, batch=2, steps=3)
    unguided = generate(prior, text, GEOMETRY, steps=3, guidance=0.0)
    assert unguided == generate(prior, None, GEOMETRY, batch=2, steps=3)


@every_kind
@pytest.mark.parametrize("frames", [1, 5, 7])
def test_a_prefix_goes_on(kind: str, frames: int) -> None:
    prior = tiny_prior(kind)
    begun = random_tokens(1, geometry=replace(GEOMETRY, frames=frames))
    whole = (frames + 3) // 4  # of 7 frames the last two are padded: that step is made anew
    result = generate(prior, random_text(), GEOMETRY, prefix=begun, steps=2)
    kept = begun.time_slice(0, whole)
    for clip in range(2):
        found = result.select(clip).time_slice(0, whole)
        assert all(torch.equal(a, b) for a, b in zip(found.levels, kept.levels, strict=True))
    assert result.select(0) != result.select(1)


@every_kind
def test_what_lies_outside_a_region_stays(kind: str) -> None:
    prior, tokens = tiny_prior(kind), random_tokens(1)
    region = torch.zeros(9, 16, 24, dtype=torch.bool)
    region[5:, 3, 20] = True
    known = outside(tokens, region)
    # Level 1: the right of two cells from frame 5 on, steps 3 and 4; levels 2 and 3: one cell of step 2, and beside it
    # the padding, which repeats columns behind 23, where nothing is hidden.
    assert [int((~mask).sum()) for mask in known.masks] == [2, 1, 1]
    result = generate(prior, None, GEOMETRY, known=known, batch=3, steps=2)
    for ids, given, mask in zip(result.levels, tokens.levels, known.masks, strict=True):
        assert torch.equal(ids[:, mask], given[:, mask].expand(3, -1))
    assert any(result.select(0) != result.select(clip) for clip in (1, 2))
    everything = generate(prior, None, GEOMETRY, known=outside(tokens, torch.zeros_like(region)))
    assert everything == tokens


def test_padding_goes_with_the_edge_that_it_repeats() -> None:
    tokens = random_tokens(1)
    region = torch.zeros(9, 16, 24, dtype=torch.bool)
    region[:, :8, 23] = True
    fine = ~outside(tokens, region).masks[1]
    assert fine.tolist() == [[[False, False, True, True], [False] * 4]] * 3


def test_masked_words_depend_on_known_ones_before_and_behind() -> None:
    """Any order: the first word changes with the last one given."""
    prior, tokens = tiny_prior("masked"), random_tokens(1)
    masks = [torch.ones(ids.shape[1:], dtype=torch.bool) for ids in tokens.levels]
    masks[0][0, 0, 0] = False
    drawn = set()
    for seed in range(8):
        levels = list(tokens.levels)
        levels[2] = random_tokens(1, seed).levels[2]
        known = Known(replace(tokens, levels=tuple(levels)), tuple(masks))
        drawn.add(int(generate(prior, None, GEOMETRY, known=known, temperature=0.0).levels[0][0, 0, 0, 0]))
    assert len(drawn) > 1


@every_kind
def test_parts_come_in_order_and_are_the_result(kind: str) -> None:
    parts: list[TokenPyramid] = []
    result = generate(tiny_prior(kind), random_text(), GEOMETRY, steps=2, on_part=parts.append)
    assert TokenPyramid.concat(parts) == result
    assert len(parts) == (3 if kind.startswith(("ar", "llm")) else 1)


def test_by_time_parts_stay_when_sampling_is_cut_off() -> None:
    prior, parts = tiny_prior("ar by time"), list[TokenPyramid]()

    def stop(part: TokenPyramid) -> None:
        parts.append(part)
        if len(parts) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(prior, None, GEOMETRY, on_part=stop)
    whole = generate(prior, None, GEOMETRY)
    assert TokenPyramid.concat(parts) == whole.time_slice(0, 2)


@every_kind
def test_settings_may_differ_by_level(kind: str) -> None:
    prior = tiny_prior(kind)
    first, second = (
        generate(prior, None, GEOMETRY, seed=seed, temperature=[0.0, 1.0, 1.0], steps=1) for seed in (0, 1)
    )
    same = [torch.equal(a, b) for a, b in zip(first.levels, second.levels, strict=True)]
    if not kind.endswith(("by time", "by cell")):  # there the first level goes on after the others have begun
        assert same == [True, False, False]
    # In one step: with several, chance decides which words are kept first.
    likeliest = [generate(prior, None, GEOMETRY, seed=seed, top_k=1, steps=1) for seed in (0, 1)]
    assert likeliest[0] == likeliest[1]


@every_kind
def test_shorter_clips_and_smaller_frames(kind: str) -> None:
    geometry = Geometry(frames=4, height=16, width=16, strides=STRIDES)
    assert generate(tiny_prior(kind), None, geometry, steps=2).geometry == geometry


def test_refused() -> None:
    prior, tokens = tiny_prior("ar"), random_tokens()
    with pytest.raises(ValueError, match="seed must be at least 0"):
        generate(prior, None, GEOMETRY, seed=-1)
    with pytest.raises(ValueError, match="has learned clips of up to"):
        generate(prior, None, replace(GEOMETRY, frames=13))
    with pytest.raises(ValueError, match="different numbers of clips"):
        generate(prior, random_text(3), GEOMETRY, prefix=tokens)
    with pytest.raises(ValueError, match="different numbers of clips"):
        generate(prior, None, GEOMETRY, batch=0)
    with pytest.raises(ValueError, match="prefix is 9 frames of 24x16, which cannot go on to 5"):
        generate(prior, None, replace(GEOMETRY, frames=5), prefix=tokens)
    with pytest.raises(ValueError, match="cannot go on"):
        generate(prior, None, replace(GEOMETRY, width=16), prefix=tokens)
    everything = outside(tokens, torch.zeros(9, 16, 24, dtype=torch.bool))
    with pytest.raises(ValueError, match="known tokens are 9 frames"):
        generate(prior, None, replace(GEOMETRY, frames=5), known=everything)
    with pytest.raises(ValueError, match=r"a region of this video is bool \[9, 16, 24\]"):
        outside(tokens, torch.zeros(9, 16, 25, dtype=torch.bool))
    with pytest.raises(ValueError, match="the mask of level 1 should be bool"):
        Known(tokens, tuple(torch.zeros(ids.shape) for ids in tokens.levels))
    with pytest.raises(TypeError, match="tmeperature"):
        generate(prior, None, GEOMETRY, tmeperature=1.0)


@pytest.mark.parametrize("kind", ["ar", "ar by time", "scale", "masked"])
def test_a_prior_of_the_first_levels_makes_these(kind: str) -> None:
    prior, text, whole = tiny_prior(kind, levels=2), random_text(1), random_tokens(1)
    made = generate(prior, text, GEOMETRY, steps=2)
    assert [ids.shape for ids in made.levels] == [ids.shape for ids in whole.levels[:2]]
    assert made.geometry == GEOMETRY
    output = prior(whole, text)
    assert prior(whole.prefix(2), text, prior.draw(1, GEOMETRY, measure=True)).token_nll.shape[0] == 1
    assert set(output.level.tolist()) <= {0, 1}
    gone_on = generate(prior, text, GEOMETRY, prefix=random_tokens(1).time_slice(0, 1), steps=2)
    assert torch.equal(gone_on.levels[0][:, :1], whole.levels[0][:, :1])
    region = torch.zeros(9, 16, 24, dtype=torch.bool)
    region[:, :8] = True
    filled = generate(prior, text, GEOMETRY, known=outside(whole, region), steps=2)
    assert torch.equal(filled.levels[1][:, :, 1], whole.levels[1][:, :, 1])
    with pytest.raises(ValueError, match="this prior wants 2 levels of 6 bits, got 1 of 6"):
        prior(whole.prefix(1), text)
    with pytest.raises(ValueError, match="levels are 1 to 3, or 0 for all, got 4"):
        tiny_prior(kind, levels=4)
