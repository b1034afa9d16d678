"""Bjontegaard deltas: how far apart two rate-distortion curves are, as one number.

A curve is the points ``(rate, quality)`` of one codec, rate in any unit (bits per pixel, kbit/s), quality in dB or any
other measure that rises. Between its points log10 of the rate and the quality follow a piecewise cubic; the deltas
compare the two curves' means over the interval they share. Source: Bjontegaard, VCEG-M33 (2001), with the interpolation
of today: Akima's by default (Herglotz et al., The Bjontegaard bible, 2023), or the monotone one of JVET's common test
conditions (``pchip``). Numbers of different interpolations differ, so say which.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Curve: TypeAlias = Sequence[tuple[float, float]]
Interpolation: TypeAlias = Literal["akima", "pchip"]
Values: TypeAlias = NDArray[np.float64]

MIN_POINTS = 4
MIN_OVERLAP = 0.75
"""Below this share of the two curves' joint interval the deltas come with a warning."""


def bd_rate(anchor: Curve, test: Curve, interpolation: Interpolation = "akima") -> float:
    """Mean difference in rate at equal quality, in percent of the anchor's rate; negative: ``test`` needs less.

    Raises ValueError for fewer than four points, rates that are not positive, a curve that does not rise, or curves
    that share no quality; warns when they share little.
    """
    (rates_a, qualities_a), (rates_b, qualities_b) = _checked(anchor, "anchor"), _checked(test, "test")
    return float(100 * (10 ** _mean_gap((qualities_a, rates_a), (qualities_b, rates_b), interpolation, "quality") - 1))


def bd_psnr(anchor: Curve, test: Curve, interpolation: Interpolation = "akima") -> float:
    """Mean difference in quality at equal rate, in the unit of quality; positive: ``test`` looks better.

    Raises and warns as :func:`bd_rate` does, for curves that share no rate.
    """
    return _mean_gap(_checked(anchor, "anchor"), _checked(test, "test"), interpolation, "rate")


def _checked(curve: Curve, name: str) -> tuple[Values, Values]:
    """log10 of the rates, and the qualities, both strictly rising."""
    points = np.array(curve, dtype=np.float64)
    if points.shape[1:] != (2,) or len(points) < MIN_POINTS:
        shape = list(points.shape)
        raise ValueError(f"the {name} curve needs at least {MIN_POINTS} points (rate, quality), got an array {shape}")
    points = points[points[:, 0].argsort()]
    rates, qualities = points.T
    if not np.isfinite(points).all() or rates[0] <= 0:
        raise ValueError(f"the {name} curve needs positive rates and finite qualities, got {points.tolist()}")
    fall = np.flatnonzero((np.diff(qualities) <= 0) | (np.diff(rates) <= 0))
    if fall.size:
        low, high = points[fall[0] : fall[0] + 2].tolist()
        raise ValueError(f"the {name} curve must rise with the rate, but goes from {low} to {high}; leave one out")
    return np.log10(rates), qualities


def _mean_gap(
    anchor: tuple[Values, Values], test: tuple[Values, Values], interpolation: Interpolation, axis: str
) -> float:
    """Mean of test minus anchor, two functions ``y(x)`` by their knots, over the x they share."""
    if interpolation not in _SLOPES:
        raise ValueError(f"interpolation is one of {sorted(_SLOPES)}, got {interpolation!r}")
    ends = [(x[0], x[-1]) for x, _ in (anchor, test)]
    low, high = max(first for first, _ in ends), min(last for _, last in ends)
    if low >= high:
        ranges = " and ".join(f"{first:.4g} to {last:.4g}" for first, last in ends)
        unit = "log10 rate" if axis == "rate" else axis
        raise ValueError(f"the curves share no {axis}: {unit} {ranges}; add points until they overlap")
    share = (high - low) / (max(last for _, last in ends) - min(first for first, _ in ends))
    if share < MIN_OVERLAP:
        warnings.warn(f"the curves share only {share:.0%} of their range of {axis}", stacklevel=3)
    slopes = _SLOPES[interpolation]
    areas = [_integral(x, y, slopes(x, y), low, high) for x, y in (anchor, test)]
    return (areas[1] - areas[0]) / float(high - low)


def _integral(x: Values, y: Values, slopes: Values, low: float, high: float) -> float:
    """Integral from ``low`` to ``high`` of the piecewise cubic with these values and slopes at its knots."""
    width = np.diff(x)
    chord = np.diff(y) / width
    square = (3 * chord - 2 * slopes[:-1] - slopes[1:]) / width
    cube = (slopes[:-1] + slopes[1:] - 2 * chord) / width**2

    def area(end: float) -> Values:
        s = np.clip(end - x[:-1], 0, width)
        return s * (y[:-1] + s * (slopes[:-1] / 2 + s * (square / 3 + s * cube / 4)))

    return float((area(high) - area(low)).sum())


def _akima_slopes(x: Values, y: Values) -> Values:
    """Akima (1970): the slope at a knot leans to the side where the chords change less; two more chords at each end."""
    chord = np.diff(y) / np.diff(x)
    first, last = chord[1] - chord[0], chord[-1] - chord[-2]
    chord = np.array([chord[0] - 2 * first, chord[0] - first, *chord, chord[-1] + last, chord[-1] + 2 * last])
    change = np.abs(np.diff(chord))
    before, after = change[:-2], change[2:]
    total = before + after
    straight = total <= 1e-9 * total.max()
    weighted = (after * chord[1:-2] + before * chord[2:-1]) / np.where(straight, 1, total)
    return np.where(straight, (chord[:-3] + chord[3:]) / 2, weighted)


def _pchip_slopes(x: Values, y: Values) -> Values:
    """Fritsch and Butland (1984): weighted harmonic mean of the chords beside a knot; the ends look one chord further.

    The chords are all positive, since both coordinates rise.
    """
    width = np.diff(x)
    chord = np.diff(y) / width
    before, after = 2 * width[1:] + width[:-1], width[1:] + 2 * width[:-1]
    inner = (before + after) / (before / chord[:-1] + after / chord[1:])

    def end(width: Values, chord: Values) -> float:
        slope = ((2 * width[0] + width[1]) * chord[0] - width[0] * chord[1]) / (width[0] + width[1])
        return float(max(slope, 0))

    return np.array([end(width[:2], chord[:2]), *inner, end(width[:-3:-1], chord[:-3:-1])])


_SLOPES = {"akima": _akima_slopes, "pchip": _pchip_slopes}
