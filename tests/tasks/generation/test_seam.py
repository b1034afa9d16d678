"""A continuation and the video that it goes on from: whose pixels are shown where."""

from __future__ import annotations

import pytest
import torch

from pyratok.tasks.generation.seam import EDGE, NOISE, WINDOW, join, paste


def blurred(frames: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """A sharp picture that does not change, and what a tokenizer might make of it: one that is off everywhere, the
    same way in every frame but for little noise."""
    generator = torch.Generator().manual_seed(0)
    sharp = torch.rand(1, 3, 1, size, size, generator=generator).mul(2).sub(1).expand(-1, -1, frames, -1, -1)
    noise = torch.randn(1, 3, frames, size, size, generator=generator) * NOISE / 4
    return sharp.contiguous(), 0.5 * sharp + 0.1 + noise


def test_where_nothing_moves_the_given_pixels_stay() -> None:
    sharp, decoded = blurred(9)
    shown = join(sharp[:, :, :5], decoded)
    assert torch.equal(shown[:, :, :5], sharp[:, :, :5])
    assert (shown - sharp).abs().max() < 0.05 < (decoded - sharp).abs().mean()


def test_what_moves_is_what_tokens_say_and_the_rest_stays() -> None:
    sharp, decoded = blurred(9)
    decoded[:, :, 6:, :12, :12] += 1.0
    shown = join(sharp[:, :, :5], decoded)
    away = 12 + WINDOW
    assert torch.equal(shown[:, :, :5], sharp[:, :, :5])
    assert (shown - sharp)[:, :, 5].abs().max() < 0.05
    assert (shown - sharp)[..., away:, away:].abs().max() < 0.05
    inside = shown[:, :, 6:, :4, :4] - decoded[:, :, 6:, :4, :4]
    assert inside.abs().max() < 0.05
    edges = torch.stack([sharp[:, :, 6:], decoded[:, :, 6:]])
    assert (shown[:, :, 6:] >= edges.amin(0) - 1e-6).all()
    assert (shown[:, :, 6:] <= edges.amax(0) + 1e-6).all()


def test_a_frame_depends_on_no_later_one_and_clips_on_no_other() -> None:
    sharp, decoded = blurred(9)
    decoded = torch.cat([decoded, decoded.flip(-1)])
    whole = join(sharp[:, :, :5], decoded)
    assert torch.equal(join(sharp[:, :, :5], decoded[:, :, :7]), whole[:, :, :7])
    assert torch.equal(join(sharp[:, :, :5], decoded[1:]), whole[1:])


@pytest.mark.parametrize("shape", [(1, 3, 9, 32, 32), (1, 3, 0, 32, 32), (1, 3, 5, 32, 16), (2, 3, 5, 32, 32)], ids=str)
def test_videos_that_do_not_fit_together(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="does not go on from"):
        join(torch.zeros(shape), torch.zeros(1, 3, 9, 32, 32))


def test_around_a_region_the_given_pixels_stay() -> None:
    sharp, decoded = blurred(5)
    region = torch.zeros(5, 32, 32, dtype=torch.bool)
    region[1:4, 12:20, 4:12] = True
    shown = paste(sharp, region, decoded)
    assert torch.equal(shown[:, :, region], decoded[:, :, region])
    near = torch.nn.functional.max_pool2d(region[:, None].float(), 4 * EDGE + 1, 1, 2 * EDGE)[:, 0] > 0
    assert torch.equal(shown[:, :, ~near], sharp[:, :, ~near])
    assert not torch.equal(shown[:, :, near & ~region], sharp[:, :, near & ~region])
    assert torch.equal(paste(sharp, region, decoded[:, :, :3]), shown[:, :, :3])
    everywhere = paste(sharp, torch.ones_like(region), torch.cat([decoded, sharp]))
    assert torch.equal(everywhere, torch.cat([decoded, sharp]))


@pytest.mark.parametrize(("frames", "size", "clips"), [(4, 32, 1), (5, 16, 1), (5, 32, 2)])
def test_regions_that_do_not_fit(frames: int, size: int, clips: int) -> None:
    region = torch.ones(frames, size, size, dtype=torch.bool)
    with pytest.raises(ValueError, match="does not go into"):
        paste(torch.zeros(clips, 3, 5, 32, 32), region, torch.zeros(1, 3, 5, 32, 32))
