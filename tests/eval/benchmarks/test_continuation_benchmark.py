"""Predicted frames of real clips: who knows them is ahead of a still picture, who makes them up is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fakes import moving_video
from pyratok.data.video_io import load_video, save_video
from pyratok.eval.benchmarks import continuation as target
from pyratok.eval.benchmarks.continuation import Continuation
from pyratok.eval.benchmarks.registry import Options, build
from pyratok.eval.runner import run_benchmark
from pyratok.metrics.reconstruction import psnr
from pyratok.tasks.generation.files import save_prior
from pyratok.types import Video
from tiny import tiny_pyratok
from tiny_priors import CONFIG, TOKENIZER, tiny_prior

SMALL = {"frames": "9", "given": "5", "size": "16", "samples": "3"}


class Clips(list[Tensor]):
    """What a prior draws, its tokens being the video itself."""

    def select(self, index: int) -> Tensor:
        return self[index]


class Passing:
    """A tokenizer whose tokens are the video itself."""

    model_id = TOKENIZER

    def digest(self) -> str:
        return TOKENIZER.fingerprint

    def encode(self, video: Video) -> Any:
        return SimpleNamespace(prefix=lambda levels: video.plain())

    def decode(self, tokens: Tensor) -> Video:
        return Video(tokens, fps=None)


@pytest.fixture
def benchmark(tmp_path: Path) -> Continuation:
    (tmp_path / "videos").mkdir()
    for index, frames in enumerate((9, 12, 7)):
        save_video(moving_video(frames, 32, 40 + 8 * index), tmp_path / "videos" / f"{index}.mp4", fps=10.0)
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "config.json").write_text("{}")
    options = Options(settings=SMALL, networks={"prior": tmp_path / "prior"})
    found = build("continuation", tmp_path / "videos", options)
    assert isinstance(found, Continuation)
    return found


def scored(
    benchmark: Continuation, draw: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, float], dict[str, Any]]:
    """Of a prior that goes on from what is given, float32 ``[1, 3, t, H, W]``, as ``draw`` says."""
    monkeypatch.setattr(target, "load_prior", lambda folder, tokenizer: SimpleNamespace(config=CONFIG))
    monkeypatch.setattr(
        target,
        "continue_clip",
        lambda model, prior, video, **how: Clips(draw(video.plain(), seed) for seed in range(how["count"])),
    )
    record = run_benchmark(benchmark, Passing, folder)  # type: ignore[arg-type]
    assert list(record.unreadable) == ["2.mp4"]
    assert "has 7 frames, a clip needs 9" in record.unreadable["2.mp4"]
    return record.scores.values, record.scores.details["clips"]


def test_who_knows_what_comes_is_ahead(
    benchmark: Continuation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = [load_video(tmp_path / "videos" / f"{i}.mp4", size=16, crop=16, frames=9).plain() for i in range(2)]

    def known(given: Tensor, seed: int) -> Tensor:
        return next(video for video in videos if torch.equal(video[:, :, :5], given))

    values, clips = scored(benchmark, known, tmp_path / "out", monkeypatch)
    for kind in ("", "_decoded"):
        assert values[f"sample{kind}_ahead"] == values[f"mean{kind}_ahead"] == values[f"tokenizer{kind}_ahead"] == 2
        assert values[f"psnr_sample{kind}"] == pytest.approx(values[f"psnr_tokenizer{kind}"], abs=1e-3)
    still = videos[0][:, :, 4:5].expand(-1, -1, 4, -1, -1)
    assert clips["0.mp4"]["psnr_still"] == pytest.approx(psnr(still, videos[0][:, :, 5:], mode="video").item())


def test_who_makes_it_up_is_not(benchmark: Continuation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def noise(given: Tensor, seed: int) -> Tensor:
        drawn = torch.randn(1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
        return torch.cat([given, drawn.clamp(-1, 1)], dim=2)

    values, _ = scored(benchmark, noise, tmp_path / "out", monkeypatch)
    assert values["sample_ahead"] == values["best_ahead"] == values["sample_decoded_ahead"] == 0
    assert values["psnr_sample_decoded"] < values["psnr_best_decoded"] < values["psnr_mean_decoded"]
    assert values["tokenizer_ahead"] == 2


def test_a_real_prior_and_its_digest(benchmark: Continuation, tmp_path: Path) -> None:
    model = tiny_pyratok()
    prior = tiny_prior("ar", tokenizer=model.model_id, num_bits=model.num_bits, strides=model.strides, width=16)
    save_prior(prior, tmp_path / "real")
    networks = {"prior": tmp_path / "real"}
    real = build("continuation", benchmark.data, Options(settings=SMALL, networks=networks))
    assert real.protocol.digest != benchmark.protocol.digest
    record = run_benchmark(real, lambda: model, tmp_path / "out")
    assert record.scored == 2
    assert all(torch.isfinite(torch.tensor(value)) for value in record.scores.values.values())
    assert record.scores.values["psnr_sample"] <= record.scores.values["psnr_best"]


def test_what_is_missing_is_named(benchmark: Continuation, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--network prior=DIR"):
        replace(benchmark, prior=None).run(Passing())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="given is between 1 and frames"):
        replace(benchmark.protocol, given=17)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        replace(benchmark.protocol, samples=0)
    save_video(moving_video(1, 16, 16, fps=None), tmp_path / "prior" / "image.png")
    with pytest.raises(ValueError, match="continuation: there is no video"):
        build("continuation", tmp_path / "prior").load()
    with pytest.raises(ValueError, match="no such file"):
        build("continuation", tmp_path / "videos", Options(networks={"prior": tmp_path / "gone"}))
