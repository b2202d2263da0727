"""Gradient checks: what ``backward`` returns, compared with what small steps of ``forward`` measure.

The derivative of f at t is nearly (f(t + h) - f(t - h)) / 2h, and computing that needs ``forward`` alone: so
it can tell whether ``backward`` is right. A layer has many outputs, so a loss is made of them, the sum of
dy * y with *random* dy. (With dy = 1 many wrong gradients look right: the outputs of a batch normalisation
add up to the same whatever comes in.) There are two ways to look, and both work in float64:

``"elements"``
    one step for each element of the input and of each parameter. Finds everything, and says which element.
``"directions"``
    random directions v: the slope of L along v has to be the inner product <gradient, v>. Three steps check
    an array of any size, since a wrong element would have to hide from every v.

ReLU and max pooling have kinks, where the slope jumps and the difference of a step across it means nothing.
When the two values disagree, the step is made smaller. If they agree then, the step had crossed a kink; if
their distance keeps shrinking with the step, only the curvature jumps, as that of max(x, 0)^2 does at 0, and
the gradient is right. If neither, look at the slopes to the right and to the left: where the function is
smooth they come together as the step shrinks, and the gradient is wrong. Where they stay apart there is a
kink at the very point, and each value between the two slopes is a subgradient. But a wrong gradient could lie
there by chance. So everything is then moved a little, off the kink, to one side and to the other, and there
they must agree. And some directions lead along the kink, where there is no jump: equal values that move
together stay equal, and zeros that are not moved stay zero. Along those, too, the values must agree: a max
pooling that gives its gradient to each of several equal values, not to one, gives too much.

Every check works on a copy of the layer in float64. The layer itself does not change in any bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from scratchnet import checks
from scratchnet.backend import Array, array_module, to_numpy
from scratchnet.gradcheck.conduct import hint_of_rounding, trustworthy_gradients, watch
from scratchnet.gradcheck.measure import Subject, compare
from scratchnet.gradcheck.report import TIES, ArrayCheck, GradientError, Measurement, Report, Where

__all__ = ["GradientError", "Report", "check_layer", "check_network"]

Places: TypeAlias = list[tuple[ArrayCheck, Where, Any]]  # rows, indices or numbers in them, and directions


def check_layer(
    layer: Any,
    x: ArrayLike,
    *,
    tier: str = "auto",
    max_elements: int = 1000,
    directions: int = 3,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> Report:
    """Check the gradients of a layer, with respect to its input and to each trainable parameter.

    The check works on a copy, in the layer's own mode: call ``layer.eval()`` first to check evaluation. A
    layer that draws random numbers, such as dropout, draws the same ones in every forward.

    Parameters
    ----------
    layer : Layer
        Any layer or network; or any other object that has ``forward(x)`` and ``backward(dy)``, and its
        parameters, if any, as attributes of type ``Parameter``.
    x : array
        An input, of whatever shape the layer takes. Its values are those at which the gradient is checked.
    tier : {"auto", "elements", "directions"}
        ``"auto"`` checks every element of arrays of up to ``max_elements``, and larger ones along random
        directions.
    max_elements : int
    directions : int
        How many random directions.
    tolerance : float
        The largest relative error that counts as right. Right gradients have about 1e-9.
    seed : int
        Of dy, and of the directions.

    Returns
    -------
    Report

    Examples
    --------
    >>> from scratchnet.layers import Layer, Linear
    >>> x = np.random.default_rng(0).standard_normal((4, 3))
    >>> check_layer(Linear(3, 2), x).ok
    True

    A layer with a mistake in it, a factor of two that backward forgets:

    >>> class Square(Layer):
    ...     def forward(self, x):
    ...         return self.save_for_backward(x * x, x)
    ...
    ...     def backward(self, dy):
    ...         return dy * self.saved(dy)
    >>> report = check_layer(Square(), x)
    >>> report.ok, report.worst.name, report.worst.wrong
    (False, 'input', 12)
    >>> print(report.raise_for_failure())
    Traceback (most recent call last):
    scratchnet.gradcheck.report.GradientError: gradient check of Square, input (4, 3): FAILED
    ...
    """
    name = getattr(layer, "label", type(layer).__name__)
    return _check(name, layer, x, None, None, tier, max_elements, directions, tolerance, seed)


def check_network(
    net: Any,
    loss: Any,
    x: ArrayLike,
    labels: ArrayLike,
    *,
    tier: str = "auto",
    max_elements: int = 10,
    directions: int = 2,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> Report:
    """Check the gradients of a loss with respect to the input of a network and to each parameter.

    Parameters
    ----------
    net : Layer
    loss : object
        With ``forward(y, labels)`` and ``backward()``, as ``SoftmaxCrossEntropy`` has.
    x : array
        A small batch: forward runs at least twice for each element and direction.
    labels : array
        What the loss takes.
    tier, max_elements, directions, tolerance, seed
        As of ``check_layer``, with other defaults, since a forward pass of a network takes its time.

    Returns
    -------
    Report

    Examples
    --------
    >>> from scratchnet.layers import Flatten, Linear, MaxPool2d, ReLU, Sequential
    >>> from scratchnet.losses import SoftmaxCrossEntropy
    >>> net = Sequential(ReLU(), MaxPool2d(2), Flatten(), Linear(8, 3))
    >>> x = np.random.default_rng(0).standard_normal((5, 4, 4, 2))
    >>> report = check_network(net, SoftmaxCrossEntropy(), x, np.array([0, 1, 2, 0, 1]))
    >>> [(row.name, row.tier, row.ok) for row in report.rows]
    [('input', 'directions', True), ('3.weight', 'directions', True), ('3.bias', 'elements', True)]
    """
    name = f"{type(net).__name__} and {type(loss).__name__}"
    return _check(name, net, x, loss, labels, tier, max_elements, directions, tolerance, seed)


def _check(
    title: str,
    layer: Any,
    x: ArrayLike,
    loss: Any,
    labels: Any,
    tier: str,
    max_elements: int,
    directions: int,
    tolerance: float,
    seed: int,
) -> Report:
    """Compare all arrays; what lies on a kink, again beside it and along it."""
    checks.whole(0, max_elements=max_elements)
    checks.whole(1, directions=directions)
    checks.real(0.0, tolerance=tolerance)
    checks.seed(seed)
    if tier not in ("auto", "elements", "directions"):
        raise ValueError(f"tier must be 'auto', 'elements' or 'directions', not {tier!r}")
    mode = "" if getattr(layer, "training", True) else " in evaluation"
    report = Report(f"{title}{mode}, input {tuple(array_module(x).asarray(x).shape)}", tolerance)
    rng = np.random.default_rng(seed)
    if loss is None:
        watch(layer, x, rng, report)
    subject = Subject(layer, x, loss, labels)
    if report.problems:
        return report
    y = subject.forward()
    dy = array_module(y).asarray(rng.standard_normal(y.shape) if loss is None else np.ones(()))
    gradients = trustworthy_gradients(subject, dy, report)
    if gradients is None:
        return report

    on_kinks: Places = []
    for name, array in subject.arrays.items():
        small = array.size <= max_elements
        row = ArrayCheck(name, array.shape, tier if tier != "auto" else "elements" if small else "directions")
        report.rows.append(row)
        for where, v in _elements_or_directions(array, row.tier, directions, rng):
            m, on_kink = compare(subject, name, v, y, dy, gradients[name], tolerance)
            if on_kink:
                on_kinks.append((row, where, v))
            else:
                row.add(where, m)
    if on_kinks:
        _check_beside_kinks(subject, dy, on_kinks, tolerance, rng)
    for name, row in {row.name: row for row, _, _ in on_kinks if row.ok}.items():
        for v in _keeping_ties(subject.arrays[name], directions, rng):
            m, on_kink = compare(subject, name, v, y, dy, gradients[name], tolerance)
            if not (m.ok or on_kink):
                row.add(TIES, m)
                break
    if not report.ok:
        hint_of_rounding(subject, report, rng)
    return report


def _check_beside_kinks(
    subject: Subject, dy: Array, on_kinks: Places, tolerance: float, rng: np.random.Generator
) -> None:
    """Compare again what lay on a kink, with everything moved off it, to one side and to the other."""
    beside: list[list[Measurement]] = [[] for _ in on_kinks]
    for _ in subject.sides(rng):
        y, gradients = subject.forward(), subject.gradients(dy)
        for (row, _, v), found in zip(on_kinks, beside, strict=True):
            found.append(compare(subject, row.name, v, y, dy, gradients[row.name], tolerance)[0])
    for (row, where, _), found in zip(on_kinks, beside, strict=True):
        m = max(found, key=lambda m: (not m.ok, m.error, m.visible))
        m.kink = m.ok
        row.add(where, m)


def _elements_or_directions(
    array: Array, tier: str, directions: int, rng: np.random.Generator
) -> Iterator[tuple[Where, Any]]:
    """Yield every index, twice; or the numbers of random directions, and these."""
    if tier == "elements":
        yield from ((index, index) for index in np.ndindex(tuple(array.shape)))
    else:
        for number in range(directions):
            yield number, array_module(array).asarray(rng.standard_normal(array.shape))


def _keeping_ties(array: Array, directions: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield random directions in which equal values stay equal, first with and then without the zeros."""
    values, which = np.unique(to_numpy(array), return_inverse=True)
    for _ in range(directions):
        steps = rng.standard_normal(values.shape)
        for of_zeros in (1.0, 0.0):
            v = np.where(values == 0.0, of_zeros * steps, steps)[which].reshape(array.shape)
            if v.any():
                yield array_module(array).asarray(v)
