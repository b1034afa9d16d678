from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyratok.data.masking import PAPER_MASKING, InputMask, MaskingConfig, draw_mask

SHAPE = (6, 3, 17, 32, 48)


def video(seed: int = 0) -> Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)) * 1.8 - 0.9


def mask(seed: int = 0, shape: tuple[int, ...] = SHAPE, **parts: float) -> InputMask:
    config = MaskingConfig(**{"patch": 8, **parts})  # type: ignore[arg-type]
    return draw_mask(config, shape, torch.Generator().manual_seed(seed))


def test_off_changes_nothing() -> None:
    assert not MaskingConfig().active
    assert torch.equal(mask().apply(video()), video())
    assert torch.equal(mask().target(video()), video())


def test_a_function_of_the_generator() -> None:
    parts = {"temporal": 0.3, "spatial": 0.75, "shuffle": 0.5}
    first, again, other = (mask(seed, **parts) for seed in (1, 1, 2))
    assert torch.equal(first.apply(video()), again.apply(video()))
    assert not torch.equal(first.keep, other.keep)
    assert not torch.equal(first.order, other.order)


class TestTemporal:
    def test_the_share_of_frames_is_exact(self) -> None:
        drawn = mask(temporal=0.3)
        dropped = ~drawn.keep.flatten(2).any(-1)
        assert dropped.sum(1).tolist() == [5] * SHAPE[0]
        shown = drawn.apply(video())
        gone = dropped[:, None, :, None, None].expand(SHAPE)
        assert (shown[gone] == 0).all()
        assert torch.equal(shown[~gone], video()[~gone])

    def test_every_frame_can_go_also_the_first(self) -> None:
        dropped = torch.stack([~mask(seed, temporal=0.3).keep.flatten(2).any(-1) for seed in range(60)])
        rates = dropped.float().mean((0, 1))
        assert float(rates.min()) > 0.2
        assert float(rates.max()) < 0.4

    @pytest.mark.parametrize("frames", [1, 2, 3])
    def test_one_frame_stays(self, frames: int) -> None:
        drawn = mask(temporal=1.0, shape=(4, 3, frames, 32, 32))
        assert drawn.keep.flatten(2).any(-1).sum(1).tolist() == [1] * 4


class TestSpatial:
    def test_patches_go_as_a_whole(self) -> None:
        drawn = mask(spatial=0.75)
        gone = (drawn.apply(torch.ones(SHAPE)) == 0).float()
        cells = gone.unflatten(-1, (6, 8)).unflatten(-3, (4, 8)).mean((-1, -3))
        assert set(cells.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(cells[:, 0] == 0, drawn.keep)

    def test_the_share_follows_a_cosine(self) -> None:
        """The mean of cos(pi u / 2) is 2 / pi, and two thirds of its values lie above 1/2."""
        drawn = mask(spatial=0.75, shape=(64, 3, 17, 64, 64))
        shares = 1 - drawn.keep.float().mean((2, 3))
        assert float(shares.max()) <= 0.75
        assert float(shares.mean()) == pytest.approx(0.75 * 2 / torch.pi, abs=0.02)
        assert float((shares > 0.375).float().mean()) == pytest.approx(2 / 3, abs=0.05)

    def test_frames_differ(self) -> None:
        keep = mask(spatial=0.75).keep
        assert not torch.equal(keep[:, 0], keep[:, 1])

    def test_sizes_that_patches_do_not_divide(self) -> None:
        shape = (1, 3, 2, 30, 45)
        assert mask(spatial=0.9, shape=shape).apply(torch.ones(shape)).shape == shape


class TestShuffle:
    def test_frames_are_the_same_in_another_order(self) -> None:
        drawn = mask(shuffle=1.0)
        target = drawn.target(video())
        assert not torch.equal(target, video())
        for clip, order, original in zip(target, drawn.order, video(), strict=True):
            assert sorted(order.tolist()) == list(range(SHAPE[2]))
            assert torch.equal(clip, original[:, order])

    def test_the_target_is_in_the_order_of_the_input(self) -> None:
        drawn = mask(shuffle=1.0, temporal=0.3)
        shown, target = drawn.apply(video()), drawn.target(video())
        assert torch.equal(shown[shown != 0], target[shown != 0])

    def test_clips_are_shuffled_by_share(self) -> None:
        in_order = torch.arange(SHAPE[2])
        shuffled = [(mask(seed, shuffle=0.3).order != in_order).any(1) for seed in range(60)]
        assert float(torch.stack(shuffled).float().mean()) == pytest.approx(0.3, abs=0.06)


def test_fill_and_gradients() -> None:
    clip = video().requires_grad_()
    drawn = mask(temporal=0.3, spatial=0.5, fill=-1.0)
    shown = drawn.apply(clip)
    hidden = shown == -1
    shown.sum().backward()
    assert clip.grad is not None
    assert torch.equal(clip.grad == 0, hidden)


def test_the_parts_do_not_depend_on_one_another() -> None:
    """Switching one off leaves the draws of the others: ablations differ in that part alone."""
    parts = {"temporal": 0.3, "spatial": 0.75, "shuffle": 1.0}
    whole = mask(**parts)
    assert torch.equal(mask(**parts | {"spatial": 0.0}).order, whole.order)
    frames = mask(**parts | {"spatial": 0.0}).keep
    patches = mask(**parts | {"temporal": 0.0}).keep
    assert torch.equal(frames & patches, whole.keep)


def test_the_figures_of_the_paper() -> None:
    assert PAPER_MASKING.active
    assert PAPER_MASKING.temporal == 0.3


@pytest.mark.parametrize(
    "wrong", [{"temporal": 1.1}, {"spatial": -0.1}, {"shuffle": 2.0}, {"patch": 0}, {"fill": float("nan")}]
)
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"masking.{next(iter(wrong))} is"):
        MaskingConfig(**wrong)  # type: ignore[arg-type]
