import importlib.util
import sys
import warnings
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyratok.metrics.ratedistortion import Curve, Interpolation, bd_psnr, bd_rate

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

ANCHOR = [(0.11, 30.2), (0.21, 33.1), (0.43, 35.9), (0.78, 38.2), (1.62, 41.3)]
TEST = [(0.09, 29.9), (0.19, 33.4), (0.36, 36.0), (0.71, 38.9), (1.4, 41.0)]

both = pytest.mark.parametrize("interpolation", ["akima", "pchip"])
steps = st.lists(st.tuples(st.floats(0.1, 2), st.floats(0.5, 5)), min_size=3, max_size=7)


def rising(steps: list[tuple[float, float]]) -> Curve:
    """A curve from (0.1, 30), each step a factor of the rate and a gain in dB."""
    growth, gains = np.cumsum([(0.0, 0.0), *steps], axis=0).T
    return list(zip(0.1 * np.exp(growth), 30 + gains, strict=True))


@pytest.mark.filterwarnings("ignore:the curves share only")
@relaxed
@given(steps, st.floats(0.8, 1.25), st.sampled_from(["akima", "pchip"]))
def test_a_constant_factor_in_rate(steps: list, factor: float, interpolation: Interpolation) -> None:
    curve = rising(steps)
    test = [(rate * factor, quality) for rate, quality in curve]
    assert bd_rate(curve, test, interpolation) == pytest.approx(100 * (factor - 1), abs=1e-8)


@pytest.mark.filterwarnings("ignore:the curves share only")
@relaxed
@given(steps, st.floats(-0.5, 0.5), st.sampled_from(["akima", "pchip"]))
def test_a_constant_gain_in_quality(steps: list, gain: float, interpolation: Interpolation) -> None:
    curve = rising(steps)
    test = [(rate, quality + gain) for rate, quality in curve]
    assert bd_psnr(curve, test, interpolation) == pytest.approx(gain, abs=1e-8)


@both
def test_straight_lines(interpolation: Interpolation) -> None:
    """Quality 30 + 10 log10(rate) against 31 + 12 log10(rate), over rates 1 to 1000."""
    logs = np.array([0.0, 0.7, 1.9, 3.0])
    anchor = list(zip(10**logs, 30 + 10 * logs, strict=True))
    test = list(zip(10**logs, 31 + 12 * logs, strict=True))
    assert bd_psnr(anchor, test, interpolation) == pytest.approx(1 + 2 * 3 / 2)
    middle = (31 + 60) / 2  # qualities 31 to 60 are shared
    assert bd_rate(anchor, test, interpolation) == pytest.approx(
        100 * (10 ** ((middle - 31) / 12 - (middle - 30) / 10) - 1)
    )


@both
def test_signs_and_exchange(interpolation: Interpolation) -> None:
    assert bd_rate(ANCHOR, ANCHOR, interpolation) == 0
    assert bd_psnr(ANCHOR, ANCHOR, interpolation) == 0
    rate, psnr = bd_rate(ANCHOR, TEST, interpolation), bd_psnr(ANCHOR, TEST, interpolation)
    assert rate < 0 < psnr
    assert (1 + rate / 100) * (1 + bd_rate(TEST, ANCHOR, interpolation) / 100) == pytest.approx(1)
    assert bd_psnr(TEST, ANCHOR, interpolation) == pytest.approx(-psnr)


def test_order_and_unit_do_not_matter() -> None:
    found = bd_rate(ANCHOR, TEST), bd_psnr(ANCHOR, TEST)
    assert (bd_rate(ANCHOR[::-1], np.array(TEST)), bd_psnr(ANCHOR[::-1], TEST)) == found  # type: ignore[arg-type]
    kbits = [[(1000 * rate, quality) for rate, quality in curve] for curve in (ANCHOR, TEST)]
    assert (bd_rate(*kbits), bd_psnr(*kbits)) == pytest.approx(found)


@pytest.fixture
def bjontegaard(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package, which imports a plotting library that nothing here needs."""
    if importlib.util.find_spec("matplotlib") is None:
        for name in ("matplotlib", "matplotlib.pyplot"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
    return pytest.importorskip("bjontegaard")


@both
@pytest.mark.filterwarnings("ignore")
def test_against_bjontegaard(bjontegaard: ModuleType, interpolation: Interpolation) -> None:
    rng = np.random.default_rng(0)
    curves = [(ANCHOR, TEST), (ANCHOR, TEST[1:]), (TEST[:4], ANCHOR[1:])]
    curves += [(rising(rng.uniform(0.2, 2, (5, 2))), rising(rng.uniform(0.2, 2, (4, 2)))) for _ in range(20)]
    for anchor, test in curves:
        columns = [*zip(*anchor, strict=True), *zip(*test, strict=True)]
        for ours, theirs in ((bd_rate, bjontegaard.bd_rate), (bd_psnr, bjontegaard.bd_psnr)):
            expected = theirs(*columns, method=interpolation, require_matching_points=False)
            assert ours(anchor, test, interpolation) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        (TEST[:3], "test curve needs at least 4 points"),
        ([], "test curve needs at least 4 points"),
        ([(rate,) for rate, _ in TEST], "at least 4 points"),
        ([(0.0, 20.0), *TEST], "positive rates"),
        ([(0.05, float("nan")), *TEST], "finite"),
        ([*TEST, (2.0, 40.0)], r"goes from \[1.4, 41.0\] to \[2.0, 40.0\]"),
        ([*TEST, TEST[-1]], "must rise"),
        ([*TEST, (1.4, 42.0)], "must rise"),
    ],
)
def test_other_curves_are_refused(curve: Curve, message: str) -> None:
    for metric in (bd_rate, bd_psnr):
        with pytest.raises(ValueError, match=message):
            metric(ANCHOR, curve)


def test_curves_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="share no quality"):
        bd_rate(ANCHOR, [(rate, quality + 20) for rate, quality in ANCHOR])
    with pytest.raises(ValueError, match="share no rate"):
        bd_psnr(ANCHOR, [(rate * 100, quality) for rate, quality in ANCHOR])
    with pytest.raises(ValueError, match="interpolation is one of"):
        bd_rate(ANCHOR, TEST, "cubic")  # type: ignore[arg-type]


def test_little_overlap_is_told() -> None:
    with pytest.warns(UserWarning, match="share only 38% of their range of quality"):
        bd_rate(ANCHOR, [(rate, quality + 5) for rate, quality in ANCHOR])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bd_rate(ANCHOR, TEST)
