"""One prior on the words of two tiny tokenizers: trained, asked, stopped, gone on with, and never done twice."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pyratok.cli.swap import parse_tokenizers, swap_table
from pyratok.config import PyraTokConfig, TextHeadConfig
from pyratok.data.rendering import RenderConfig, render_clips
from pyratok.eval.benchmarks import world as world_benchmark
from pyratok.eval.benchmarks.world import WorldProtocol
from pyratok.losses.perceptual import PerceptualLoss
from pyratok.model.base import VideoTokenizer
from pyratok.model.baseline import BaselineConfig, BaselineTokenizer
from pyratok.model.pretrained import from_pretrained
from pyratok.quantization.baselines import QuantizerConfig
from pyratok.recipes import swap
from pyratok.recipes.swap import SwapRecord, run_swap
from pyratok.train.optim import OptimConfig
from pyratok.train.priors import PriorRecipe
from pyratok.train.trainer import TrainConfig
from tiny import LAPQ, VAE, StubText, tiny_pyratok
from tiny_world import tiny_world

HEAD = TextHeadConfig(width=16, num_blocks=1, kernel=3)
PROTOCOL = WorldProtocol(prompts=8, frames=5, size=32, guidance=2.0)
TRAIN = TrainConfig(
    steps=2,
    batch_size=4,
    workers=0,
    bf16=False,
    compile=False,
    log_every=1,
    checkpoint_minutes=60.0,
    optim=OptimConfig(lr=1e-2, warmup=1, ema_decay=0.9),
)
RECIPE = PriorRecipe(
    name="toy", kind="ar", hidden_size=32, num_layers=1, num_heads=2, chunk_bits=8, held_out=0.2, train=TRAIN
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "world"
    render_clips(tiny_world(folder), RenderConfig(clips=16, frames=5, size=32))
    return folder


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """A pyramid of words of 16 bits, and a tokenizer of one grid whose words of 13 bits are no whole chunks of 8."""
    folder = tmp_path_factory.mktemp("tokenizers")
    tiny_pyratok(config=PyraTokConfig(name="tiny", vae=VAE, lapq=LAPQ, text_head=HEAD)).save_pretrained(folder / "a")
    torch.manual_seed(0)
    quantizer = QuantizerConfig(kind="rvq", dim=4, bits=26, stages=2)
    shape = BaselineConfig(name="rvq", vae=VAE, quantizer=quantizer, text_head=HEAD, text_dim=LAPQ.text_dim)
    BaselineTokenizer(shape).eval().save_pretrained(folder / "b")
    return {"pyramid": str(folder / "a"), "rvq": str(folder / "b")}


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(source: str | None) -> VideoTokenizer:
        model = from_pretrained(source)
        model.text_encoder = StubText()
        return model

    monkeypatch.setattr(swap, "from_pretrained", load)
    network = PerceptualLoss("colour", [nn.AvgPool2d(8)], [torch.ones(3)])
    monkeypatch.setattr(world_benchmark, "st_lpips", lambda: network)


def run(tokenizers: dict[str, str | None], world: Path, out: Path, **options: Any) -> SwapRecord:
    return run_swap(tokenizers, world, RECIPE, out, **{"seeds": 1, "protocol": PROTOCOL, **options})


def test_results_are_kept_and_unfinished_runs_go_on(
    tokenizers: dict[str, str | None], world: Path, tmp_path: Path
) -> None:
    begun: list[str] = []

    def stop(done: int) -> None:
        if begun[-1] == "rvq, seed 0: prior" and done == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    records: list[SwapRecord] = []
    stopped = run(
        tokenizers, world, tmp_path, on_step=lambda name, total: begun.append(name), on_progress=stop,
        on_record=records.append,
    )  # fmt: skip
    assert [run.tokenizer for run in stopped.runs] == ["pyramid"]
    assert not stopped.is_whole
    assert records[-1].to_dict() == stopped.to_dict()

    begun.clear()
    whole = run(tokenizers, world, tmp_path, on_step=lambda name, total: begun.append(name))
    assert begun == ["rvq: tokens", "rvq, seed 0: prior", "rvq, seed 0: prompts"]
    assert whole.is_whole
    assert whole.runs[0] == stopped.runs[0]
    pyramid, rvq = whole.runs
    assert pyramid.parameters == rvq.parameters  # the last chunk of 13 bits is as wide as any
    assert (rvq.tokens, rvq.bits) == (2 * 2 * 4 * 4, 2 * 2 * 4 * 4 * 13)
    assert pyramid.bits == 16 * pyramid.tokens
    for found in whole.runs:
        assert 0 < found.held_out_bits < 2 * found.bits
        assert {"noun", "colour", "way", "fd", "tc", "tc, tokenizer"} <= found.values.keys()

    begun.clear()
    assert run(tokenizers, world, tmp_path, on_step=lambda name, total: begun.append(name)) == whole
    assert not begun


def test_results_of_other_settings_are_refused(tokenizers: dict[str, str | None], world: Path, tmp_path: Path) -> None:
    one = {"pyramid": tokenizers["pyramid"]}
    run(one, world, tmp_path)
    with pytest.raises(ValueError, match=r"recipe\.train\.steps = 2, not 3"):
        run_swap(
            one, world, replace(RECIPE, train=replace(TRAIN, steps=3)), tmp_path, seeds=1, protocol=PROTOCOL
        )  # fmt: skip
    with pytest.raises(ValueError, match="tokenizer = "):
        run({"pyramid": tokenizers["rvq"]}, world, tmp_path)


def test_seeds_are_other_priors_on_the_same_tokens(
    tokenizers: dict[str, str | None], world: Path, tmp_path: Path
) -> None:
    record = run({"pyramid": tokenizers["pyramid"]}, world, tmp_path, seeds=2)
    first, second = record.runs
    assert (first.seed, second.seed) == (0, 1)
    assert first.held_out_bits != second.held_out_bits
    mean, spread = record.summary("pyramid", "fd") or (None, None)
    assert mean == pytest.approx((first.values["fd"] + second.values["fd"]) / 2)
    assert spread is not None
    columns, (row,) = swap_table(record)
    assert len(columns) == len(row)
    assert "±" in row[-1]
    assert row[columns.index("seeds")] == "2"


def test_what_cannot_be_done_is_named(tokenizers: dict[str, str | None], world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no clips to train on; make them with pyratok render"):
        run(tokenizers, tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        run(tokenizers, world, tmp_path / "out", seeds=0)
    assert not (tmp_path / "out").exists()
    assert parse_tokenizers(["a=embedded", "b=runs/b"]) == {"a": None, "b": "runs/b"}
    for entries, message in (
        (["a"], "NAME=MODEL"),
        (["=b"], "NAME=MODEL"),
        (["a=b", "a=c"], "different"),
        (["x/y=b"], "no slashes"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_tokenizers(entries)


def test_a_table_of_what_is_not_there_yet() -> None:
    record = SwapRecord(recipe="toy", tokenizers=("a",), seeds=1, protocol=PROTOCOL, runs=())
    columns, (row,) = swap_table(record)
    assert row == ["a", *("-" * (len(columns) - 1))]
