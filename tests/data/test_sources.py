from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from pyratok.data import frame_store as frame_store_module
from pyratok.data.frame_store import FrameStore
from pyratok.data.sources import (
    MAX_PHOTO_SIDE,
    ClipSource,
    Footage,
    PhotoPaths,
    Sprites,
    photo_pyramid,
    read_rgba,
    textured_corner,
)
from pyratok.data.video_io import VideoError, iter_frames, save_video

FRAMES, SIZE = 5, 16


def save_clip(path: Path, frames: int = 12, height: int = 48, width: int = 64, seed: int = 0) -> Path:
    """Coarse random blocks that drift, as a video file."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.rand(3, 1, 20, 20, generator=generator).repeat_interleave(16, 2).repeat_interleave(16, 3) * 2 - 1
    shifts = [blocks[..., t : t + height, t : t + width] for t in range(frames)]
    save_video(torch.cat(shifts, dim=1).unsqueeze(0), path, fps=25.0)
    return path


def save_image(path: Path, height: int = 80, width: int = 120, channels: int = 3, seed: int = 0) -> Path:
    image = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, channels), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC))
    return path


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def footage(folder: Path) -> Footage:
    videos = [save_clip(folder / "a.mp4"), save_clip(folder / "b.mp4", frames=3, seed=1)]
    return Footage(videos, FrameStore(folder / "cache"))


def photo_paths(folder: Path) -> PhotoPaths:
    return PhotoPaths([save_image(folder / "a.png"), save_image(folder / "b.png", 40, 30, seed=1)])


def sprites(folder: Path) -> Sprites:
    return Sprites([save_image(folder / f"s{n}.png", 20, 30, 4, seed=n) for n in range(2)], photo_paths(folder))


@pytest.mark.parametrize("build", [footage, photo_paths, sprites])
class TestEverySource:
    def test_a_clip_is_a_function_of_its_generator(self, build: Callable[[Path], ClipSource], tmp_path: Path) -> None:
        source = build(tmp_path)
        first = [source.sample(rng(seed), FRAMES, SIZE) for seed in range(12)]
        again = [source.sample(rng(seed), FRAMES, SIZE) for seed in reversed(range(12))]
        for clip, same in zip(first, reversed(again), strict=True):
            assert clip.shape == (FRAMES, SIZE, SIZE, 3)
            assert clip.dtype == np.uint8
            assert np.array_equal(clip, same)
        assert len({clip.tobytes() for clip in first}) > 6

    @pytest.mark.parametrize(("frames", "size"), [(1, 16), (33, 8), (2, 100)])
    def test_any_length_and_size(
        self, build: Callable[[Path], ClipSource], tmp_path: Path, frames: int, size: int
    ) -> None:
        source = build(tmp_path)
        for seed in range(3):
            assert source.sample(rng(seed), frames, size).shape == (frames, size, size, 3)


class TestFootage:
    def test_crops_show_the_video(self, tmp_path: Path) -> None:
        """At native scale every frame of a clip is cut out of one of the video's, in their order."""
        video = save_clip(tmp_path / "a.mp4")
        source = Footage([video], FrameStore(tmp_path / "cache"), zoom_range=(1.0, 1.0))
        whole = np.stack([frame for _, frame in iter_frames(video)])
        windows = np.lib.stride_tricks.sliding_window_view(whole, (SIZE, SIZE), axis=(1, 2))
        for seed in range(6):
            clip = source.sample(rng(seed), 2, SIZE)
            either = (clip, clip[:, :, ::-1])
            assert any((windows == c[0].transpose(2, 0, 1)).all(axis=(3, 4, 5)).any() for c in either)

    def test_long_videos_do_not_drown_short_ones(self, tmp_path: Path) -> None:
        videos = [save_clip(tmp_path / "long.mp4", 36, 16, 16), save_clip(tmp_path / "short.mp4", 4, 16, 16)]
        weights = Footage(videos, FrameStore(tmp_path / "cache")).weights
        assert weights.sum() == pytest.approx(1)
        assert weights[0] / weights[1] == pytest.approx(3)

    def test_broken_videos_are_left_out_and_reported(self, tmp_path: Path) -> None:
        good = [save_clip(tmp_path / f"good{n}.mp4", 3, 16, 16, seed=n) for n in range(3)]
        text, cut = tmp_path / "text.mp4", tmp_path / "cut.mp4"
        text.write_text("no video")
        cut.write_bytes(good[0].read_bytes()[:300])
        with pytest.warns(UserWarning, match="left out: 2 of 5 videos cannot be used") as seen:
            source = Footage([good[0], text, *good[1:], cut], FrameStore(tmp_path / "cache"))
        message = str(seen[0].message)
        assert f"{text}: a text file" in message
        assert message.count(str(cut)) == 1
        assert source.videos == good
        assert source.sample(rng(), FRAMES, SIZE).shape == (FRAMES, SIZE, SIZE, 3)
        assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".npy"] * 3

    def test_a_video_without_pictures_is_broken(self, tmp_path: Path) -> None:
        """Sound alone, no byte at all, a folder, a link that leads to itself."""
        sound, empty, folder, loop = (tmp_path / f"{name}.mp4" for name in ("sound", "empty", "folder", "loop"))
        with av.open(str(sound), "w") as container:
            stream = container.add_stream("aac", rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
            frame.rate = 16000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        empty.touch()
        folder.mkdir()
        loop.symlink_to(loop)
        good = [save_clip(tmp_path / f"good{n}.mp4", 3, 16, 16, seed=n) for n in range(4)]
        with pytest.warns(UserWarning, match="left out: 4 of 8 videos cannot be used") as seen:
            source = Footage([sound, empty, folder, loop, *good], FrameStore(tmp_path / "cache"))
        causes = dict(line.strip().split(": ", 1) for line in str(seen[0].message).splitlines()[1:])
        assert "video" in causes[str(sound)]
        assert "empty" in causes[str(empty)]
        assert causes[str(folder)] == "is a folder"
        assert "symbolic links" in causes[str(loop)]
        assert source.videos == good

    def test_names_may_be_long_or_no_text(self, tmp_path: Path) -> None:
        clip = save_clip(tmp_path / "a.mp4", 3, 16, 16)
        for name in (b"n" * 251 + b".mp4", b"\xff\xfe.mp4"):
            video = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))  # noqa: PTH118
            video.write_bytes(clip.read_bytes())
            assert Footage([video], FrameStore(tmp_path / "cache")).sample(rng(), 2, 8).shape == (2, 8, 8, 3)

    def test_more_broken_than_sound_is_an_error(self, tmp_path: Path) -> None:
        gone = [tmp_path / "gone.mp4", tmp_path / "lost.mp4"]
        with pytest.raises(ValueError, match=r"2 of 3 videos cannot be used:\n  .*gone.mp4: no such file"):
            Footage([save_clip(tmp_path / "a.mp4", 2, 16, 16), *gone], FrameStore(tmp_path / "cache"))
        with pytest.raises(ValueError, match="no videos to sample from"):
            Footage([], FrameStore(tmp_path / "cache"))


