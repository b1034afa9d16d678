"""Text to video in a rendered world: who makes what was asked is told from who does not, and from who copies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyratok.data.scenes import CaptionedClip
from pyratok.data.token_shards import ShardHeader, TokenRow, shard_path, write_index, write_shard
from pyratok.data.world import Combination, World
from pyratok.eval.benchmarks import world as target
from pyratok.eval.benchmarks.registry import Options, build
from pyratok.eval.benchmarks.world import NearestClip, PromptItem, WorldBenchmark, prompted
from pyratok.eval.language import to_video
from pyratok.losses.perceptual import PerceptualLoss
from pyratok.types import Video
from tiny_priors import CONFIG, GEOMETRY, TOKENIZER, random_tokens
from tiny_world import tiny_world

SMALL = {"prompts": "12", "frames": "9", "size": "48"}


class Tokens(Tensor):
    def prefix(self, num_levels: int) -> Tensor:
        return self.as_subclass(Tensor)


class Passing:
    """A tokenizer whose tokens are the video itself."""

    model_id = TOKENIZER

    def encode(self, video: Tensor) -> Tokens:
        return video.as_subclass(Tokens)

    def decode(self, tokens: Tensor) -> Video:
        return Video(tokens, fps=None)


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorldBenchmark:
    tiny_world(tmp_path / "world")
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "config.json").write_text("{}")
    network = PerceptualLoss("colour", [nn.AvgPool2d(16)], [torch.ones(3)])
    monkeypatch.setattr(target, "st_lpips", lambda: network)
    monkeypatch.setattr(target, "load_prior", lambda folder, tokenizer: SimpleNamespace(config=CONFIG))
    options = Options(settings=SMALL, networks={"prior": tmp_path / "prior"})
    found = build("world", tmp_path / "world", options)
    assert isinstance(found, WorldBenchmark)
    clips = [clip_of(found, index)[0] for index in range(12)]
    said = {clip.caption: vector(to_video([clip])) for clip in clips}
    # As if the text space told clips by their pixels, and knew what each caption looks like.
    monkeypatch.setattr(target, "clip_vectors", lambda model, tokens: vector(tokens))
    monkeypatch.setattr(target, "embed_texts", lambda model, texts: said[texts[0]])
    return found


def vector(video: Tensor) -> Tensor:
    values = video[:, :, ::4, ::4, ::4].flatten(1)
    return torch.nn.functional.normalize(values - values.mean(), dim=1)


def clip_of(benchmark: WorldBenchmark, index: int) -> tuple[CaptionedClip, Combination]:
    return prompted(benchmark._world, benchmark.protocol, index)


def scores(benchmark: WorldBenchmark, make: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Of a prior that makes of each caption what ``make`` says."""
    clips = {clip_of(benchmark, item.index)[0].caption: item.index for item in benchmark.load().items}
    monkeypatch.setattr(
        target,
        "generate_clip",
        lambda model, prior, caption, **how: to_video([clip_of(benchmark, make(clips[caption]))[0]]),
    )
    items = benchmark.load().items
    answer = benchmark.run(Passing())  # type: ignore[arg-type]
    return benchmark.score([(item, answer(item)) for item in items]).values


