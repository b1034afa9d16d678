"""Clips with several questions each: the first as asked alone, the others of other kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from drawings import save_drawing, save_photo
from pyratok.data.manifests import Entry
from pyratok.data.mixes import DataConfig
from pyratok.data.questioned import QuestionedMix, questioned_clips
from pyratok.data.questions import KINDS, QuestionedScenes
from pyratok.data.synthetic import CaptionedScenes, SceneConfig

NOUNS = "disc star cross ring lamp kite drum bell boat tower basket ladder".split()
FRAMES, SIZE = 13, 32


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> QuestionedScenes:
    folder = tmp_path_factory.mktemp("sprites")
    sprites = [Entry(path=save_drawing(folder / f"{noun}.png", kind), caption=noun) for kind, noun in enumerate(NOUNS)]
    return QuestionedScenes(CaptionedScenes(sprites, (), config=SceneConfig(nouns=tuple(NOUNS), sizes=(0.25, 0.5))))


def test_the_first_question_is_the_one_asked_alone_and_all_are_of_different_kinds(scenes: QuestionedScenes) -> None:
    counts = set()
    for seed in range(12):
        alone = scenes.sample_questioned(np.random.default_rng(seed), FRAMES, SIZE)
        clip, questions = scenes.sample_several(np.random.default_rng(seed), FRAMES, SIZE, most=3)
        assert questions[0] == alone.question
        assert np.array_equal(clip.video, alone.clip.video)
        assert len({question.kind for question in questions}) == len(questions) <= 3
        counts.add(len(questions))
    assert max(counts) == 3
    _, everything = scenes.sample_several(np.random.default_rng(0), FRAMES, SIZE, most=len(KINDS))
    assert len(everything) >= 3


def test_items_are_functions_of_seed_and_number(scenes: QuestionedScenes) -> None:
    def mix(seed: int = 0) -> QuestionedMix:
        return QuestionedMix(scenes, frames=FRAMES, size=SIZE, length=4, most=2, seed=seed)

    first, again = mix(), mix()
    items = [first[i] for i in range(4)]
    for i in reversed(range(4)):
        assert torch.equal(again[i].video, items[i].video)
        assert again[i].questions == items[i].questions
    assert not torch.equal(mix(seed=1)[0].video, items[0].video)
    batch = first.collate(items)
    assert batch.videos.shape == (4, 3, FRAMES, SIZE, SIZE)
    assert batch.questions == tuple(item.questions for item in items)
    assert first.nouns == tuple(sorted(NOUNS))
    with pytest.raises(IndexError):
        first[4]


def test_questions_need_sprites(tmp_path: Path) -> None:
    save_photo(tmp_path / "photo.png")
    with pytest.raises(ValueError, match="add sprites with captions"):
        questioned_clips(DataConfig(footage=0.0, photos=0.0), [tmp_path], tmp_path, frames=5, size=32, length=1, most=1)
