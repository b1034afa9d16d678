"""continue and inpaint with a tiny tokenizer and tiny priors on disk, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asked_priors import KINDS, Command, interrupt_after, numbers, prior_of
from fakes import moving_video
from pyratok.codec.container import load_tokens
from pyratok.data.video_io import load_video, probe, save_video
from pyratok.model.pyratok import PyraTok
from pyratok.tasks.generation.clips import continue_clip, fit_clip, inpaint_clip, load_region
from pyratok.tasks.generation.files import load_prior, save_prior
from pyratok.tasks.generation.sampling import advised
from pyratok.tasks.generation.seam import join, paste
from pyratok.types import Video


class TestContinue:
    @pytest.mark.parametrize("kind", KINDS)
    def test_goes_on_behind_what_is_given(
        self, kind: str, model: PyraTok, small: Path, tmp_path: Path, pyratok: Command
    ) -> None:
        folder = tmp_path / kind
        save_prior(prior_of(model, kind), folder)
        command = ["continue", small, "--prior", folder, "--caption", "a ball", "--steps", 2]
        assert pyratok(*command, "-o", tmp_path / "x.pyra", "--json", tmp_path / "x.json") == 0
        found, begun = load_tokens(tmp_path / "x.pyra"), model.encode(load_video(small))
        assert (found.geometry.frames, found.geometry.fps) == (9, 12.0)
        assert found.time_slice(0, 2) == begun
        assert numbers(tmp_path / "x.json")["given"] == 5
        loaded = load_prior(folder)
        wanted = continue_clip(
            model, loaded, load_video(small), caption="a ball", **advised(loaded.config) | {"steps": 2}
        )
        assert found == wanted
        assert pyratok(*command, "-o", tmp_path / "x.mp4", "--given", 4, "--json", tmp_path / "y.json") == 0
        assert probe(tmp_path / "x.mp4").frames == 9
        assert numbers(tmp_path / "y.json")["given"] == 1

    def test_the_pixels_given_stay_unless_tokens_alone_are_asked_for(
        self, model: PyraTok, prior: Path, small: Path, tmp_path: Path, pyratok: Command
    ) -> None:
        command = ["continue", small, "--prior", prior, "-o"]
        assert pyratok(*command, tmp_path / "x.pyra") == 0
        assert pyratok(*command, tmp_path / "joined.mp4") == 0
        assert pyratok(*command, tmp_path / "tokens.mp4", "--no-join") == 0
        decoded = model.decode(load_tokens(tmp_path / "x.pyra"))
        for name, wanted in (("joined", join(load_video(small).plain(), decoded)), ("tokens", decoded.plain())):
            save_video(Video(wanted, decoded.fps), tmp_path / "wanted.mp4")
            assert torch.equal(load_video(tmp_path / f"{name}.mp4"), load_video(tmp_path / "wanted.mp4")), name
        assert not torch.equal(load_video(tmp_path / "joined.mp4"), load_video(tmp_path / "tokens.mp4"))

    def test_the_mean_of_several(
        self,
        model: PyraTok,
        prior: Path,
        small: Path,
        tmp_path: Path,
        pyratok: Command,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        command = ["continue", small, "--prior", prior, "--no-join", "--seed", 2]
        assert pyratok(*command, "--mean", 3, "-o", tmp_path / "mean.mp4") == 0
        tokens = continue_clip(model, load_prior(prior), load_video(small), count=3, seed=2, temperature=1.0)
        wanted = Video(model.decode(tokens).plain().mean(0, keepdim=True), 12.0)
        save_video(wanted, tmp_path / "wanted.mp4")
        assert torch.equal(load_video(tmp_path / "mean.mp4"), load_video(tmp_path / "wanted.mp4"))
        for options in (["--count", 2, "-o", tmp_path / "x.mp4"], ["-o", tmp_path / "x.pyra"]):
            assert pyratok(*command, "--mean", 3, *options) == 2
            assert "--mean shows one video of several" in capsys.readouterr().err

    def test_a_larger_video_is_scaled_and_cut(self, model: PyraTok, prior: Path, clip: Path, tmp_path: Path) -> None:
        config = load_prior(prior).config
        found = fit_clip(clip, config, 5)
        assert found.shape == (1, 3, 5, 16, 16)
        assert torch.equal(found, load_video(clip, size=16, crop=16, frames=5))
        tall = fit_clip(clip, replace(config, height=48, width=16), 5)
        assert torch.equal(tall, load_video(clip, crop=(48, 16), frames=5))
        wide = fit_clip(clip, replace(config, height=16, width=64), 5)
        assert torch.equal(wide, load_video(clip, crop=(16, 64), frames=5))

    def test_an_image_begins_a_video(self, prior: Path, image: Path, tmp_path: Path, pyratok: Command) -> None:
        assert pyratok("continue", image, "-o", tmp_path / "x.mp4", "--prior", prior, "--frames", 5) == 0
        assert (probe(tmp_path / "x.mp4").frames, probe(tmp_path / "x.mp4").fps) == (5, 25)

    def test_interrupted(
        self,
        prior: Path,
        small: Path,
        tmp_path: Path,
        pyratok: Command,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """What was given is nothing new: that alone is not written."""
        interrupt_after(10, monkeypatch)
        assert pyratok("continue", small, "-o", tmp_path / "x.mp4", "--prior", prior) == 130
        assert not (tmp_path / "x.mp4").exists()
        interrupt_after(30, monkeypatch)
        assert pyratok("continue", small, "-o", tmp_path / "y.mp4", "--prior", prior, "--given", 1) == 130
        assert probe(tmp_path / "y.mp4").frames == 5
        assert "the first 5 frames, which were final" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--caption", ""], "the prompt is empty"),
            (["--given", 9], "9 frames are to be there in all and 9 are given"),
            (["--given", 10], "has more than the 9 frames of the longest clips"),
            (["--frames", 17], "clips of up to 9 frames of 16x16, asked for 17"),
            (["-o", "clip.mp4"], "is the input itself"),
        ],
    )
    def test_refused(
        self,
        options: list[Any],
        message: str,
        prior: Path,
        tmp_path: Path,
        pyratok: Command,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        save_video(moving_video(frames=12), tmp_path / "clip.mp4")
        assert pyratok("continue", "clip.mp4", "-o", "x.mp4", "--prior", prior, *options) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "x.mp4").exists()


class TestInpaint:
    @pytest.fixture
    def right(self, tmp_path: Path) -> Path:
        """White on the right half."""
        path = tmp_path / "right.png"
        save_video(half(1), path)
        return path

    @pytest.mark.parametrize("kind", KINDS)
    def test_only_what_the_mask_touches_is_made_anew(
        self, kind: str, model: PyraTok, small: Path, right: Path, tmp_path: Path, pyratok: Command
    ) -> None:
        folder = tmp_path / kind
        save_prior(prior_of(model, kind), folder)
        command = ["inpaint", small, "--mask", right, "--prior", folder, "--steps", 2]
        assert pyratok(*command, "-o", tmp_path / "x.pyra", "--json", tmp_path / "x.json") == 0
        found, given = load_tokens(tmp_path / "x.pyra"), model.encode(load_video(small))
        assert numbers(tmp_path / "x.json")["made_anew"] == 0.5
        assert found.geometry == given.geometry
        for ids, before in zip(found.levels[1:], given.levels[1:], strict=True):
            assert torch.equal(ids[..., :1], before[..., :1])
            assert not torch.equal(ids[..., 1:], before[..., 1:])
        region = load_region(right, small, load_prior(folder).config, 5)
        assert inpaint_clip(model, load_prior(folder), load_video(small), region, steps=2, temperature=0.8) == found
        assert pyratok(*command, "-o", tmp_path / "x.mp4", "--count", 2) == 0
        assert [probe(tmp_path / f"x-{number}.mp4").frames for number in (1, 2)] == [5, 5]

    def test_the_pixels_that_the_mask_does_not_touch_stay(
        self, model: PyraTok, prior: Path, small: Path, tmp_path: Path, pyratok: Command
    ) -> None:
        corner = torch.full((1, 3, 1, 16, 16), -1.0)
        corner[..., :4, :4] = 1.0
        save_video(corner, tmp_path / "corner.png")
        command = ["inpaint", small, "--mask", tmp_path / "corner.png", "--prior", prior, "-o"]
        assert pyratok(*command, tmp_path / "x.pyra") == 0
        assert pyratok(*command, tmp_path / "joined.mp4") == 0
        assert pyratok(*command, tmp_path / "tokens.mp4", "--no-join") == 0
        decoded, region = model.decode(load_tokens(tmp_path / "x.pyra")), corner[0, 0].expand(5, -1, -1) > 0
        wanted = {"joined": paste(load_video(small).plain(), region, decoded), "tokens": decoded.plain()}
        for name, video in wanted.items():
            save_video(Video(video, decoded.fps), tmp_path / "wanted.mp4")
            assert torch.equal(load_video(tmp_path / f"{name}.mp4"), load_video(tmp_path / "wanted.mp4")), name

    @pytest.mark.parametrize("height", [16, 48])
    def test_masks_of_every_kind_say_the_same(self, height: int, model: PyraTok, clip: Path, tmp_path: Path) -> None:
        """Of the size of the video, 48x64, or of that of the prior, 16x16; of the video's 16 columns are cut off."""
        width = 64 if height == 48 else 16
        config = prior_of(model).config
        picture = half(9, height, width)
        save_video(picture[:, :, :1], tmp_path / "m.png")
        save_video(picture, tmp_path / "m.mp4", fps=12.0)
        array = picture.plain()[0, 0].numpy() > 0
        np.save(tmp_path / "one.npy", array[0].astype(np.uint8))
        np.save(tmp_path / "all.npy", array)
        wanted = torch.zeros(9, 16, 16, dtype=torch.bool)
        wanted[..., 8:] = True
        for name in ("m.png", "m.mp4", "one.npy", "all.npy"):
            assert torch.equal(load_region(tmp_path / name, clip, config, 9), wanted), name

    @pytest.mark.parametrize(
        ("mask", "options", "message"),
        [
            (np.zeros((16, 16), bool), [], "shows nothing to be made anew"),
            (np.ones((8, 8), bool), [], "is 8x8 (height x width); masks of this video are 16x16"),
            (np.ones((3, 16, 16), bool), [], "has 3 frames, the clip 5"),
            (np.ones(16, bool), [], "a mask is an array [H, W] or [T, H, W]"),
            (b"damage", [], "no NumPy array"),
            (np.ones((16, 16), bool), ["--caption", " "], "the prompt is empty"),
            (np.ones((16, 16), bool), ["-o", "mask.npy"], "is the input itself"),
        ],
    )
    def test_refused(
        self,
        mask: Any,
        options: list[Any],
        message: str,
        prior: Path,
        small: Path,
        tmp_path: Path,
        pyratok: Command,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        path = tmp_path / "mask.npy"
        if isinstance(mask, bytes):
            path.write_bytes(mask)
        else:
            np.save(path, mask)
        assert pyratok("inpaint", small, "--mask", path, "-o", "x.mp4", "--prior", prior, *options) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "x.mp4").exists()

    def test_longer_videos_are_cut_when_asked_for(
        self, prior: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
    ) -> None:
        save_video(moving_video(frames=12, height=16, width=16), tmp_path / "long.mp4")
        np.save(tmp_path / "mask.npy", np.ones((16, 16), bool))
        command = ["inpaint", tmp_path / "long.mp4", "--mask", tmp_path / "mask.npy", "--prior", prior, "-o"]
        assert pyratok(*command, tmp_path / "x.mp4") == 2
        assert "more than the 9 frames" in capsys.readouterr().err
        assert pyratok(*command, tmp_path / "x.mp4", "--frames", 9) == 0
        assert probe(tmp_path / "x.mp4").frames == 9


def half(frames: int, height: int = 16, width: int = 16) -> Video:
    """White on the right half, black on the left."""
    picture = torch.full((1, 3, frames, height, width), -1.0)
    picture[..., width // 2 :] = 1.0
    return Video(picture, fps=None if frames == 1 else 12.0)
