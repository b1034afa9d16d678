from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from drawings import drawing, save_drawing
from pyratok.data.phrases import VERBS
from pyratok.data.scenes import (
    MAX_PICTURES,
    MIN_ACTION_FRAMES,
    CaptionedClip,
    Motion,
    ObjectTruth,
    Plain,
    Pose,
    Scene,
    SceneObject,
    perform,
    read_sprite,
    render,
)

FRAMES = 13
MIDDLE = Pose(x=0.5, y=0.5, size=0.4)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def act(verb: str, sprite: Path, rest: Pose = MIDDLE, seed: int = 0, frames: int = FRAMES) -> SceneObject:
    return SceneObject(noun="thing", sprite=sprite, verb=verb, motion=perform(verb, rest, sprite, frames, rng(seed)))


def shoot(*objects: SceneObject, size: int = 64, frames: int = FRAMES) -> CaptionedClip:
    return render(Scene(background=Plain(), background_seed=3, objects=objects, caption=""), frames, size)


def centres(truth: ObjectTruth) -> np.ndarray:
    """Centre of gravity (x, y) of every frame's mask, NaN where it is empty."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.array([[axis.mean() for axis in np.nonzero(mask)[::-1]] for mask in truth.masks])


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_drawing(tmp_path_factory.mktemp("sprites") / "square.png")


class TestActions:
    @pytest.mark.parametrize("verb", VERBS)
    @pytest.mark.parametrize("frames", [MIN_ACTION_FRAMES, 17, 33])
    def test_the_interval_holds_the_frames_that_change(self, verb: str, frames: int, square: Path) -> None:
        for seed in range(12):
            motion = act(verb, square, seed=seed, frames=frames).motion
            start, stop = motion.interval
            assert 0 <= start < stop <= frames
            changes = [t for t in range(1, frames) if motion.pose(t) != motion.pose(t - 1)]
            if verb == "stays":
                assert not changes
                continue
            assert start > 0, "frame 0 shows what was before"
            assert (changes[0], changes[-1]) == (start, stop - 1)
            assert verb == "bounces" or changes == list(range(start, stop)), "only a hop may pause, at its top"

    @pytest.mark.parametrize(("verb", "way"), [("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1))])
    def test_moving_goes_that_way_and_stays_in_sight(self, verb: str, way: tuple[int, int], square: Path) -> None:
        for seed in range(4):
            truth = shoot(act(f"moves {verb}", square, seed=seed)).objects[0]
            path = centres(truth)
            start, stop = truth.interval
            steps = np.diff(path[start - 1 : stop], axis=0) @ way
            assert (steps > 0).all()
            assert steps.sum() > 0.1 * 64
            assert abs((path[-1] - path[0]) @ way[::-1]) < 1
            areas = truth.masks.sum((1, 2))
            assert areas.min() > 0.9 * areas.max()

    @pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
    @pytest.mark.parametrize("what", ["enters from", "leaves to"])
    def test_coming_and_going_is_by_that_side(self, what: str, side: str, square: Path) -> None:
        for seed in range(4):
            truth = shoot(act(f"{what} the {side}", square, seed=seed)).objects[0]
            start, stop = truth.interval
            masks = truth.masks if what == "enters from" else truth.masks[::-1]
            if what == "leaves to":
                start, stop = FRAMES - stop + 1, FRAMES - start + 1
            areas = masks.sum((1, 2))
            assert not areas[:start].any()
            assert (areas[stop - 1 :] > 0.9 * areas.max()).all()
            assert (np.diff(areas[start - 1 : stop].astype(int)) > -0.05 * areas.max()).all()
            first = masks[np.flatnonzero(areas)[0]]
            edge = {"left": first[:, 0], "right": first[:, -1], "top": first[0], "bottom": first[-1]}[side]
            assert edge.any()

    @pytest.mark.parametrize(("verb", "sign"), [("grows", 1), ("shrinks", -1)])
    def test_size(self, verb: str, sign: int, square: Path) -> None:
        truth = shoot(act(verb, square)).objects[0]
        start, stop = truth.interval
        areas = truth.masks.sum((1, 2)).astype(int)
        assert (sign * np.diff(areas[start - 1 : stop]) >= 0).all()
        assert sign * math.log(areas[-1] / areas[0]) > math.log(2)
        assert areas.max() == pytest.approx((0.4 * 64) ** 2, rel=0.1)

    def test_turning_stays_in_place(self, square: Path) -> None:
        truth = shoot(act("turns", square)).objects[0]
        assert np.ptp(centres(truth), axis=0).max() < 1
        assert all((a != b).any() for a, b in zip(truth.masks[4:8], truth.masks[5:9], strict=True))

    def test_bouncing_goes_up_and_comes_back(self, square: Path) -> None:
        for seed in range(4):
            truth = shoot(act("bounces", square, seed=seed)).objects[0]
            height = centres(truth)[:, 1]
            assert height.argmin() in range(*truth.interval)
            assert height[0] - height.min() > 4
            assert height[-1] == pytest.approx(height[0], abs=0.5)
            assert height.max() < height[0] + 0.5

    @pytest.mark.parametrize("verb", ["appears", "disappears"])
    def test_fading(self, verb: str, square: Path) -> None:
        truth = shoot(act(verb, square)).objects[0]
        areas = truth.masks.sum((1, 2))
        before, after = (areas[0], areas[-1]) if verb == "appears" else (areas[-1], areas[0])
        assert before == 0
        assert after == areas.max() > 0
        steps = np.flatnonzero(np.abs(np.diff(areas.astype(int))) > 0.5 * areas.max())
        assert len(steps) == 1, "at half opacity"
        assert steps[0] + 1 in range(*truth.interval)

    def test_acting_takes_time(self, square: Path) -> None:
        with pytest.raises(ValueError, match="turns needs 5 frames, got 4"):
            act("turns", square, frames=4)

    def test_unknown_verbs(self, square: Path) -> None:
        with pytest.raises(ValueError, match="no object can do 'sings'"):
            act("sings", square)


class TestRendering:
    def test_masks_are_what_the_object_changes(self, square: Path) -> None:
        truth = shoot(act("moves left", square))
        empty = shoot()
        changed = (truth.video != empty.video).any(-1)
        mask = truth.objects[0].masks
        assert not (mask & ~changed).any()
        assert (changed & ~mask).sum() < 0.2 * mask.sum(), "an edge of half-covered pixels"
        assert truth.video.shape == (FRAMES, 64, 64, 3)
        assert mask.shape == (FRAMES, 64, 64)
        assert mask.dtype == bool

    def test_what_is_in_front_hides_what_is_behind(self, square: Path) -> None:
        behind, before = act("stays", square), act("stays", square, rest=replace(MIDDLE, x=0.6))
        alone = shoot(behind).objects[0].masks
        both = shoot(behind, before).objects
        assert not (both[0].masks & both[1].masks).any()
        assert 0 < both[0].masks.sum() < alone.sum()
        assert not (both[0].masks & ~alone).any()
        assert not shoot(behind, behind).objects[0].masks.any()

    def test_the_size_of_the_clip_does_not_change_the_scene(self, square: Path) -> None:
        item = act("enters from the left", square)
        small, large = (shoot(item, size=size).objects[0] for size in (32, 128))
        assert small.interval == large.interval
        shares = [truth.masks.mean((1, 2)) for truth in (small, large)]
        assert np.abs(shares[0] - shares[1]).max() < 0.04, "a row of pixels more or less"

    def test_upside_down_is_half_a_turn(self, tmp_path: Path) -> None:
        image = drawing(3)
        image[:20, :, :3] = 0
        cv2.imwrite(str(tmp_path / "s.png"), image)
        pose = replace(MIDDLE, angle=math.pi)
        upright, turned = (shoot(act("stays", tmp_path / "s.png", rest=p)).video[0, :, 32] for p in (MIDDLE, pose))
        assert upright[26].max() < 10 < turned[26].max()
        assert turned[38].max() < 10 < upright[38].max()

    def test_actions_lie_within_the_clip(self, square: Path) -> None:
        motion = Motion(interval=(3, 14), first=MIDDLE, last=MIDDLE)
        item = SceneObject(noun="disc", sprite=square, verb="turns", motion=motion)
        with pytest.raises(ValueError, match="disc turns in frames 3:14 of a clip of 13"):
            shoot(item)

    @pytest.mark.parametrize("size", [1, 2, 7])
    def test_tiny_clips(self, size: int, square: Path) -> None:
        assert shoot(act("turns", square), size=size).video.shape == (FRAMES, size, size, 3)


class TestReadSprite:
    def test_empty_borders_are_cut_off(self, square: Path) -> None:
        (picture,) = read_sprite(square)
        assert picture.shape == (32, 32, 4)
        assert (picture[..., 3] == 255).all()

    @pytest.mark.parametrize("suffix", ["png", "webp"])
    def test_animations_play(self, tmp_path: Path, suffix: str) -> None:
        if not hasattr(cv2, "imwriteanimation"):
            pytest.skip("this OpenCV is too old to know animations")
        animation = cv2.Animation()
        animation.frames = [drawing(3, colour=(0, 0, 10 * n)) for n in range(24)]
        animation.durations = [80] * 24
        path = tmp_path / f"a.{suffix}"
        cv2.imwriteanimation(str(path), animation)
        pictures = read_sprite(path)
        assert len(pictures) == MAX_PICTURES
        clip = shoot(replace(act("stays", path), first_picture=3)).video[:, 32, 32, 0]
        reds = np.array([20 * ((3 + t // 2) % MAX_PICTURES) for t in range(FRAMES)])
        assert np.abs(clip.astype(int) - reds).max() <= 6

    def test_what_cannot_be_seen_is_refused(self, tmp_path: Path) -> None:
        cv2.imwrite(str(tmp_path / "clear.png"), np.zeros((8, 8, 4), np.uint8))
        with pytest.raises(ValueError, match=r"clear.png: every pixel is transparent"):
            read_sprite(tmp_path / "clear.png")
        (tmp_path / "broken.png").write_bytes(b"no picture")
        with pytest.raises(ValueError, match=r"broken.png: not a readable colour image"):
            read_sprite(tmp_path / "broken.png")
