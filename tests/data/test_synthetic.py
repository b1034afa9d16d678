from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from drawings import save_clip, save_drawing, save_photo
from pyratok.data.captioned import (
    MAX_OBJECTS,
    CaptionedFootage,
    CaptionedItem,
    CaptionedMix,
    collate,
    names_sides,
    pool_masks,
)
from pyratok.data.datasets import MixedClips
from pyratok.data.frame_store import FrameStore
from pyratok.data.manifests import Entry, Media
from pyratok.data.scenes import CaptionedClip, ObjectTruth, Plain
from pyratok.data.synthetic import CaptionedScenes, SceneConfig, captioned_sources
from pyratok.data.words import NounIndex, is_unseen

FRAMES, SIZE = 13, 32
NOUNS = "disc star cross ring lamp kite drum bell boat tower basket ladder".split()
SEEN = [noun for noun in NOUNS if not is_unseen(noun)]
UNSEEN = [noun for noun in NOUNS if is_unseen(noun)]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def sprite_entries(folder: Path) -> list[Entry]:
    return [Entry(path=save_drawing(folder / f"{noun}.png", kind), caption=noun) for kind, noun in enumerate(NOUNS)]


def photo_entries(folder: Path) -> list[Entry]:
    return [Entry(path=save_photo(folder / f"p{seed}.jpg", seed), caption="a lawn") for seed in range(2)]


def scenes(folder: Path, **config: object) -> CaptionedScenes:
    return CaptionedScenes(sprite_entries(folder), photo_entries(folder), config=SceneConfig(**config))  # type: ignore[arg-type]


