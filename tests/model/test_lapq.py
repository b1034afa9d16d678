from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pyratok.config import LaPQConfig
from pyratok.model.lapq import LaPQ
from pyratok.model.pyratok import PyraTok
from pyratok.train.objectives import draw_levels
from tiny import CONFIG, LAPQ, random_video, tiny_pyratok

FIRST_GRID, LAST_GRID = (5, 2, 2), (2, 4, 4)


@pytest.fixture
def model() -> PyraTok:
    return tiny_pyratok()


@pytest.fixture
def taps(model: PyraTok) -> tuple[Tensor, ...]:
    return tuple(tap.detach() for tap in model.vae.encode_taps(random_video(2)))


def words(lapq: LaPQ, taps: tuple[Tensor, ...]) -> list[Tensor]:
    return [level.bits.detach() for level in lapq.quantize(taps)]


def test_one_word_per_cell_of_every_grid(model: PyraTok, taps: tuple[Tensor, ...]) -> None:
    levels = model.lapq.quantize(taps)
    assert [tuple(o.bits.shape) for o in levels] == [
        (2, LAPQ.num_bits, *grid) for grid in (FIRST_GRID, (3, 4, 4), LAST_GRID, LAST_GRID)
    ]
    for level in levels:
        assert level.presign.dtype == level.bits.dtype == torch.float32
        assert torch.equal(level.bits, torch.where(level.presign >= 0, 1.0, -1.0))


@pytest.mark.parametrize("index", range(LAPQ.num_levels))
def test_a_level_knows_the_words_before_it_and_its_own_tap_only(
    model: PyraTok, taps: tuple[Tensor, ...], index: int
) -> None:
    before = model.lapq.quantize(taps)
    changed = [tap + (1.0 if number == index else 0.0) for number, tap in enumerate(taps)]
    after = model.lapq.quantize(changed)
    moved = [not torch.equal(a.presign, b.presign) for a, b in zip(before, after, strict=True)]
    assert moved == [level >= index for level in range(LAPQ.num_levels)]


def test_a_level_answers_to_the_words_not_to_the_features_before_it(model: PyraTok, taps: tuple[Tensor, ...]) -> None:
    """What is not in the word of a level is lost for those after it."""
    before = model.lapq.quantize(taps)
    slightly = [tap * (1 + 1e-6) if number == 0 else tap for number, tap in enumerate(taps)]
    after = model.lapq.quantize(slightly)
    assert not torch.equal(before[0].presign, after[0].presign)
    assert torch.equal(before[0].bits, after[0].bits)
    assert all(torch.equal(a.presign, b.presign) for a, b in zip(before[1:], after[1:], strict=True))


def test_dropping_levels_equals_having_a_prefix(model: PyraTok, taps: tuple[Tensor, ...]) -> None:
    bits = words(model.lapq, taps)
    for kept in range(1, LAPQ.num_levels + 1):
        prefix = model.lapq.features(bits[:kept])
        assert prefix.shape == (2, LAPQ.width, *LAST_GRID)
        assert torch.equal(model.lapq.features(bits, torch.tensor([kept, kept])), prefix)
    mixed = model.lapq.features(bits, torch.tensor([1, 3]))
    assert torch.equal(mixed[:1], model.lapq.features(bits[:1])[:1])
    assert torch.equal(mixed[1:], model.lapq.features(bits[:3])[1:])


@pytest.mark.parametrize("count", [0, LAPQ.num_levels + 1])
def test_number_of_levels_is_checked(model: PyraTok, count: int) -> None:
    bits = torch.ones(1, LAPQ.num_bits, *LAST_GRID)
    with pytest.raises(ValueError, match=f"has 4 levels, got signs of {count}"):
        model.lapq.features([bits] * count)


def test_gradient_reaches_every_tap_through_the_signs(model: PyraTok, taps: tuple[Tensor, ...]) -> None:
    for tap in taps:
        tap.requires_grad_()
    bits = [level.bits for level in model.lapq.quantize(taps)]
    model.lapq.latent(bits).square().sum().backward()
    for tap in taps:
        assert tap.grad is not None
        assert bool((tap.grad != 0).any())


def test_training_pass_reaches_every_weight_on_the_path() -> None:
    model = tiny_pyratok().train()
    output = model(random_video(2), kept_levels=torch.tensor([2, 4]))
    assert output.reconstruction.shape == (2, 3, 5, 32, 32)
    output.reconstruction.square().mean().backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None}
    off_the_path = ("vae.encoder.norm_out", "vae.encoder.conv_out", "vae.quant_conv")
    text_side = ("text.query", "text.key")
    assert all(name.startswith(off_the_path) or any(part in name for part in text_side) for name in silent), silent


def test_all_levels_share_one_vocabulary(model: PyraTok, taps: tuple[Tensor, ...]) -> None:
    """Silence the one embedding of words, and no word of any level means anything."""
    bits = words(model.lapq, taps)

    def matters(index: int) -> bool:
        flipped = [-b if number == index else b for number, b in enumerate(bits)]
        return not torch.equal(model.lapq.features(flipped), model.lapq.features(bits))

    assert all(matters(index) for index in range(LAPQ.num_levels))
    nn.init.zeros_(model.lapq.embed.mix.weight)
    assert not any(matters(index) for index in range(LAPQ.num_levels))


def test_quantizer_computes_in_float32_under_autocast(model: PyraTok, taps: tuple[Tensor, ...]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        levels = model.lapq.quantize(taps)
    assert all(level.presign.dtype == level.bits.dtype == torch.float32 for level in levels)
    level, feature = model.lapq.levels[0], taps[0]
    with torch.autocast("cpu", torch.bfloat16):
        presign = level.presign(feature, None, None)  # type: ignore[operator]
    assert not torch.equal(presign, presign.bfloat16().float()), "rounded to bfloat16 before the sign"


@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
def test_level_dropout_draws_what_it_promises(dropout: float) -> None:
    lapq = replace(LAPQ, level_dropout=dropout)
    model = PyraTok(replace(CONFIG, lapq=lapq))
    torch.manual_seed(0)
    kept = draw_levels(model, 40_000)
    shares = torch.bincount(kept, minlength=LAPQ.num_levels + 1)[1:] / len(kept)
    expected = torch.full((LAPQ.num_levels,), dropout / LAPQ.num_levels)
    expected[-1] += 1 - dropout
    assert torch.allclose(shares, expected, atol=0.01)
    torch.manual_seed(0)
    assert torch.equal(draw_levels(model, 40_000), kept)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"taps": (0, 1)}, "2 taps for 4 strides"),
        ({"num_heads": 3}, "not a multiple of num_heads 3"),
        ({"num_heads": 0}, "num_heads must be at least 1"),
        ({"num_bits": 25}, "num_bits must be in 1..24"),
        ({"level_dropout": 1.5}, r"level_dropout must be in \[0, 1\]"),
        ({"strides": ((4, 8, 8), (1, 8, 8), (4, 8, 8), (4, 8, 8))}, "denser in time"),
        ({"strides": ((1, 8, 8), (1, 16, 8), (4, 8, 8), (4, 8, 8))}, "coarser in space"),
        ({"strides": ((1, 12, 12), (1, 8, 8), (4, 8, 8), (4, 8, 8))}, "must divide each other"),
        ({"strides": ((1, 0, 8), (1, 8, 8), (4, 8, 8), (4, 8, 8))}, "strides must be at least 1"),
    ],
)
def test_impossible_layouts_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LaPQConfig(**fields)  # type: ignore[arg-type]
