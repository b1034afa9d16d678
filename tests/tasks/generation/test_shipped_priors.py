"""The priors in the package: bound to the model they ship with, and what a prompt says is what comes."""

from __future__ import annotations

import pytest
import torch

from pyratok.data.video_io import load_video
from pyratok.metrics.reconstruction import psnr
from pyratok.model.pyratok import PyraTok
from pyratok.report.demo import sample_clip
from pyratok.tasks.generation.clips import continue_clip, generate_clip
from pyratok.tasks.generation.files import FOOTAGE, SHIPPED, find_prior, load_prior, shipped_prior
from pyratok.tasks.generation.prompts import example_prompts, unseen_words
from pyratok.tasks.generation.sampling import advised
from pyratok.tasks.generation.seam import join
from pyratok.types import Video

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> PyraTok:
    return PyraTok.from_pretrained()


KINDS = [kind for kind in SHIPPED if kind != FOOTAGE and shipped_prior(None, kind)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_decides_the_place(kind: str, model: PyraTok) -> None:
    """A purple sky over the sea, dry grass on the dune: which of both it is, colours say."""
    prior = load_prior(find_prior(kind), model.model_id)
    assert prior.config.kind == kind
    bluer = {}
    for place in ("the infinite sea", "the dune"):
        prompt = f"a red teapot moves to the left in front of {place}"
        tokens = generate_clip(model, prior, prompt, seed=3, **advised(prior.config))
        video = model.decode(tokens).plain()
        assert video.shape == (1, 3, 17, 64, 64)
        _, green, blue = video[0, :, :, 40:].mean(dim=(1, 2, 3))
        bluer[place] = float(blue - green)
    assert bluer["the infinite sea"] > bluer["the dune"] + 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_example_prompts_are_of_words_it_has_read(kind: str, model: PyraTok) -> None:
    prompts = example_prompts(find_prior(kind))
    assert prompts
    assert [unseen_words(find_prior(kind), prompt) for prompt in prompts] == [[]] * len(prompts)
    assert unseen_words(find_prior(kind), "a red kangaroo") == ["kangaroo"]


def test_the_default_is_there() -> None:
    assert KINDS[0] == SHIPPED[0]


def test_a_seed_brings_a_clip_back(model: PyraTok) -> None:
    prior = load_prior(find_prior(None), model.model_id)
    first, again, other = (generate_clip(model, prior, "a white glove", seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first.levels[0], again.levels[0])
    assert not torch.equal(first.levels[0], other.levels[0])


def test_the_one_of_footage_goes_on_with_what_it_is_shown(model: PyraTok) -> None:
    """A still picture stays what it is, and no caption is taken."""
    prior = load_prior(find_prior(None, default=FOOTAGE), model.model_id)
    assert find_prior(FOOTAGE) == find_prior(None, default=FOOTAGE) != find_prior(None)
    clip = load_video(sample_clip(), size=64, crop=64, frames=17)
    still = Video(clip.plain()[:, :, :1].expand(-1, -1, 9, -1, -1).contiguous(), clip.fps)
    tokens = continue_clip(model, prior, still, temperature=0.8)
    assert tokens.geometry.frames == 17
    video = join(still.plain(), model.decode(tokens))
    assert psnr(video[:, :, 9:], still.plain()[:, :, :8]).item() > 25
    with pytest.raises(ValueError, match="without captions"):
        generate_clip(model, prior, "a red teapot")
