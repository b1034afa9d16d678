"""Baseline tokenizers are tokenizers: ids and back, one rate whatever the kind, language on top."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from fakes import moving_video
from pyratok.cli import app
from pyratok.config import TextHeadConfig
from pyratok.data.video_io import save_video
from pyratok.model.baseline import BaselineConfig, BaselineTokenizer
from pyratok.model.pretrained import ModelLoadError
from pyratok.model.pyratok import PyraTok
from pyratok.quantization.baselines import Kind, QuantizerConfig
from tiny import LAPQ, VAE, StubText, random_video

STAGED = ("rvq", "rvq-lfq", "unitok")


def tiny_baseline(kind: Kind) -> BaselineTokenizer:
    """Four words of five bits per cell, from four codebooks or from one."""
    torch.manual_seed(0)
    stages, tokens = (4, 1) if kind in STAGED else (1, 4)
    quantizer = QuantizerConfig(kind=kind, dim=16 // tokens, bits=5 * stages, stages=stages)
    head = TextHeadConfig(width=16, num_blocks=1, kernel=3)
    config = BaselineConfig(
        vae=VAE, quantizer=quantizer, tokens_per_cell=tokens, text_head=head, text_dim=LAPQ.text_dim
    )
    model = BaselineTokenizer(config).eval()
    model.text_encoder = StubText()
    return model


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_kind_is_a_tokenizer(kind: Kind) -> None:
    model, video = tiny_baseline(kind), random_video(batch=2, height=30)
    tokens = model.encode(video)
    assert [tuple(ids.shape) for ids in tokens.levels] == [(2, 2, 4, 4)] * 4
    assert tokens.bits_per_pixel == 4 * 5 * 2 * 16 / (5 * 30 * 32)
    back = model.decode(tokens)
    assert back.shape == video.shape
    space = model.text_space(tokens)
    assert space.shape == (2, 2, 4, 4, LAPQ.text_dim)
    assert torch.allclose(space.norm(dim=-1), torch.ones(()), atol=1e-5)
    # Ids alone say what was quantized: nothing else reaches the decoder.
    with torch.no_grad():
        padded = torch.nn.functional.pad(video, (0, 0, 0, 2, 0, 0), mode="replicate")
        found = model.quantize(model.vae.encode_taps(padded)[-1])
        direct = model.vae.decode(model.out(model.features(found.features)))
    assert torch.allclose(back.plain(), direct[..., :30, :].clamp(-1, 1), atol=1e-5)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_it_is_the_same_after_a_trip_to_disk(kind: Kind, tmp_path: Path) -> None:
    model, video = tiny_baseline(kind), random_video()
    model.save_pretrained(tmp_path / "model")
    back = PyraTok.from_pretrained(tmp_path / "model")
    assert isinstance(back, BaselineTokenizer)
    assert back.model_id == model.model_id
    tokens = model.encode(video)
    assert back.encode(video) == tokens
    # Up to the memory layout, which loading chooses for speed.
    assert torch.allclose(back.decode(tokens).plain(), model.decode(tokens).plain(), atol=1e-5)
    text = (tmp_path / "model/config.json").read_text()
    (tmp_path / "model/config.json").write_text(text.replace("pyratok-baseline", "pyratok-model"))
    with pytest.raises(ModelLoadError):
        PyraTok.from_pretrained(tmp_path / "model")


def test_commands_take_it(tmp_path: Path) -> None:
    tiny_baseline("rvq").save_pretrained(tmp_path / "model")
    save_video(moving_video(), tmp_path / "in.mp4")
    model = ["--model", str(tmp_path / "model")]
    assert app.run(["encode", str(tmp_path / "in.mp4"), "-o", str(tmp_path / "t.pyra"), *model]) == 0
    assert app.run(["decode", str(tmp_path / "t.pyra"), "-o", str(tmp_path / "out.mp4"), *model]) == 0
    assert app.run(["info", str(tmp_path / "model")]) == 0
    options = ["-o", str(tmp_path / "shards"), "--no-text", "--frames", "5", "--size", "32", *model]
    assert app.run(["tokenize", str(tmp_path / "in.mp4"), *options]) == 0
    assert (tmp_path / "shards/000000.parquet").exists()


def test_a_part_of_a_cell_is_refused() -> None:
    model = tiny_baseline("vq")
    tokens = model.encode(random_video())
    with pytest.raises(ValueError, match="reads all of its 4 words of a cell, got 2"):
        model.decode(tokens, levels=2)


def test_no_caption_changes_a_word() -> None:
    model = tiny_baseline("rvq")
    assert model.encode(random_video(), "a dog") == model.encode(random_video())


def test_gradients_reach_the_projection() -> None:
    for kind in get_args(Kind):
        model = tiny_baseline(kind).train()
        found = model.quantize(model.vae.encode_taps(random_video())[-1])
        model.features(found.features).square().mean().backward()
        assert model.project.weight.grad is not None
        assert float(model.project.weight.grad.abs().sum()) > 0, kind


def test_the_text_head_reads_the_semantic_half_of_a_dual_codebook() -> None:
    """Without that the two halves, which have equal weight in the distance, would be one plain codebook."""
    for kind, semantic in (("tokenflow", [True, True, False, False] * 4), ("vq", [True] * 16)):
        quantized = torch.randn(1, 16, 1, 2, 2, requires_grad=True)
        tiny_baseline(kind).meaning(quantized).square().sum().backward()
        assert quantized.grad is not None
        assert quantized.grad.abs().sum(dim=(0, 2, 3, 4)).bool().tolist() == semantic


def test_words_are_whole_bits() -> None:
    config = tiny_baseline("vq").config
    with pytest.raises(ValueError, match="a power of two, got 1000"):
        replace(config, quantizer=QuantizerConfig(kind="vq", dim=4, codebook_size=1000))
