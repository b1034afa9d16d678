import math
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyratok.metrics.frechet import FeatureStatistics, feature_statistics, frechet_distance

relaxed = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


def gaussian(mean: list[float], covariance: Tensor | list[list[float]]) -> FeatureStatistics:
    return FeatureStatistics(torch.tensor(mean), torch.as_tensor(covariance))


def features(samples: int = 200, width: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(samples, width, generator=generator) @ mixing + torch.randn(width, generator=generator)


def random_covariance(seed: int, width: int = 5) -> Tensor:
    root = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T


sizes = st.floats(0, 100)
seeds = st.integers(0, 1000)


def test_equal_sets() -> None:
    statistics = feature_statistics(features())
    assert frechet_distance(statistics, statistics) == pytest.approx(0, abs=1e-10)
    shuffled = feature_statistics(features()[torch.randperm(200, generator=torch.Generator().manual_seed(1))])
    assert frechet_distance(statistics, shuffled) == pytest.approx(0, abs=1e-10)


def test_equal_sets_with_too_few_samples() -> None:
    """Eigenvalues that should be 0 must not add up by their square roots."""
    with pytest.warns(UserWarning, match="needs at least 101"):
        statistics = feature_statistics(features(20, 100))
    assert frechet_distance(statistics, statistics) == pytest.approx(0, abs=1e-9)


def test_a_shift_costs_its_square() -> None:
    a, offset = features(), torch.arange(8.0)
    distance = frechet_distance(feature_statistics(a), feature_statistics(a + offset))
    assert distance == pytest.approx(offset.square().sum().item(), rel=1e-5)


@relaxed
@given(st.lists(st.tuples(sizes, sizes, sizes, sizes), min_size=1, max_size=5))
def test_diagonal_covariances(rows: list[tuple[float, float, float, float]]) -> None:
    mean_a, mean_b, variance_a, variance_b = torch.tensor(rows, dtype=torch.float64).T
    a, b = FeatureStatistics(mean_a, variance_a.diag()), FeatureStatistics(mean_b, variance_b.diag())
    expected = (mean_a - mean_b).square().sum() + (variance_a.sqrt() - variance_b.sqrt()).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9, abs=1e-9)


@relaxed
@given(seeds, seeds)
def test_two_dimensions_in_closed_form(seed_a: int, seed_b: int) -> None:
    """The trace of the root of a 2x2 matrix M is sqrt(tr M + 2 sqrt(det M))."""
    a, b = random_covariance(seed_a, 2), random_covariance(seed_b, 2)
    product = a @ b
    root = math.sqrt(product.trace() + 2 * math.sqrt(max(torch.linalg.det(product).item(), 0)))
    expected = (a.trace() + b.trace()).item() - 2 * root
    assert frechet_distance(gaussian([1, 2], a), gaussian([1, 2], b)) == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_one_dimension() -> None:
    distance = frechet_distance(gaussian([1.0], [[4.0]]), gaussian([3.0], [[9.0]]))
    assert distance == pytest.approx((1 - 3) ** 2 + (2 - 3) ** 2)


@relaxed
@given(seeds, seeds, st.floats(0.1, 10))
def test_symmetry_rotation_and_scale(seed_a: int, seed_b: int, scale: float) -> None:
    covariances = random_covariance(seed_a), random_covariance(seed_b)
    means = torch.eye(5, dtype=torch.float64)[:2]
    a, b = (FeatureStatistics(mean, covariance) for mean, covariance in zip(means, covariances, strict=True))
    distance = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(distance)
    turn = torch.linalg.qr(random_covariance(seed_a + seed_b + 1))[0]
    moved = (FeatureStatistics(scale * turn @ s.mean, scale**2 * turn @ s.covariance @ turn.T) for s in (a, b))
    assert frechet_distance(*moved) == pytest.approx(scale**2 * distance, rel=1e-6)


def test_against_the_matrix_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = feature_statistics(features(seed=0)), feature_statistics(features(seed=1))
    root = linalg.sqrtm((a.covariance @ b.covariance).numpy()).real
    expected = (a.mean - b.mean).square().sum() + (a.covariance + b.covariance).trace() - 2 * root.trace()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)


def test_statistics() -> None:
    samples = features().half()
    found, biased = feature_statistics(samples), feature_statistics(samples, correction=0)
    centred = samples.double() - samples.double().mean(0)
    torch.testing.assert_close(found.mean, samples.double().mean(0))
    torch.testing.assert_close(found.covariance, centred.T @ centred / 199)
    torch.testing.assert_close(biased.covariance, centred.T @ centred / 200)
    assert feature_statistics(torch.tensor([[1.0], [3.0]])).covariance.tolist() == [[2.0]]


def test_warns_only_when_samples_are_missing() -> None:
    with pytest.warns(UserWarning, match="8 samples of 8 features"):
        feature_statistics(features(8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        feature_statistics(features(9))


@pytest.mark.parametrize("wrong", [torch.zeros(1, 4), torch.zeros(4), torch.zeros(4, 0), torch.full((4, 2), math.nan)])
def test_other_features_are_refused(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match="features"):
        feature_statistics(wrong)


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        ([0.0], torch.eye(2), "expected a mean"),
        ([], torch.zeros(0, 0), "expected a mean"),
        ([0.0, math.nan], torch.eye(2), "finite"),
        ([0.0, 0.0], [[1.0, math.inf], [math.inf, 1.0]], "finite"),
        ([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]], "symmetric"),
    ],
)
def test_other_statistics_are_refused(mean: list[float], covariance: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gaussian(mean, covariance)


def test_distances_that_mean_nothing_are_refused() -> None:
    flat = gaussian([0.0, 0.0], torch.zeros(2, 2))
    assert frechet_distance(flat, flat) == 0
    for covariance in ([[1.0, 2.0], [2.0, 1.0]], [[-1.0, 0.0], [0.0, 0.0]]):
        with pytest.raises(ValueError, match="not a covariance"):
            frechet_distance(flat, gaussian([0.0, 0.0], covariance))
    with pytest.raises(ValueError, match="one extractor"):
        frechet_distance(flat, gaussian([0.0], [[1.0]]))