class TestPhotoPaths:
    def test_large_photographs_are_read_smaller(self, tmp_path: Path) -> None:
        levels = photo_pyramid(save_image(tmp_path / "a.jpg", MAX_PHOTO_SIDE // 2, 2 * MAX_PHOTO_SIDE))
        assert levels[0].shape == (MAX_PHOTO_SIDE // 4, MAX_PHOTO_SIDE, 3)
        for level, half in pairwise(levels):
            assert half.shape[:2] == tuple(side // 2 for side in level.shape[:2])
        assert 64 <= min(levels[-1].shape[:2]) < 128

    def test_colours_are_red_green_blue(self, tmp_path: Path) -> None:
        image = np.zeros((80, 80, 3), np.uint8)
        image[..., 2] = 200  # OpenCV stores blue first
        cv2.imwrite(str(tmp_path / "a.png"), image)
        clip = PhotoPaths([tmp_path / "a.png"]).sample(rng(), 2, SIZE)
        assert np.array_equal(np.unique(clip.reshape(-1, 3), axis=0), [[200, 0, 0]])

    def test_the_camera_moves_smoothly(self, tmp_path: Path) -> None:
        source = PhotoPaths([save_image(tmp_path / "a.png", 300, 400)])
        near, far = [], []
        for seed in range(8):
            clip = source.sample(rng(seed), 17, 32).astype(float)
            near.append(np.abs(clip[1:] - clip[:-1]).mean())
            far.append(np.abs(clip[0] - clip[-1]).mean())
        assert 0 < np.mean(near) < 0.5 * np.mean(far)

    def test_a_single_pixel_is_a_photograph(self, tmp_path: Path) -> None:
        cv2.imwrite(str(tmp_path / "a.png"), np.full((1, 1, 3), 77, np.uint8))
        assert (PhotoPaths([tmp_path / "a.png"]).sample(rng(), 3, SIZE) == 77).all()

    def test_unreadable_ones_are_passed_over(self, tmp_path: Path) -> None:
        broken = tmp_path / "broken.jpg"
        broken.write_bytes(b"no photograph")
        source = PhotoPaths([broken, save_image(tmp_path / "a.png")])
        with pytest.warns(UserWarning, match=r"passed over: .*broken.jpg: not a readable image"):
            clips = [source.sample(rng(seed), 1, SIZE) for seed in range(8)]
        assert len(clips) == 8

    @pytest.mark.filterwarnings("ignore:passed over")
    def test_one_readable_among_many_is_found(self, tmp_path: Path) -> None:
        broken = [tmp_path / f"{number}.jpg" for number in range(40)]
        for path in broken:
            path.write_bytes(b"no photograph")
        source = PhotoPaths([*broken, save_image(tmp_path / "a.png")])
        assert source.sample(rng(), 1, SIZE).std() > 0
        with pytest.raises(ValueError, match=r"none of 40 images can be read, the last of them .*\.jpg"):
            PhotoPaths(broken).sample(rng(), 1, SIZE)

    @pytest.mark.filterwarnings("ignore:passed over")
    def test_what_opencv_refuses_with_an_error_of_its_own_is_passed_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*arguments: object) -> None:
            raise cv2.error("too many pixels")

        monkeypatch.setattr(cv2, "imread", refuse)
        with pytest.raises(ValueError, match="none of 1 images"):
            PhotoPaths([tmp_path / "a.png"]).sample(rng(), 1, SIZE)


class Grey:
    """A still, grey background."""

    def sample(self, rng: np.random.Generator, frames: int, size: int) -> np.ndarray:
        return np.full((frames, size, size, 3), 100, np.uint8)


def save_sprite(path: Path, alpha: int | np.ndarray, colour: tuple[int, int, int] = (10, 20, 200)) -> Path:
    """A square of one colour, given as blue, green, red."""
    image = np.empty((40, 40, 4), np.uint8)
    image[..., :3], image[..., 3] = colour, alpha
    cv2.imwrite(str(path), image)
    return path


class TestSprites:
    def colours(self, path: Path, seeds: int = 6) -> np.ndarray:
        source = Sprites([path], Grey())
        clips = [source.sample(rng(seed), FRAMES, 32) for seed in range(seeds)]
        return np.unique(np.concatenate(clips).reshape(-1, 3), axis=0)

    def test_an_opaque_one_covers_what_is_behind(self, tmp_path: Path) -> None:
        source = Sprites([save_sprite(tmp_path / "s.png", 255)], Grey())
        covered = [(source.sample(rng(seed), FRAMES, 32) == (200, 20, 10)).all(-1).mean() for seed in range(8)]
        assert np.mean(covered) > 0.05
        bare = [(source.sample(rng(seed), FRAMES, 32) == 100).all(-1).mean() for seed in range(8)]
        assert np.mean(bare) > 0.05

    def test_an_invisible_one_changes_nothing(self, tmp_path: Path) -> None:
        assert self.colours(save_sprite(tmp_path / "s.png", 0)).tolist() == [[100, 100, 100]]

    def test_a_half_transparent_one_mixes(self, tmp_path: Path) -> None:
        colours = self.colours(save_sprite(tmp_path / "s.png", 128)).astype(int)
        # One layer of (200, 20, 10) over 100: half of each; further layers go on in that direction.
        assert [np.abs(colours - (150, 60, 55)).max(axis=1).min()] <= [1]
        assert (colours[:, 0] >= 99).all()
        assert (colours[:, 1:] <= 100).all()

    def test_hidden_colours_do_not_shine_through_at_the_edge(self, tmp_path: Path) -> None:
        """White below alpha 0 beside black below alpha 255 must not leave a white fringe on grey."""
        image = np.full((40, 40, 4), 255, np.uint8)
        image[..., 3] = 0
        image[10:30, 10:30] = (0, 0, 0, 255)
        cv2.imwrite(str(tmp_path / "s.png"), image)
        assert self.colours(tmp_path / "s.png").max() <= 100

    def test_sixteen_bits_become_eight(self, tmp_path: Path) -> None:
        eight = read_rgba(save_sprite(tmp_path / "8.png", 128))
        stored = np.array(cv2.imread(str(tmp_path / "8.png"), cv2.IMREAD_UNCHANGED))
        cv2.imwrite(str(tmp_path / "16.png"), stored.astype(np.uint16) * 257)
        sixteen = read_rgba(tmp_path / "16.png")
        assert sixteen.dtype == np.uint8
        assert np.array_equal(sixteen, eight)
        assert eight[0, 0].tolist() == [200 * 128 // 255, 20 * 128 // 255, 10 * 128 // 255, 128]

    @pytest.mark.parametrize("shape", [(1, 300), (300, 1), (1, 1)])
    def test_thin_ones(self, tmp_path: Path, shape: tuple[int, int]) -> None:
        cv2.imwrite(str(tmp_path / "s.png"), np.full((*shape, 4), 255, np.uint8))
        source = Sprites([tmp_path / "s.png"], Grey())
        for seed in range(4):
            assert source.sample(rng(seed), 2, SIZE).shape == (2, SIZE, SIZE, 3)


def test_the_corner_with_contrast_is_preferred() -> None:
    image = np.zeros((64, 256, 3), np.uint8)
    image[:, 192:] = rng().integers(0, 256, (64, 64, 3), dtype=np.uint8)
    lefts = np.array([textured_corner(image, 64, rng(seed))[1] for seed in range(200)])
    assert (lefts > 128).mean() > 0.55, "three random corners in four, the best of three"
    assert textured_corner(image, 64, rng())[0] == 0


class TestFrameStore:
    def test_holds_what_the_video_shows(self, tmp_path: Path) -> None:
        video = save_clip(tmp_path / "a.mp4")
        frames = FrameStore(tmp_path / "cache").frames(video)
        assert np.array_equal(frames, np.stack([frame for _, frame in iter_frames(video)]))
        assert not frames.flags.writeable

    def test_large_frames_are_shrunk(self, tmp_path: Path) -> None:
        video = save_clip(tmp_path / "a.mp4", 2, 48, 64)
        assert FrameStore(tmp_path / "cache", max_side=24).frames(video).shape == (2, 24, 32, 3)
        assert FrameStore(tmp_path / "cache").frames(video).shape == (2, 48, 64, 3)

    def test_decodes_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        video = save_clip(tmp_path / "a.mp4", 2, 16, 16)
        first = FrameStore(tmp_path / "cache").frames(video)
        monkeypatch.setattr(frame_store_module, "iter_frames", lambda path: pytest.fail("decoded again"))
        assert np.array_equal(FrameStore(tmp_path / "cache").frames(video), first)

    def test_a_changed_file_is_decoded_again(self, tmp_path: Path) -> None:
        video = save_clip(tmp_path / "a.mp4", 2, 16, 16)
        assert len(FrameStore(tmp_path / "cache").frames(video)) == 2
        save_clip(video, 5, 16, 16)
        assert len(FrameStore(tmp_path / "cache").frames(video)) == 5

    def test_videos_of_one_name_are_kept_apart(self, tmp_path: Path) -> None:
        (tmp_path / "x").mkdir()
        videos = [save_clip(tmp_path / "a.mp4", 2, 16, 16), save_clip(tmp_path / "x" / "a.mp4", 3, 16, 16)]
        store = FrameStore(tmp_path / "cache")
        assert [len(store.frames(video)) for video in videos] == [2, 3]

    @pytest.mark.parametrize("keep", [0, 5, 200])
    def test_a_damaged_cache_is_made_again(self, tmp_path: Path, keep: int) -> None:
        video = save_clip(tmp_path / "a.mp4", 2, 16, 16)
        store = FrameStore(tmp_path / "cache")
        whole = np.array(store.frames(video))
        path = store.path_of(video)
        path.write_bytes(path.read_bytes()[:keep])
        assert np.array_equal(FrameStore(tmp_path / "cache").frames(video), whole)

    def test_damage_in_the_middle_leaves_nothing_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        video = save_clip(tmp_path / "a.mp4", 3, 16, 16)

        def break_off(path: Path) -> object:
            yield next(iter_frames(path))
            raise VideoError(f"{path}: damaged")

        monkeypatch.setattr(frame_store_module, "iter_frames", break_off)
        with pytest.raises(VideoError, match="damaged"):
            FrameStore(tmp_path / "cache").frames(video)
        assert not list((tmp_path / "cache").iterdir())

    def test_travels_to_another_process_without_the_frames(self, tmp_path: Path) -> None:
        video = save_clip(tmp_path / "a.mp4", 2, 16, 16)
        store = FrameStore(tmp_path / "cache")
        frames = store.frames(video)
        sent = pickle.dumps(store)
        assert len(sent) < 1000
        assert np.array_equal(pickle.loads(sent).frames(video), frames)
