"""Receptive fields by arithmetic against those found by sending NaN through the real layers."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from pyratok.config import LaPQConfig, PyraTokConfig, WanVAEConfig
from pyratok.model.released import ResidualLatentTokenizer
from pyratok.runtime.receptive import (
    Extent,
    Field,
    decode_halo,
    decoded,
    encode_halo,
    encode_halos,
    encoded,
    through,
    token_field,
    video_field,
)
from pyratok.types import LevelOutput
from pyratok.vae.wan import WanVAE
from tiny import CONFIG, VAE, tiny_pyratok

# Wan 2.2 in small: shortcuts that average and duplicate, patches of 2, another order of halvings.
RESIDUAL = PyraTokConfig(
    name="tiny residual",
    vae=WanVAEConfig(
        base_dim=4,
        decoder_base_dim=8,
        dim_mult=(1, 2, 2),
        z_dim=4,
        num_res_blocks=1,
        temporal_downsample=(False, True),
        is_residual=True,
        patch_size=2,
        mid_attention=False,
    ),
    lapq=LaPQConfig(
        taps=(0, 1, 3), strides=((1, 8, 16), (1, 8, 8), (2, 8, 8)), width=8, num_bits=4, num_heads=2, text_dim=12
    ),
)
ATTENTIVE = replace(CONFIG, vae=replace(VAE, mid_attention=True))
MODELS = {"plain": CONFIG, "residual": RESIDUAL}
SIZE, SMALLER = (13, 192, 160), (9, 112, 96)


def touched(output: Tensor) -> list[Tensor]:
    """Per axis: which frames, rows and columns of ``[1, C, T, H, W]`` hold a NaN."""
    marked = output.isnan().any(dim=1)[0]
    return [marked.any(dim=2).any(dim=1), marked.any(dim=2).any(dim=0), marked.any(dim=1).any(dim=0)]


def predicted(field: Field, position: tuple[int, int, int]) -> list[Tensor]:
    """Per axis: which cells may depend on the position."""
    axes = zip((field.time, field.rows, field.columns), position, strict=True)
    return [torch.from_numpy((axis.first <= at) & (at <= axis.last)) for axis, at in axes]


def same(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.fixture
def leaky(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quantizer passes values on as they are: a sign would stop NaN."""
    monkeypatch.setattr("pyratok.model.lapq.lfq", lambda z: LevelOutput(presign=z, bits=z))


@pytest.mark.usefixtures("leaky")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("position", [(0, 0, 0), (1, 95, 80), (6, 97, 63), (9, 130, 79), (12, 191, 159)])
@torch.no_grad()
def test_encoder_agrees_with_nan(name: str, position: tuple[int, int, int]) -> None:
    model = tiny_pyratok(config=MODELS[name])
    video = torch.zeros(1, 3, *SIZE)
    video[0, :, position[0], position[1], position[2]] = math.nan
    signs = model.signs(video, None)
    for level, field in zip(signs, encoded(model, video_field(*SIZE)), strict=True):
        assert same(touched(level), predicted(field, position))


@pytest.mark.usefixtures("leaky")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("where", [(0, 0, 0), (1, 5, 4), (2, 11, 9)])
@torch.no_grad()
def test_decoder_agrees_with_nan(name: str, where: tuple[int, int, int]) -> None:
    model = tiny_pyratok(config=MODELS[name])
    fields = [token_field(stride, *SMALLER) for stride in model.strides]
    signs = [torch.ones(1, model.num_bits, *(len(a) for a in (f.time, f.rows, f.columns))) for f in fields]
    for index, level in enumerate(signs):
        if min(a - b for a, b in zip(level.shape[2:], where, strict=True)) <= 0:
            continue
        level[0, :, where[0], where[1], where[2]] = math.nan
        # Only this level leads from the video to the pixels: what else is asked for lies far beyond.
        nowhere = [Field(*(Extent(a.first + 10**6, a.last - 10**6) for a in axes(f))) for f in fields]
        marks = [f if i == index else nowhere[i] for i, f in enumerate(fields)]
        field = decoded(model, marks)
        own = fields[index]
        position = tuple(int(axis.last[at]) for axis, at in zip(axes(own), where, strict=True))
        assert same(touched(model.reconstruct(signs)), predicted(field, position))  # type: ignore[arg-type]
        level[0, :, where[0], where[1], where[2]] = 1.0


def axes(field: Field) -> tuple[Extent, Extent, Extent]:
    return field.time, field.rows, field.columns


def test_deeper_levels_see_more() -> None:
    halos = encode_halos(tiny_pyratok())
    for shallow, deep in pairwise(halos):
        assert deep.past >= shallow.past
        assert min(d - s for d, s in zip(deep.after, shallow.after, strict=True)) >= 0
    widest = encode_halo(tiny_pyratok())
    assert widest.before == halos[-1].before
    assert widest.is_finite


def test_nano_by_hand() -> None:
    """The convolutions of the encoder at strides 4 and 8, counted from the picture in docs/architecture.md."""
    from pyratok.recipes.nano import MODEL

    with torch.device("meta"):
        from pyratok.model.pyratok import PyraTok

        model = PyraTok(MODEL)
    stage0, stage1, middle = 3 * 4, (2 + 1) * 8, (2 + 4) * 8
    level4 = encode_halos(model)[-1]
    # Before: a strided convolution of 3 with its zeros behind looks one cell of stride 4 ahead, none back.
    assert level4.before[0] >= stage0 + stage1 + middle
    assert level4.before == (level4.before[0], level4.before[0])
    decode = decode_halo(model)
    # lapq.out, conv_in, middle, stage 2 and its upsampling | stage 1 and its upsampling | stage 0 and the head
    before = (1 + 1 + 4 + 4 + 1 + 4) * 8 + 1 * 4 + (4 + 1) * 4
    assert decode.before == decode.after == (before, before)


def test_attention_sees_the_whole_frame() -> None:
    model = tiny_pyratok(config=ATTENTIVE)
    halos = encode_halos(model)
    assert [halo.is_finite for halo in halos] == [True, True, True, False]
    assert encode_halo(model).before == (math.inf, math.inf)
    assert decode_halo(model).after == (math.inf, math.inf)
    assert encode_halo(model).past_steps == encode_halo(tiny_pyratok()).past_steps


def test_the_authors_layout_has_one_field() -> None:
    model = ResidualLatentTokenizer("released", WanVAE(VAE), 3)
    assert len(set(encode_halos(model))) == 1
    assert decode_halo(model).before[0] == decode_halo(tiny_pyratok()).before[0] - 8  # without lapq.out


def test_a_layer_without_a_rule_is_an_error() -> None:
    with pytest.raises(NotImplementedError, match="MaxPool3d"):
        through(nn.MaxPool3d(2), video_field(1, 8, 8))
