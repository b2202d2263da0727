"""Is a gradient right? Compare what ``backward`` returns with what small steps measure.

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
When the two values disagree, the step is made smaller. If they agree then, the step had crossed a kink. If
they never do, look at the slopes to the right and to the left: where the function is smooth they come
together as the step shrinks, and the gradient is wrong. Where they stay apart there is a kink at the very
point, and each value between the two slopes is a subgradient. But a wrong gradient could lie there by chance;
so everything is then moved a little, off the kink, to one side and to the other, and there they must agree.

Every check works on a copy of the layer in float64. The layer itself does not change in any bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scratchnet.backend import array_module, to_numpy
from scratchnet.parameters import FlatBuffer, Parameter

STEP = (
    1e-5  # of the size of the values: h^2 (the error of the difference) and eps / h (rounding) are both small
)
SHRINK = 10.0
ROUNDS = 4  # steps of 1e-5, 1e-6, 1e-7 and 1e-8
ROUNDING = 16 * np.finfo(np.float64).eps
NUDGE = 1e-3  # how far off a kink to measure again


class GradientError(AssertionError):
    """A gradient is wrong. The message is the report."""


@dataclass
class Measurement:
    """One comparison.

    Attributes
    ----------
    analytic, numeric : float
        What backward says, and what small steps of forward measure.
    error : float
        The relative error: their distance, divided by the larger one. What rounding alone may do is taken
        into account, so that two values which are both nearly zero agree.
    ok : bool
        Whether they agree.
    kink : bool
        Whether there is a kink at the point, or so near that the first step crossed it.
    visible : bool
        Whether either value stands out of the rounding at all.
    """

    analytic: float
    numeric: float
    error: float
    ok: bool
    kink: bool = False
    visible: bool = True


@dataclass
class Row:
    """What was found for one array: the input, or a parameter.

    Attributes
    ----------
    name : str
        ``"input"``, or the parameter's name.
    shape : tuple of int
    tier : {"elements", "directions"}
    checked, kinks, wrong : int
        How many elements (or directions) were compared, met a kink, disagree.
    visible : int
        In how many a value stood out of the rounding.
    worst : Measurement or None
        The comparison with the largest error.
    where : tuple of int or int or None
        Its index (or the number of its direction).
    """

    name: str
    shape: tuple[int, ...]
    tier: str
    checked: int = 0
    kinks: int = 0
    wrong: int = 0
    visible: int = 0
    worst: Measurement | None = None
    where: Any = None

    @property
    def ok(self) -> bool:
        """Whether backward and measurement agree everywhere."""
        return self.wrong == 0

    @property
    def error(self) -> float:
        """The largest relative error."""
        return self.worst.error if self.worst else 0.0

    @property
    def verdict(self) -> str:
        """The last column of the report."""
        return "WRONG" if self.wrong else "ok" if self.visible else "ok, zero to rounding"

    def add(self, where: Any, m: Measurement) -> None:
        """Count one comparison."""
        self.checked += 1
        self.kinks += m.kink
        self.wrong += not m.ok
        self.visible += m.visible
        if self.worst is None or (not m.ok, m.error) > (not self.worst.ok, self.worst.error):
            self.worst, self.where = m, where


@dataclass
class Report:
    """What a check found. Print it, ask it (``if report:``), or have it raise.

    Attributes
    ----------
    subject : str
        What was checked.
    rows : list of Row
        One for each array.
    problems : list of str
        What else the layer does wrong, in sentences: a gradient that is missing, an input that is written to.
    tolerance : float
        The largest relative error that counts as right.
    cause : Exception or None
        What the layer raised, if it did.
    """

    subject: str
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    tolerance: float = 1e-6
    cause: Exception | None = None

    @property
    def ok(self) -> bool:
        """Whether everything is right."""
        return not self.problems and all(row.ok for row in self.rows)

    def __bool__(self) -> bool:
        return self.ok

    @property
    def worst(self) -> Row | None:
        """The row with the largest error, wrong ones first; None where nothing could be compared."""
        return max(self.rows, key=lambda row: (not row.ok, row.error), default=None)

    @property
    def kinks(self) -> int:
        """How many kinks were met."""
        return sum(row.kinks for row in self.rows)

    def raise_for_failure(self) -> Report:
        """Return this report if everything is right.

        Raises
        ------
        GradientError
            An AssertionError with this report as its message, if not.
        """
        if not self.ok:
            raise GradientError(str(self)) from self.cause
        return self

    def __str__(self) -> str:
        lines = [f"gradient check of {self.subject}: {'ok' if self.ok else 'FAILED'}"]
        if self.rows:
            head = (
                "array",
                "shape",
                "checked",
                "kinks",
                "max rel. error",
                "worst at",
                "analytic",
                "numeric",
                "",
            )
            table = [head] + [
                (
                    row.name,
                    str(row.shape),
                    f"{row.checked} {row.tier}",
                    str(row.kinks),
                    f"{row.error:.1e}",
                    f"direction {row.where}" if row.tier == "directions" else str(row.where),
                    f"{row.worst.analytic:.9g}",
                    f"{row.worst.numeric:.9g}",
                    row.verdict,
                )
                for row in self.rows
                if row.worst
            ]
            widths = [max(map(len, column)) for column in zip(*table, strict=True)]
            lines += [
                "  "
                + "  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
                for cells in table
            ]
        for row in self.rows:
            if not row.ok:
                lines.append("  " + self._sentence(row))
        lines += [f"  {problem}" for problem in self.problems]
        return "\n".join(lines)

    def _sentence(self, row: Row) -> str:
        what = "gradient of the input" if row.name == "input" else f"gradient of {row.name}"
        place = "along direction" if row.tier == "directions" else "at"
        return (
            f"The {what} is wrong in {row.wrong} of {row.checked} {row.tier}: {place} {row.where}, "
            f"backward says {row.worst.analytic:.9g}, small steps of forward measure {row.worst.numeric:.9g}."
        )


def check_layer(
    layer: Any,
    x: Any,
    *,
    tier: str = "auto",
    max_elements: int = 1000,
    directions: int = 3,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> Report:
    """Check the gradients of a layer, with respect to its input and to each of its parameters.

    The layer stays in the mode that it is in: call ``layer.eval()`` first to check evaluation. One that draws
    random numbers, such as dropout, draws the same ones in every forward.

    Parameters
    ----------
    layer : Layer
        Any layer or network. Anything else will do too that has ``forward(x)`` and ``backward(dy)``, and its
        parameters, if any, as attributes of type ``Parameter``.
    x : array
        An input, of whatever shape the layer takes. Its values are those at which the gradient is checked.
    tier : {"auto", "elements", "directions"}
        How to look. ``"auto"`` checks every element of arrays of up to ``max_elements``, and larger ones
        along random directions.
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
    scratchnet.gradcheck.GradientError: gradient check of Square, input (4, 3): FAILED
    ...
    """
    name = getattr(layer, "_label", lambda: type(layer).__name__)()
    mode = "" if getattr(layer, "training", True) else " in evaluation"
    report = Report(f"{name}{mode}, input {_shape(x)}", tolerance=tolerance)
    rng = np.random.default_rng(seed)
    _watch(layer, x, rng, report)
    subject = _Subject(layer, x)
    return _check(subject, report, rng, _tiers(tier, max_elements), directions)


def check_network(
    net: Any,
    loss: Any,
    x: Any,
    labels: Any,
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
    mode = "" if getattr(net, "training", True) else " in evaluation"
    report = Report(
        f"{type(net).__name__} and {type(loss).__name__}{mode}, input {_shape(x)}",
        tolerance=tolerance,
    )
    subject = _Subject(net, x, loss, labels)
    return _check(subject, report, np.random.default_rng(seed), _tiers(tier, max_elements), directions)


class _Subject:
    """A float64 copy of a layer, or of a network with its loss, and the arrays to differentiate by."""

    def __init__(self, layer: Any, x: Any, loss: Any = None, labels: Any = None):
        self.layer, self.loss, self.labels = _float64(copy.deepcopy(layer)), copy.deepcopy(loss), labels
        self.x = _own_copy(x, np.float64)
        self.parameters = _parameters(self.layer)
        self.arrays = {"input": self.x, **{name: p.data for name, p in self.parameters.items()}}
        self.state = _State(self.layer)
        self.deep = loss is not None or len(_layers(self.layer)) > 1

    def forward(self) -> Any:
        """Compute the output (of the loss, where there is one), always from the same state."""
        self.state.restore()
        y = self.layer.forward(self.x.copy())
        if self.loss is None:
            return y.copy()  # it may be a buffer that the layer uses again
        return array_module(y).asarray(self.loss.forward(y, self.labels))

    def gradients(self, dy: Any) -> dict[str, Any]:
        """Run forward and backward, and return a copy of each gradient (None where there is none)."""
        for p in self.parameters.values():
            p.grad = None
        with _recording(self.layer):
            self.forward()
            dx = self.layer.backward(dy if self.loss is None else self.loss.backward())
        found = {"input": dx, **{name: p.grad for name, p in self.parameters.items()}}
        return {name: None if g is None else to_numpy(g).copy() for name, g in found.items()}

    def sides(self, rng: np.random.Generator) -> Iterator[None]:
        """Move all arrays a little, away from kinks: first to one side, then to the other."""
        middle = {name: array.copy() for name, array in self.arrays.items()}
        offsets = {
            name: array_module(array).asarray(NUDGE * _size_of(array) * rng.standard_normal(array.shape))
            for name, array in self.arrays.items()
        }
        for sign in (1, -1):
            for name, array in self.arrays.items():
                array[...] = middle[name] + sign * offsets[name]
            yield


def _check(
    subject: _Subject, report: Report, rng: np.random.Generator, tiers: Callable[[Any], str], directions: int
) -> Report:
    """Compare all arrays; what lies on a kink, again beside it."""
    if report.problems:
        return report
    y = subject.forward()
    dy = array_module(y).asarray(rng.standard_normal(y.shape) if subject.loss is None else np.ones(()))
    gradients = _trustworthy(subject, dy, report)
    if gradients is None:
        return report

    on_kinks: list[tuple[Row, Any, Any]] = []
    for name, array in subject.arrays.items():
        row = Row(name, tuple(array.shape), tiers(array))
        report.rows.append(row)
        for where, v in _ways(array, row.tier, directions, rng):
            m, on_kink = _compare(subject, y, dy, array, v, gradients[name], report.tolerance)
            if on_kink:
                on_kinks.append((row, where, v))
            else:
                row.add(where, m)

    if on_kinks:
        beside: list[list[Measurement]] = [[] for _ in on_kinks]
        for _ in subject.sides(rng):
            y, gradients = subject.forward(), subject.gradients(dy.copy())
            for (row, _, v), found in zip(on_kinks, beside, strict=True):
                array, gradient = subject.arrays[row.name], gradients[row.name]
                found.append(_compare(subject, y, dy, array, v, gradient, report.tolerance)[0])
        for (row, where, _), found in zip(on_kinks, beside, strict=True):
            m = max(found, key=lambda m: (not m.ok, m.error, m.visible))
            m.kink = m.ok
            row.add(where, m)
    return report


def _compare(
    subject: _Subject, y: Any, dy: Any, array: Any, v: Any, gradient: np.ndarray, tolerance: float
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
    one = isinstance(v, tuple)
    place = v if one else ...
    before = array[v].copy() if one else array.copy()
    analytic = float(gradient[v]) if one else float((gradient * to_numpy(v)).sum())
    # Contributions along a direction may cancel to nearly zero, and rounding is not relative to that.
    scale = 0.0 if one else float(np.sqrt((gradient * gradient).sum()))
    size = max(_size_of(array), abs(float(before)) if one else 0.0)

    best, best_error = None, 0.0
    crossed = False
    slopes: list[tuple[float, float, float]] = []  # the lower, the upper, and what error they may have
    for h in (STEP * size / SHRINK**i for i in range(ROUNDS)):
        array[place] = before + (h if one else h * v)
        plus = subject.forward()
        array[place] = before - (h if one else h * v)
        minus = subject.forward()
        array[place] = before

        right, left = dy * (plus - y) / h, dy * (y - minus) / h  # each output's share in the slope
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

    # The slopes of a curve come together as fast as the step shrinks, those at a kink never do. (The last
    # step is left out: it is the nearest to rounding.)
    (low_before, high_before, _), (low, high, slack) = slopes[-3:-1]
    stays = high - low > max(0.5 * (high_before - low_before), 4 * slack)
    # Between its slopes a kink has its subgradients. Behind several kinks in a row there is no telling.
    between = low - slack <= analytic <= high + slack
    return best, stays and (between or subject.deep)


def _ways(array: Any, tier: str, directions: int, rng: np.random.Generator) -> Iterator[tuple[Any, Any]]:
    """Yield where to look: every index, or random directions with their numbers."""
    if tier == "elements":
        yield from ((index, index) for index in np.ndindex(tuple(array.shape)))
    else:
        for number in range(directions):
            yield number, array_module(array).asarray(rng.standard_normal(array.shape))


def _tiers(tier: str, max_elements: int) -> Callable[[Any], str]:
    if tier not in ("auto", "elements", "directions"):
        raise ValueError(f"tier must be 'auto', 'elements' or 'directions', not {tier!r}")
    if tier != "auto":
        return lambda array: tier
    return lambda array: "elements" if array.size <= max_elements else "directions"


def _size_of(array: Any) -> float:
    """Return the root mean square, which a step has to be small against; not below 1e-3, and 1 for zeros."""
    size = float(np.sqrt(float((array * array).mean()))) if array.size else 0.0
    return max(size, 1e-3) if size else 1.0


# What a layer may do wrong beside its gradients


def _watch(layer: Any, x: Any, rng: np.random.Generator, report: Report) -> None:
    """Run a copy of the layer once in its own dtype, and write down what it does that it should not."""
    own = copy.deepcopy(layer)
    parameters = _parameters(own)
    dtype = next((p.dtype for p in parameters.values()), getattr(own, "dtype", np.dtype(np.float32)))
    x = _own_copy(x, dtype)
    x_before, data_before = x.copy(), {name: p.data.copy() for name, p in parameters.items()}

    def unchanged(array: Any, before: Any) -> bool:
        return bool(((array == before) | (array != array)).all())

    def complain(sentence: str) -> None:
        report.problems.append(sentence)

    with _recording(own):
        y = own.forward(x)
        if not hasattr(y, "shape") or not hasattr(y, "dtype"):
            return complain(f"forward returns {_named(y)}, and should return an array.")
        if not unchanged(x, x_before):
            complain("forward writes into its input, which is not its own: make a copy first.")
            x[...] = x_before
        if y.dtype != dtype:
            complain(f"forward turns {dtype} into {y.dtype}: the output should keep the input's dtype.")
        dy = array_module(x).asarray(rng.standard_normal(y.shape).astype(y.dtype))
        dy_before, y_dtype = dy.copy(), y.dtype
        for p in parameters.values():
            p.grad = None
        try:
            dx = own.backward(dy)
        except Exception as error:
            report.cause = error
            return complain(f"backward raises {type(error).__name__}: {error}")
    if not unchanged(dy, dy_before):
        complain("backward writes into dy, which is not its own: make a copy first.")
    if not unchanged(x, x_before):
        complain("backward writes into the input x, which is not its own: make a copy first.")
    for name, p in parameters.items():
        if not unchanged(p.data, data_before[name]):
            complain(f"forward or backward changes {name}.data, which is for the optimizer to do.")
    if not _complain_of("input", dx, x.shape, report) and dx.dtype != y_dtype:
        complain(f"backward turns {y_dtype} into {dx.dtype}: dx should have dy's dtype.")
    for name, p in parameters.items():
        _complain_of(name, p.grad, p.shape, report)


def _trustworthy(subject: _Subject, dy: Any, report: Report) -> dict[str, np.ndarray] | None:
    """Return the gradients; or None, and complain, where nothing can be measured."""
    y, y_again = subject.forward(), subject.forward()
    if not bool(array_module(y).isfinite(y).all()):
        report.problems.append("forward returns NaN or infinity for this input: no slope can be measured.")
    elif not np.allclose(to_numpy(y), to_numpy(y_again), rtol=1e-9, atol=1e-12):
        report.problems.append(
            "two forward passes of the same input give different outputs: random numbers should come from "
            "self.rng, a numpy.random.Generator, and state should lie in arrays that are attributes."
        )
    try:
        gradients, again = subject.gradients(dy.copy()), subject.gradients(dy.copy())
        accumulated = _second_backward(subject, dy)
    except Exception as error:
        report.cause = error
        report.problems.append(f"backward raises {type(error).__name__}: {error}")
        return None
    for name, gradient in gradients.items():
        if _complain_of(name, gradient, subject.arrays[name].shape, report):
            continue
        for other in (again[name], accumulated[name]):
            if not np.allclose(gradient, other, rtol=1e-7, atol=1e-10, equal_nan=True):
                report.problems.append(
                    f"a second backward gives another gradient of {name}: backward should set the gradient, "
                    "not add to it."
                )
                break
    return None if report.problems else gradients


def _second_backward(subject: _Subject, dy: Any) -> dict[str, Any]:
    """Return the gradients of a backward that finds those of an earlier one in its place."""
    with _recording(subject.layer):
        subject.forward()
        dx = subject.layer.backward(dy.copy() if subject.loss is None else subject.loss.backward())
    return {"input": to_numpy(dx), **{name: to_numpy(p.grad) for name, p in subject.parameters.items()}}


def _complain_of(name: str, gradient: Any, shape: tuple[int, ...], report: Report) -> bool:
    """Write down if a gradient is missing or of the wrong shape, and return whether it is."""
    if gradient is None:
        report.problems.append(
            "backward returns None: it should return dx, the gradient of its input."
            if name == "input"
            else f"backward leaves {name}.grad at None: it should set it to the gradient of {name}."
        )
    elif not hasattr(gradient, "shape"):
        report.problems.append(f"the gradient of {name} is {_named(gradient)}, and should be an array.")
    elif tuple(gradient.shape) != tuple(shape):
        report.problems.append(
            f"the gradient of {name} has the shape {tuple(gradient.shape)}, and {name} itself {tuple(shape)}."
        )
    else:
        return False
    return True


def _shape(x: Any) -> tuple[int, ...]:
    return tuple(x.shape if hasattr(x, "shape") else np.shape(x))


def _named(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


# Copies, in float64


def _layers(layer: Any) -> list[Any]:
    return [part for _, part in layer.walk()] if hasattr(layer, "walk") else [layer]


def _parameters(layer: Any) -> dict[str, Parameter]:
    if hasattr(layer, "parameters"):
        return layer.parameters()
    return {name: value for name, value in vars(layer).items() if isinstance(value, Parameter)}


def _recording(layer: Any) -> Any:
    return layer.recording() if hasattr(layer, "recording") else _Nothing()


class _Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *error: Any) -> None: ...


def _own_copy(x: Any, dtype: Any) -> Any:
    xp = array_module(x)
    x = xp.asarray(x)
    own = xp.empty(x.shape, dtype=dtype)
    own[...] = x
    return own


def _float64(layer: Any) -> Any:
    """Turn a layer, which has to be a copy, into float64: its parameters, statistics and other arrays."""
    if hasattr(layer, "drop_kept"):
        layer.clear_saved()
    parameters = list(_parameters(layer).values())
    for p in parameters:
        p.buffer.fill()  # before a layer leaves its network, since all of that draws from one generator
    FlatBuffer(parameters).cast(np.float64)
    for part in _layers(layer):
        if hasattr(part, "dtype"):
            part.dtype = np.dtype(np.float64)
        for name, array in _arrays(part):
            if array.dtype.kind == "f":
                setattr(part, name, array.astype(np.float64))
    return layer


def _arrays(layer: Any) -> list[tuple[str, Any]]:
    """Return the arrays that are attributes of a layer: running statistics, or what its author put there."""
    return [(name, v) for name, v in vars(layer).items() if isinstance(v, array_module(v).ndarray)]


class _State:
    """What a forward pass may change: numbers and arrays that are attributes, and generators."""

    def __init__(self, layer: Any):
        self.numbers, self.arrays, self.generators = [], [], []
        for part in _layers(layer):
            for name, value in vars(part).items():
                if isinstance(value, np.random.Generator):
                    self.generators.append((value, value.bit_generator.state))
                elif isinstance(value, (int, float)) and name != "_recording":
                    self.numbers.append((part, name, value))
            self.arrays += [(part, name, array, array.copy()) for name, array in _arrays(part)]

    def restore(self) -> None:
        """Put everything back."""
        for part, name, value in self.numbers:
            setattr(part, name, value)
        for part, name, array, values in self.arrays:
            array[...] = values
            setattr(part, name, array)
        for generator, state in self.generators:
            generator.bit_generator.state = state
