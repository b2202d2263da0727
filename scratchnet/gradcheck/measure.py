"""Slopes measured by small steps, on a float64 copy, and the decision whether a gradient agrees with them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from scratchnet.backend import Array, array_module, to_numpy
from scratchnet.gradcheck.report import Measurement
from scratchnet.parameters import FlatBuffer, Parameter
from scratchnet.state import Attributes

NUDGE = 1e-3  # how far off a kink to measure again, relative to the size of the values
# The first step, relative to the size of the values: h^2 (the error of the difference) and eps / h (rounding)
# are both small.
STEP = 1e-5
SHRINK = 10.0
ROUNDS = 4  # steps of 1e-5, 1e-6, 1e-7 and 1e-8
ROUNDING = 16 * np.finfo(np.float64).eps


class Subject:
    """A float64 copy of a layer, or of a network with its loss, and the arrays to differentiate by."""

    def __init__(self, layer: Any, x: ArrayLike, loss: Any = None, labels: Any = None):
        self.layer, self.loss, self.labels = _float64(copy.deepcopy(layer)), copy.deepcopy(loss), labels
        self.x = own_copy(x, np.float64)
        self.parameters = {name: p for name, p in parameters_of(self.layer).items() if p.trainable}
        self.arrays = {"input": self.x, **{name: p.data for name, p in self.parameters.items()}}
        self.state = Attributes(layers_of(self.layer))
        self.deep = loss is not None or len(layers_of(self.layer)) > 1

    def forward(self) -> Array:
        """Compute the output (of the loss, where there is one), always from the same state."""
        self.state.restore()
        y = self.layer.forward(self.x.copy())
        if self.loss is None:
            return y.copy()  # it may be a buffer that the layer uses again
        return array_module(y).asarray(self.loss.forward(y, self.labels))

    def gradients(self, dy: Array, keep: bool = False) -> dict[str, Any]:
        """Run forward and backward, and return a copy of each gradient, which may be None.

        With ``keep``, backward finds the gradients of an earlier one in their place.
        """
        for p in () if keep else self.parameters.values():
            p.grad = None
        with recording(self.layer):
            self.forward()
            dx = self.layer.backward(dy.copy() if self.loss is None else self.loss.backward())
        found = {"input": dx, **{name: p.grad for name, p in self.parameters.items()}}
        return {name: None if g is None else to_numpy(g).copy() for name, g in found.items()}

    def sides(self, rng: np.random.Generator) -> Iterator[None]:
        """Move all arrays a little, away from kinks: first to one side, then to the other."""
        middle = {name: array.copy() for name, array in self.arrays.items()}
        offsets = {name: NUDGE * size_of(a) * rng.standard_normal(a.shape) for name, a in self.arrays.items()}
        for sign in (1, -1):
            for name, array in self.arrays.items():
                array[...] = middle[name] + sign * array_module(array).asarray(offsets[name])
            yield
        for name, array in self.arrays.items():
            array[...] = middle[name]


def size_of(array: Array) -> float:
    """Return the root mean square, which a step has to be small against; not below 1e-3, and 1 for zeros."""
    size = float(np.sqrt(float((array * array).mean()))) if array.size else 0.0
    return max(size, 1e-3) if size else 1.0


# The parts of a layer, which may be an object of any class


def layers_of(layer: Any) -> list[Any]:
    """Return the layer and all layers within it."""
    return [part for _, part in layer.walk()] if hasattr(layer, "walk") else [layer]


def parameters_of(layer: Any) -> dict[str, Parameter]:
    """Return what is learned, from name to Parameter."""
    if hasattr(layer, "parameters"):
        return layer.parameters()
    return {name: value for name, value in vars(layer).items() if isinstance(value, Parameter)}


def recording(layer: Any) -> AbstractContextManager[Any]:
    """Return a context in which ``backward`` is possible in evaluation too."""
    return layer.recording() if hasattr(layer, "recording") else nullcontext()


def own_copy(x: ArrayLike, dtype: DTypeLike) -> Array:
    """Return a writable copy of an array, in another element type."""
    return array_module(x).array(x, dtype=dtype)


def _float64(layer: Any) -> Any:
    """Turn a layer, which has to be a copy, into float64: its parameters, statistics and other arrays."""
    if hasattr(layer, "clear_saved"):
        layer.clear_saved()
    parameters = list(parameters_of(layer).values())
    for p in parameters:
        p.buffer.fill()  # before a layer leaves its network, since all of that draws from one generator
    FlatBuffer(parameters).cast(np.float64)
    for part in layers_of(layer):
        if hasattr(part, "dtype"):
            part.dtype = np.dtype(np.float64)
        for name, value in list(vars(part).items()):  # running statistics, or any other array
            if isinstance(value, array_module(value).ndarray) and value.dtype.kind == "f":
                setattr(part, name, value.astype(np.float64))
    return layer


def compare(
    subject: Subject, name: str, v: Any, y: Array, dy: Array, gradient: Array, tolerance: float
) -> tuple[Measurement, bool]:
    """Compare <gradient, v> with the slope of L = sum(dy * y) along v, in one of the subject's arrays.

    v is the index of the one element to change, or a direction; y, the output at the point itself. Tell, too,
    whether the two disagree because the point itself lies on a kink.
    """
    array, xp = subject.arrays[name], array_module(y)
    place = v if isinstance(v, tuple) else ...
    before = array[place].copy()
    size = size_of(array)
    if isinstance(v, tuple):
        analytic, scale, unit = float(gradient[v]), 0.0, np.float64(1.0)
        size = max(size, abs(float(before)))
    else:
        analytic, unit = float((gradient * to_numpy(v)).sum()), v
        # Contributions along a direction may cancel to nearly zero, and rounding is not relative to that.
        scale = float(np.sqrt((gradient * gradient).sum()))

    crossed, trials = False, []
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
        trials.append((error, Measurement(analytic, numeric, distance / magnitude, False)))
        # The central difference across a kink is wrong by up to half the jump, that of a curve by far less.
        crossed |= distance > 0.1 * abs(float((right - left).sum())) > 0.0
        low, high = float(xp.minimum(right, left).sum()), float(xp.maximum(right, left).sum())
        slopes.append((low, high, tolerance * magnitude + rounding))
        distances.append(distance)

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
    _, best = min(trials, key=lambda trial: trial[0])
    return best, stays and (between or subject.deep)
