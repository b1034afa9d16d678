"""Clips stored as tokens: the same as tokenised at once, whatever befell the writing, each met once a round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from pyratok.data.captioned import CaptionedMix
from pyratok.data.datasets import to_signed
from pyratok.data.scenes import CaptionedClip, ObjectTruth
from pyratok.model.pyratok import PyraTok
from pyratok.quantization.bits import signs_to_ids
from pyratok.train import stored
from pyratok.train.stored import StoredClips, store_clips
from tiny import tiny_pyratok
from tiny_training import Noise

COUNT = 11
SETTINGS = {"size": 16}


class NamedNoise:
    """Waves with an object in a part of the frame that says which clip it is."""

    nouns = ("disc", "star")

    def sample_captioned(self, rng: np.random.Generator, frames: int, size: int) -> CaptionedClip:
        video, width = Noise().sample(rng, frames, size), int(rng.integers(1, size))
        noun = self.nouns[width % 2]
        masks = np.zeros(video.shape[:3], bool)
        masks[..., :width] = True
        truth = ObjectTruth(noun=noun, verb="stays", interval=(0, frames), masks=masks, seen=True)
        return CaptionedClip(video=video, caption=f"{noun} {rng.integers(2**31)}", objects=(truth,))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "SHARD", 4)
    monkeypatch.setattr(stored, "BATCH", 2)


@pytest.fixture
def model() -> PyraTok:
    return tiny_pyratok().eval()


def mix(length: int = COUNT, seed: int = 0) -> CaptionedMix:
    return CaptionedMix([NamedNoise()], [1.0], frames=5, size=16, length=length, stride=(4, 8, 8), seed=seed)


def store(model: PyraTok, folder: Path, clips: CaptionedMix | None = None, **options: object) -> list[Path]:
    return store_clips(model, clips or mix(), folder, SETTINGS, workers=0, bf16=False, **options)  # type: ignore[arg-type]


def content(shards: list[Path]) -> list[str]:
    """What shards hold; the order in which a file names it is free."""
    found = []
    for path in shards:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).tolist() for name in sorted(file.keys())}
            found.append(repr([sorted(file.metadata().items()), tensors]))
    return found


def test_a_stored_clip_is_the_clip(model: PyraTok, tmp_path: Path) -> None:
    clips = mix()
    kept = StoredClips(store(model, tmp_path), clips.nouns, length=COUNT)
    by_caption = {clips[i].caption: clips[i] for i in range(COUNT)}
    assert len(by_caption) == len(set(kept.captions)) == COUNT
    for i in range(COUNT):
        item = kept[i]
        clip = by_caption[item.caption]
        assert item.nouns == clip.nouns
        assert torch.allclose(item.masks, clip.masks, atol=1 / 255)
        signs = model.signs(to_signed(clip.video[None]), None)
        for ids, level in zip(item.levels, signs, strict=True):
            assert torch.equal(ids, signs_to_ids(level)[0])


def test_every_clip_is_met_once_a_round_in_another_order(model: PyraTok, tmp_path: Path) -> None:
    shards = store(model, tmp_path)
    kept = StoredClips(shards, (), length=3 * COUNT, seed=1)
    met = [kept[i].caption for i in range(3 * COUNT)]
    rounds = [met[i : i + COUNT] for i in range(0, 3 * COUNT, COUNT)]
    assert all(sorted(captions) == sorted(kept.captions) for captions in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    again = StoredClips(shards, (), length=3 * COUNT, seed=1)
    assert [again[i].caption for i in reversed(range(3 * COUNT))] == met[::-1]
    batch = kept.collate([kept[0], kept[1]])
    assert [len(ids) for ids in batch.levels] == [2] * model.num_levels
    assert batch.masks.shape[0] == len(batch.captions) == len(batch.nouns) == 2
    with pytest.raises(IndexError):
        kept[3 * COUNT]


def test_a_killed_run_goes_on_and_ends_with_the_same_shards(model: PyraTok, tmp_path: Path) -> None:
    whole = content(store(model, tmp_path / "whole"))
    drawn: list[int] = []

    class Counted(CaptionedMix):
        def __getitem__(self, index: int):  # type: ignore[no-untyped-def]
            drawn.append(index)
            return super().__getitem__(index)

    counted = Counted([NamedNoise()], [1.0], frames=5, size=16, length=COUNT, stride=(4, 8, 8))

    def killed(done: int, total: int) -> None:
        assert (done, total) == (1, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store(model, tmp_path / "killed", counted, on_shard=killed)
    drawn.clear()
    assert content(store(model, tmp_path / "killed", counted)) == whole
    assert min(drawn) == 4
    drawn.clear()
    store(model, tmp_path / "killed", counted)
    assert not drawn


def test_damaged_shards_are_made_anew_and_those_of_others_left_alone(model: PyraTok, tmp_path: Path) -> None:
    first = store(model, tmp_path)
    whole = content(first)
    first[1].write_bytes(first[1].read_bytes()[:-3])
    assert content(store(model, tmp_path)) == whole
    for clips, tokenizer in ((mix(seed=5), model), (mix(), tiny_pyratok(seed=3).eval())):
        assert not set(content(store(tokenizer, tmp_path, clips))) & set(whole)
    assert content(first) == whole