class TestCaptionedScenes:
    def test_a_clip_is_a_function_of_its_generator(self, tmp_path: Path) -> None:
        source = scenes(tmp_path)
        first = [source.sample_captioned(rng(seed), FRAMES, SIZE) for seed in range(8)]
        again = [scenes(tmp_path).sample_captioned(rng(seed), FRAMES, SIZE) for seed in reversed(range(8))]
        for a, b in zip(first, reversed(again), strict=True):
            assert a.caption == b.caption
            assert np.array_equal(a.video, b.video)
            assert all(np.array_equal(x.masks, y.masks) for x, y in zip(a.objects, b.objects, strict=True))
        assert len({clip.caption for clip in first}) == 8

    def test_nothing_happens_in_too_short_a_clip(self, tmp_path: Path) -> None:
        for seed in range(6):
            clip = scenes(tmp_path).sample_captioned(rng(seed), 4, SIZE)
            assert {truth.verb for truth in clip.objects} == {"stays"}
            assert {truth.interval for truth in clip.objects} == {(0, 4)}

    def test_captions_name_every_object(self, tmp_path: Path) -> None:
        source = scenes(tmp_path, objects=(2, 3))
        counts = set()
        for seed in range(20):
            scene = source.scene(rng(seed), FRAMES)
            assert all(item.noun in scene.caption for item in scene.objects)
            counts.add(len(scene.objects))
            assert len({item.noun for item in scene.objects}) == len(scene.objects)
        assert counts == {2, 3}

    def test_unseen_nouns_are_neither_shown_nor_named(self, tmp_path: Path) -> None:
        source = scenes(tmp_path)
        index = NounIndex(UNSEEN)
        shown = set()
        for seed in range(60):
            scene = source.scene(rng(seed), FRAMES)
            assert not index.named_in(scene.caption)
            shown |= {item.noun for item in scene.objects}
            assert all(item.seen and item.sprite.stem == item.noun for item in scene.objects)
        assert shown == set(SEEN)

    def test_unseen_nouns_can_be_asked_for(self, tmp_path: Path) -> None:
        clip = scenes(tmp_path, nouns="unseen").sample_captioned(rng(), FRAMES, SIZE)
        assert {truth.noun for truth in clip.objects} <= set(UNSEEN)
        assert not any(truth.seen for truth in clip.objects)

    def test_nouns_can_be_given(self, tmp_path: Path) -> None:
        source = scenes(tmp_path, nouns=(SEEN[0], UNSEEN[0]), objects=(2, 2))
        assert {item.noun for item in source.scene(rng(), FRAMES).objects} == {SEEN[0], UNSEEN[0]}
        exact = source.scene(rng(), FRAMES, nouns=NOUNS[:3])
        assert [item.noun for item in exact.objects] == NOUNS[:3]
        with pytest.raises(ValueError, match="no sprite shows 'unicorn'"):
            source.scene(rng(), FRAMES, nouns=["unicorn"])

    def test_one_noun_is_shown_once(self, tmp_path: Path) -> None:
        source = scenes(tmp_path, nouns=("disc",), objects=(3, 3))
        assert len(source.scene(rng(), FRAMES).objects) == 1

    def test_objects_do_not_name_one_another(self, tmp_path: Path) -> None:
        captions = [SEEN[0], next(text for n in range(99) if not is_unseen(text := f"{'x' * (n + 1)} {SEEN[0]}"))]
        sprites = [Entry(path=save_drawing(tmp_path / f"{n}.png"), caption=c) for n, c in enumerate(captions)]
        source = CaptionedScenes(sprites, config=SceneConfig(objects=(2, 2)))
        assert {len(source.scene(rng(seed), FRAMES).objects) for seed in range(4)} == {1}

    def test_sizes_and_verbs(self, tmp_path: Path) -> None:
        source = scenes(tmp_path, sizes=(0.4, 0.5), verbs=("stays", "turns"))
        items = [item for seed in range(20) for item in source.scene(rng(seed), FRAMES).objects]
        assert {item.verb for item in items} == {"stays", "turns"}
        assert all(0.4 <= item.motion.first.size <= 0.5 for item in items)

    def test_objects_keep_apart(self, tmp_path: Path) -> None:
        source = scenes(tmp_path, objects=(2, 2), sizes=(0.3, 0.3), verbs=("stays",))
        masks = [source.sample_captioned(rng(seed), 1, SIZE).objects for seed in range(30)]
        shares = [(objects[0].masks.sum() / (0.3 * SIZE) ** 2) for objects in masks]
        assert np.mean(np.array(shares) > 0.1) > 0.85

    def test_without_photographs_the_ground_is_plain(self, tmp_path: Path) -> None:
        source = CaptionedScenes(sprite_entries(tmp_path), config=SceneConfig(plain=0.0, setting=1.0))
        scene = source.scene(rng(), FRAMES)
        assert isinstance(scene.background, Plain)
        assert scene.caption.endswith("on a plain background")

    def test_photographs_of_unseen_things_are_no_background(self, tmp_path: Path) -> None:
        photos = [*photo_entries(tmp_path), Entry(path=tmp_path / "p0.jpg", caption=f"two {UNSEEN[0]}s")]
        source = CaptionedScenes(sprite_entries(tmp_path), photos)
        assert source.photos == photos[:2]

    def test_the_setting_is_told(self, tmp_path: Path) -> None:
        source = scenes(tmp_path, plain=0.0, setting=1.0)
        assert all(source.scene(rng(seed), FRAMES).caption.endswith("in front of a lawn") for seed in range(5))
        source = scenes(tmp_path, setting=0.0)
        assert not any("lawn" in source.scene(rng(seed), FRAMES).caption for seed in range(20))

    def test_broken_pictures_are_passed_over(self, tmp_path: Path) -> None:
        sprites = sprite_entries(tmp_path)
        (tmp_path / f"{SEEN[0]}.png").write_bytes(b"no picture")
        photos = [*photo_entries(tmp_path), Entry(path=tmp_path / "gone.jpg")]
        source = CaptionedScenes(sprites, photos)
        with pytest.warns(UserWarning, match="passed over: .*not a readable"):
            shown = {item.noun for seed in range(60) for item in source.scene(rng(seed), FRAMES).objects}
        assert shown == set(SEEN[1:])

    def test_a_source_like_the_others(self, tmp_path: Path) -> None:
        clips = MixedClips([scenes(tmp_path)], [1.0], frames=5, size=16, length=2)
        assert clips[0].shape == (3, 5, 16, 16)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"nouns": "all"}, "'seen', 'unseen' or a tuple"),
            ({"nouns": ("unicorn",)}, "no sprite shows unicorn"),
            ({"nouns": ()}, "no sprite with a caption"),
            ({"objects": (1, 4)}, "1 to 3 objects"),
            ({"sizes": (0.5, 1.5)}, "parts of the frame"),
            ({"verbs": ("sings",)}, r"unknown verbs \['sings'\]"),
            ({"plain": -1.0}, "cannot be negative"),
        ],
    )
    def test_settings_are_checked(self, tmp_path: Path, wrong: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            scenes(tmp_path, **wrong)

    def test_sprites_without_captions(self, tmp_path: Path) -> None:
        sprites = [replace(entry, caption="") for entry in sprite_entries(tmp_path)]
        with pytest.raises(ValueError, match="no sprite with a caption shows a noun of kind 'seen'"):
            CaptionedScenes(sprites)


class TestFootage:
    def media(self, folder: Path, *captions: str) -> Media:
        videos = [Entry(path=save_clip(folder / f"{n}.mp4", n), caption=text) for n, text in enumerate(captions)]
        return Media(videos=tuple(videos), photos=tuple(photo_entries(folder)), sprites=tuple(sprite_entries(folder)))

    def test_clips_carry_the_caption_of_their_video(self, tmp_path: Path) -> None:
        media = self.media(tmp_path, "a man walks", "rain")
        footage = CaptionedFootage(media.videos, FrameStore(tmp_path / "cache"))
        clips = [footage.sample_captioned(rng(seed), 5, SIZE) for seed in range(8)]
        assert {clip.caption for clip in clips} == {"a man walks", "rain"}
        assert all(clip.objects == () and clip.video.shape == (5, SIZE, SIZE, 3) for clip in clips)

    def test_left_stays_left(self, tmp_path: Path) -> None:
        assert names_sides("a man turns Left")
        assert not names_sides("a bright, cleft rock")
        media = self.media(tmp_path, "a car goes to the left")
        store = FrameStore(tmp_path / "cache")
        sided, free = (CaptionedFootage([replace(media.videos[0], caption=c)], store) for c in ("to the left", "a car"))
        clips = [[source.sample_captioned(rng(seed), 2, SIZE).video for seed in range(8)] for source in (sided, free)]
        mirrored = [np.array_equal(a[:, :, ::-1], b) for a, b in zip(*clips, strict=True)]
        same = [np.array_equal(a, b) for a, b in zip(*clips, strict=True)]
        assert any(mirrored)
        assert all(a != b for a, b in zip(mirrored, same, strict=True))

    def test_training_says_no_unseen_noun(self, tmp_path: Path) -> None:
        media = self.media(tmp_path, f"a {UNSEEN[0]} falls", "rain falls")
        config = SceneConfig(footage=1.0, photos=0.0, plain=0.0, setting=1.0)
        built, footage = captioned_sources(media, FrameStore(tmp_path / "cache"), config)
        assert built is not None
        assert footage is not None
        assert set(footage.captions.values()) == {"", "rain falls"}
        captions = [built.scene(rng(seed), FRAMES).caption for seed in range(12)]
        assert any(caption.endswith("while rain falls") for caption in captions)
        assert not any(UNSEEN[0] in caption for caption in captions)
        clip = built.sample_captioned(rng(), 5, SIZE)
        assert clip.video.shape == (5, SIZE, SIZE, 3)

    def test_training_shows_no_unseen_noun(self, tmp_path: Path) -> None:
        media = self.media(tmp_path)
        for nouns in ("unseen", (UNSEEN[0],)):
            with pytest.raises(ValueError, match=f"training is to show no unseen noun.* got .*{UNSEEN[0]}"):
                captioned_sources(media, FrameStore(tmp_path / "cache"), SceneConfig(nouns=nouns))

    def test_what_is_not_there(self, tmp_path: Path) -> None:
        empty = Media(videos=(), photos=(), sprites=())
        assert captioned_sources(empty, FrameStore(tmp_path / "cache"), SceneConfig()) == (None, None)


class Still:
    """One object, a square, in every clip."""

    def sample_captioned(self, rng: np.random.Generator, frames: int, size: int) -> CaptionedClip:
        video = rng.integers(0, 256, (frames, size, size, 3), dtype=np.uint8)
        masks = np.zeros((frames, size, size), bool)
        masks[0, :4, :4] = masks[2, :4, :4] = True
        truth = ObjectTruth(noun="disc", verb="stays", interval=(0, frames), masks=masks, seen=True)
        return CaptionedClip(video=video, caption="a disc", objects=(truth,))


class TestCaptionedMix:
    def mix(self, folder: Path, length: int = 6, seed: int = 0) -> CaptionedMix:
        shape = {"frames": 5, "size": SIZE, "length": length, "seed": seed}
        return CaptionedMix([scenes(folder), Still()], [1.0, 1.0], stride=(2, 8, 8), **shape)  # type: ignore[arg-type]

    def test_an_item_is_a_function_of_seed_and_index(self, tmp_path: Path) -> None:
        first, again = self.mix(tmp_path), self.mix(tmp_path, length=100)
        items, same = [first[i] for i in range(6)], [again[i] for i in reversed(range(6))][::-1]
        for a, b in zip(items, same, strict=True):
            assert (a.caption, a.nouns) == (b.caption, b.nouns)
            assert torch.equal(a.video, b.video)
            assert torch.equal(a.masks, b.masks)
        assert not torch.equal(items[0].video, self.mix(tmp_path, seed=1)[0].video)
        assert {item.nouns == ("disc", "", "") and item.caption == "a disc" for item in items} == {True, False}

    def test_shapes(self, tmp_path: Path) -> None:
        item = self.mix(tmp_path)[0]
        assert (item.video.shape, item.video.dtype) == ((3, 5, SIZE, SIZE), torch.uint8)
        assert (item.masks.shape, item.masks.dtype) == ((MAX_OBJECTS, 3, 4, 4), torch.float32)
        assert 0 <= float(item.masks.min()) <= float(item.masks.max()) <= 1

    def test_masks_are_pooled_causally(self) -> None:
        mix = CaptionedMix([Still()], [1.0], frames=5, size=16, length=1, stride=(4, 8, 8))
        item = mix[0]
        assert item.masks[0, :, 0, 0].tolist() == [0.25, 0.0625]
        assert float(item.masks.sum()) == 0.3125
        assert item.nouns == ("disc", "", "")

    def test_pooling_keeps_the_area(self) -> None:
        masks = torch.rand(2, 9, 16, 24) > 0.5
        pooled = pool_masks(masks, (4, 8, 4))
        assert pooled.shape == (2, 3, 2, 6)
        assert torch.allclose(pooled[:, 0].mean((1, 2)), masks[:, 0].float().mean((1, 2)))
        assert torch.allclose(pooled[:, 1:].mean((1, 2, 3)), masks[:, 1:].float().mean((1, 2, 3)))
        assert torch.equal(pool_masks(masks, (1, 1, 1)), masks.float())

    @pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
    def test_batches(self, tmp_path: Path, workers: int) -> None:
        mix = self.mix(tmp_path)
        loader: DataLoader[CaptionedItem] = DataLoader(mix, batch_size=3, collate_fn=collate, num_workers=workers)
        batches = list(loader)
        assert len(batches) == 2
        for start, batch in zip((0, 3), batches, strict=True):
            items = [mix[i] for i in range(start, start + 3)]
            assert torch.equal(batch.videos, torch.stack([item.video for item in items]))
            assert torch.equal(batch.masks, torch.stack([item.masks for item in items]))
            assert batch.captions == tuple(item.caption for item in items)
            assert batch.nouns == tuple(item.nouns for item in items)

    @pytest.mark.parametrize(("frames", "size"), [(6, 16), (5, 20)])
    def test_clips_must_lie_on_the_grid(self, frames: int, size: int) -> None:
        with pytest.raises(ValueError, match=f"clips of {frames}x{size}x{size} do not lie on a grid of stride"):
            CaptionedMix([Still()], [1.0], frames=frames, size=size, length=1, stride=(4, 8, 8))

    def test_settings_are_checked(self) -> None:
        build = functools.partial(CaptionedMix, frames=5, size=16, length=3, stride=(4, 8, 8))
        with pytest.raises(ValueError, match="nothing to draw captioned clips from"):
            build([], [])
        with pytest.raises(ValueError, match="need as many non-negative weights"):
            build([Still()], [0.0])
        with pytest.raises(IndexError, match="clip 3 of 3"):
            build([Still()], [1.0])[3]
