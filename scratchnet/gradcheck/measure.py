"""Slopes measured by small steps, and the decision whether a gradient agrees with them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from scratchnet.backend import Array, array_module, to_numpy
from scratchnet.gradcheck.report import Measurement
from scratchnet.gradcheck.subject import Subject, size_of

# The first step, relative to the size of the values: h^2 (the error of the difference) and eps / h (rounding)
# are both small.
STEP = 1e-5
SHRINK = 10.0
ROUNDS = 4  # steps of 1e-5, 1e-6, 1e-7 and 1e-8
ROUNDING = 16 * np.finfo(np.float64).eps


def compare(
    subject: Subject,
    y: Array,
    dy: Array,
    array: Array,
    v: tuple[int, ...] | Array,
    gradient: Array,
    tolerance: float,
) -> tuple[Measurement, bool]:
    """Compare <gradient, v> with the slope of L = sum(dy * y) along v.

    Parameters
    ----------
    y, dy
        The output at the point itself, and the upstream gradient.
    array : array
        What to take the step in.
    v : tuple of int or array
        Index of the one element to change, or a direction.
    gradient : array
        Of L with respect to ``array``, from backward.

    Returns
    -------
    Measurement
    bool
        Whether they disagree because the point itself lies on a kink.
    """
    xp = array_module(y)
    place: Any = v if isinstance(v, tuple) else ...
    before = array[place].copy()
    size = size_of(array)
    if isinstance(v, tuple):
        analytic, scale, unit = float(gradient[v]), 0.0, np.float64(1.0)
        size = max(size, abs(float(before)))
    else:
        analytic, unit = float((gradient * to_numpy(v)).sum()), v
        # Contributions along a direction may cancel to nearly zero, and rounding is not relative to that.
        scale = float(np.sqrt((gradient * gradient).sum()))

    best, best_error = None, 0.0
    crossed = False
    distances: list[float] = []
    slopes: list[tuple[float, float, float]] = []  # the lower, the upper, and the error that they may have
    for h in (STEP * size / SHRINK**i for i in range(ROUNDS)):
        array[place] = before + h * unit
        plus = subject.forward()
        array[place] = before - h * unit
        minus = subject.forward()
        array[place] = before

        right, left = dy * (plus - y) / h, dy * (y - minus) / h  # each output's share of the slope
        numeric = float((right + left).sum()) / 2
        distance = abs(analytic - numeric)
        if not np.isfinite(distance):
            return Measurement(analytic, numeric, float("inf"), False), False
        # A difference is as exact as the outputs that did change; backward has a little rounding, too.
        shares = abs(dy) * (abs(plus) + abs(minus))
        rounding = ROUNDING * (float((shares * (plus != minus)).sum()) / h + float(shares.sum()) / size)
        magnitude = max(abs(analytic), abs(numeric), scale)
        error = distance / (magnitude + rounding / tolerance) if distance else 0.0
        visible = bool(magnitude > rounding)
        if error <= tolerance:
            return Measurement(analytic, numeric, error, True, crossed, visible), False
        if best is None or error < best_error:
            best, best_error = Measurement(analytic, numeric, distance / magnitude, False), error
        # The central difference across a kink is wrong by up to half the jump, that of a curve by far less.
        crossed |= distance > 0.1 * abs(float((right - left).sum())) > 0.0
        low, high = float(xp.minimum(right, left).sum()), float(xp.maximum(right, left).sum())
        slopes.append((low, high, tolerance * magnitude + rounding))
        distances.append(distance)
    assert best is not None  # one of several rounds

    # Where only the curvature jumps, the distance is proportional to the step: it has the limit zero.
    if all(after < before / (0.5 * SHRINK) for before, after in pairwise(distances)):
        limit = abs(SHRINK * distances[-1] - distances[-2]) / (SHRINK - 1)
        return Measurement(analytic, numeric, limit / max(size, magnitude), True, True, visible), False

    # The slopes of a curve come together as fast as the step shrinks, those at a kink never do. (The last
    # step is left out: it is the nearest to rounding.)
    (low_before, high_before, _), (low, high, slack) = slopes[-3:-1]
    stays = high - low > max(0.5 * (high_before - low_before), 4 * slack)
    # Between its slopes a kink has its subgradients. After several kinks in a row there is no telling.
    between = low - slack <= analytic <= high + slack
    return best, stays and (between or subject.deep)
