"""The CRF: what it must leave alone, what it must repair, and that fast and exact mean the same."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyratok.tasks.crf import (
    CRFConfig,
    Lattice,
    PairwiseGaussian,
    SeparableGaussian,
    normalized,
    refine,
)

SHAPE = (3, 12, 16)
CONFIG = CRFConfig(bilateral_space=6.0, bilateral_time=2.0)


def object_mask() -> Tensor:
    """A square that moves two pixels a frame: bool ``[T, H, W]``."""
    frame, row, column = torch.meshgrid(*map(torch.arange, SHAPE), indexing="ij")
    return ((column - 5 - 2 * frame).abs() < 4) & ((row - 6).abs() < 4)


def toy(noise: float = 0.15) -> tuple[Tensor, Tensor]:
    """Scores of background and object, noisy and independent from pixel to pixel, and the video of the object."""
    mask = object_mask()
    inside, outside = torch.tensor([0.6, -0.4, 0.1]), torch.tensor([-0.5, 0.3, 0.2])
    video = torch.where(mask, inside.view(3, 1, 1, 1), outside.view(3, 1, 1, 1))[None]
    scores = torch.stack([torch.full(SHAPE, 0.25), torch.where(mask, 0.35, 0.15) + noise * torch.randn(SHAPE)])
    return scores, (video + 0.05 * torch.randn(video.shape)).clamp(-1, 1)


def accuracy(probabilities: Tensor) -> float:
    return float((probabilities.argmax(0).bool() == object_mask()).float().mean())


@pytest.mark.parametrize("backend", ["lattice", "exact"])
def test_without_ties_it_is_the_softmax(backend: str) -> None:
    scores, video = toy()
    found = refine(scores, video, CRFConfig(smoothness=0, bilateral=0, temperature=0.2, backend=backend))
    assert torch.allclose(found, (scores / 0.2).softmax(0), atol=1e-6)


@pytest.mark.parametrize("backend", ["lattice", "exact"])
def test_noisy_scores_are_repaired_along_the_edges_of_the_picture(backend: str) -> None:
    scores, video = toy()
    assert accuracy(scores) < 0.85
    found = refine(scores, video, replace(CONFIG, backend=backend))
    assert accuracy(found) > 0.98
    assert torch.allclose(found.sum(0), torch.ones(SHAPE), atol=1e-5)
    assert found.min() >= 0


def test_what_one_frame_knows_the_others_learn() -> None:
    scores, video = toy(noise=0.0)
    scores[1, 1:] = 0.25
    config = replace(CONFIG, bilateral_colour=0.3, bilateral_time=4.0)
    assert accuracy(refine(scores, video, config)) > 0.95
    assert accuracy(refine(scores, video, replace(config, smoothness_time=1e-3, bilateral_time=1e-3))) < 0.9


def test_the_lattice_agrees_with_the_exact_field() -> None:
    """Stated tolerance: 0.02 in the mean, 1 label in 25 where scores say little; of pictures, not of coloured noise."""
    scores = F.avg_pool2d(torch.randn(4, *SHAPE), 3, 1, 1) * 0.4
    smooth = F.avg_pool3d(torch.rand(1, 3, *SHAPE) * 2 - 1, (1, 5, 5), 1, (0, 2, 2)) * 2
    for video in (smooth.clamp(-1, 1), toy()[1]):
        fast, exact = (refine(scores, video, replace(CONFIG, backend=name)) for name in ("lattice", "exact"))
        error, agree = (fast - exact).abs().mean(), (fast.argmax(0) == exact.argmax(0)).float().mean()
        assert (float(error), float(agree)) == (pytest.approx(0, abs=0.02), pytest.approx(1, abs=0.04))


@pytest.mark.parametrize("backend", ["lattice", "exact"])
def test_the_order_of_labels_does_not_matter(backend: str) -> None:
    _, video = toy()
    scores, order = torch.randn(4, *SHAPE) * 0.1, torch.tensor([2, 0, 3, 1])
    config = replace(CONFIG, backend=backend)
    assert torch.allclose(refine(scores[order], video, config), refine(scores, video, config)[order], atol=1e-5)


def test_parts_change_nothing() -> None:
    features, values = torch.rand(300, 6) * 3, torch.rand(300, 2)
    assert torch.allclose(PairwiseGaussian(features, 1000)(values), PairwiseGaussian(features)(values), atol=1e-4)
    assert torch.allclose(Lattice(features, 7)(values), Lattice(features)(values), rtol=1e-5)


def test_the_separable_kernel_is_the_pairwise_one() -> None:
    widths = (1.0, 3.0, 3.0)
    axes = [torch.arange(size) / width for size, width in zip(SHAPE, widths, strict=True)]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)
    values = torch.rand(len(places), 3)
    exact = normalized(PairwiseGaussian(places), values)(values)
    assert torch.allclose(SeparableGaussian(SHAPE, widths, values.device)(values), exact, atol=1e-5)


@pytest.mark.parametrize("dim", [1, 2, 3, 6])
def test_lattice_weights_are_barycentric(dim: int) -> None:
    lattice = Lattice(torch.randn(500, dim) * 5)
    assert lattice.weights.min() > -1e-4
    assert torch.allclose(lattice.weights.sum(1), torch.ones(500), atol=1e-4)


@pytest.mark.parametrize("dim", [1, 2, 3, 6])
def test_the_lattice_filter_is_near_the_gaussian(dim: int) -> None:
    features, values = torch.rand(1500, dim) * 3, torch.rand(1500, 2)
    fast, exact = (normalized(kernel(features), values)(values) for kernel in (Lattice, PairwiseGaussian))
    assert (fast - exact).abs().mean() < 0.02


def test_far_points_do_not_meet_on_the_lattice() -> None:
    """However far: the number of a vertex says which one it is."""
    places = torch.cartesian_prod(*[torch.tensor([-400.0, 0.0, 400.0])] * 3)
    values = torch.rand(len(places), 2)
    assert torch.allclose(normalized(Lattice(places), values)(values), values, atol=1e-3)


def test_it_is_the_field_of_pydensecrf() -> None:
    pytest.importorskip("pydensecrf.densecrf")
    scores, video = toy()
    ours, theirs = (refine(scores, video, replace(CONFIG, backend=name)) for name in ("lattice", "pydensecrf"))
    assert (ours - theirs).abs().mean() < 0.01


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(ImportError, match=r"pyratok\[crf\]"):
        refine(*toy(), replace(CONFIG, backend="pydensecrf"))


def test_one_voxel() -> None:
    found = refine(torch.tensor([0.1, 0.3]).view(2, 1, 1, 1), torch.zeros(1, 3, 1, 1, 1))
    assert found.shape == (2, 1, 1, 1)
    assert found[1] > found[0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"bilateral": -1.0}, "bilateral"),
        ({"smoothness": float("inf")}, "smoothness"),
        ({"bilateral_colour": 0.0}, "bilateral_colour"),
        ({"smoothness_time": float("nan")}, "smoothness_time"),
        ({"temperature": 0.0}, "temperature"),
        ({"iterations": 0}, "iterations"),
        ({"backend": "magic"}, "backend"),
    ],
)
def test_bad_configs_are_refused(changes: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        replace(CONFIG, **changes)


def test_bad_input_is_refused() -> None:
    scores, video = toy()
    with pytest.raises(ValueError, match=r"\(2, 3, 12, 16\) and \(1, 3, 3, 12, 15\)"):
        refine(scores, video[..., :-1])
    with pytest.raises(ValueError, match="finite"):
        refine(scores.log(), video)
    with pytest.raises(ValueError, match="too many for the exact"):
        refine(torch.zeros(2, 3, 128, 128), torch.zeros(1, 3, 3, 128, 128), CRFConfig(backend="exact"))