def test_who_makes_what_was_asked_is_right(benchmark: WorldBenchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    found = scores(benchmark, lambda index: index, monkeypatch)
    for what in ("noun", "colour", "way", "all"):
        assert found[what] == found[f"{what}, tokenizer"] == 1.0
    assert found["all, shuffled"] < 0.4
    assert found["agreement"] == 1.0
    assert found["explained"] == found["explained, tokenizer"] > 0.6
    assert found["fd"] == pytest.approx(found["fd, tokenizer"])
    assert found["tc"] == found["tc, tokenizer"] < 100


def test_who_makes_the_same_clip_always_is_at_chance(
    benchmark: WorldBenchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = scores(benchmark, lambda index: 0, monkeypatch)
    assert found["all"] <= 0.25
    assert found["all, tokenizer"] == 1.0
    assert found["noun"] == pytest.approx(found["noun, shuffled"], abs=0.1)
    assert found["fd"] > 3 * found["fd, tokenizer"]
    assert found["agreement"] < 1.0


def test_prompts_are_of_held_out_combinations(benchmark: WorldBenchmark) -> None:
    config = World(benchmark.data).config
    shown = {clip_of(benchmark, item.index)[1] for item in benchmark.load().items}
    assert all(map(config.is_held_out, shown))
    trained = replace(benchmark, protocol=replace(benchmark.protocol, combinations="trained"))
    assert not any(config.is_held_out(clip_of(trained, index)[1]) for index in range(12))
    # Neither is a clip that pyratok render gives.
    rendered = World(benchmark.data).clip(1, 0, 9, 48)[0]
    assert rendered.caption != clip_of(trained, 0)[0].caption


def test_the_protocol_tells_world_and_prior(benchmark: WorldBenchmark, tmp_path: Path) -> None:
    def digest() -> str:
        options = Options(settings=SMALL, networks={"prior": tmp_path / "prior"})
        return build("world", tmp_path / "world", options).protocol.digest

    before = digest()
    (tmp_path / "world" / "clips").mkdir()
    (tmp_path / "world" / "clips" / "0.mp4").write_bytes(b"0")
    assert digest() == before
    (tmp_path / "prior" / "config.json").write_text("{ }")
    assert digest() != before


def test_what_is_missing_is_named(benchmark: WorldBenchmark, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--network prior=DIR"):
        replace(benchmark, prior=None).run(Passing())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"there is no world\.json"):
        build("world", tmp_path / "prior").load()
    with pytest.raises(ValueError, match="'held-out' or 'trained'"):
        replace(benchmark.protocol, combinations="unseen")
    with pytest.raises(ValueError, match="prompts must be at least 2"):
        replace(benchmark.protocol, prompts=1)
    with pytest.raises(ValueError, match="gone: no such file"):
        build("world", tmp_path / "world", Options(networks={"prior": tmp_path / "gone"}))
    with pytest.raises(ValueError, match="1 clips could be made"):
        benchmark.score([(PromptItem(key="0", index=0), {})])


def test_the_nearest_training_clip(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    header = ShardHeader(model=TOKENIZER, num_bits=6, geometry=replace(GEOMETRY, fps=None))
    clips = [random_tokens(1, seed=seed) for seed in range(5)]
    rows = [
        TokenRow(clip=f"{number}.mp4", caption="", fps=None, levels=tuple(ids[0] for ids in tokens.levels))
        for number, tokens in enumerate(clips)
    ]
    write_shard(shard_path(tmp_path, 0), rows, header)
    write_index(tmp_path, header, 1)
    nearest = NearestClip(tmp_path, Passing(), 3)  # type: ignore[arg-type]
    assert nearest(clips[3]) == {"clip": "3.mp4", "share": 1.0}
    flipped = [ids.clone() for ids in clips[3].levels]
    flipped[0][0, 0, 0, 0] ^= 1
    bits = 6 * sum(ids.numel() for ids in flipped)
    found = nearest(replace(clips[3], levels=tuple(flipped)))
    assert found["clip"] == "3.mp4"
    assert found["share"] == pytest.approx(1 - 1 / (bits + -bits % 8))
    assert nearest(random_tokens(1, seed=9))["share"] < 0.75
    coarse = NearestClip(tmp_path, Passing(), 2)  # type: ignore[arg-type]
    assert coarse(clips[2].prefix(2)) == {"clip": "2.mp4", "share": 1.0}


def test_a_clip_that_flickers_is_less_consistent_than_one_that_stands_still() -> None:
    extract = target.ClipFeatures(PerceptualLoss("colour", [nn.AvgPool2d(8)], [torch.ones(3)]))
    still = torch.rand(1, 3, 1, 16, 16, generator=torch.Generator().manual_seed(0)).expand(1, 3, 5, 16, 16)
    flicker = still.clone()
    flicker[:, 0, ::2] = 1
    assert extract(still).consistency == pytest.approx(100)
    assert extract(flicker).consistency < 99
