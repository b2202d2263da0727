"""Shared by the lessons: their size, the look of their figures, and exercises that check themselves."""

from __future__ import annotations

import copy
import inspect
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from scratchnet import gradcheck

T = TypeVar("T")

# SCRATCHNET_LESSONS=small makes every lesson fast, to see that it runs. Figures and numbers then mean less.
SMALL = os.environ.get("SCRATCHNET_LESSONS") == "small"

# Okabe and Ito's colours, safe for colour-blind readers.
BLUE, ORANGE, GREEN, YELLOW, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#777777"


def size(full: T, small: T) -> T:
    """Return ``full``, or ``small`` in a small run.

    Parameters
    ----------
    full, small : any

    Examples
    --------
    >>> n_images = size(full=4000, small=200)
    """
    return small if SMALL else full


def pyplot() -> Any:
    """Return matplotlib's pyplot, with the look of the lessons: small files, quiet axes.

    Examples
    --------
    >>> plt = pyplot()  # doctest: +SKIP
    """
    from matplotlib import pyplot as plt

    plt.rcParams |= {
        "figure.dpi": 80,
        "figure.figsize": (6.5, 3.2),
        "figure.constrained_layout.use": True,
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, YELLOW, PURPLE, GREY]),
        "image.cmap": "gray",
        "image.interpolation": "nearest",
        "legend.frameon": False,
    }
    return plt


def show(panel: Any, image: Any, title: str = "", **options: Any) -> Any:
    """Draw an image into a panel, without axes; return what ``imshow`` returns.

    Parameters
    ----------
    panel : matplotlib.axes.Axes
    image : array (H, W) or (H, W, 3)
    title : str
    **options
        Of ``imshow``.

    Examples
    --------
    >>> fig, panel = pyplot().subplots()  # doctest: +SKIP
    >>> drawn = show(panel, image, "a star")  # doctest: +SKIP
    """
    drawn = panel.imshow(image, **options)
    panel.set_title(title)
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_visible(False)
    return drawn


# Exercises


def check(
    answer: Any,
    right: Any,
    inputs: Sequence[tuple] = ((),),
    *,
    name: str = "",
    results: Sequence[str] = (),
    mistakes: Mapping[str, Any] | None = None,
    tolerance: float = 1e-6,
) -> bool:
    """Print whether an exercise is solved, and if not, what is wrong, where, and by how much. Never raises.

    Parameters
    ----------
    answer : callable, number or array
        The student's answer. None, ``...`` and NotImplementedError mean that it is not written yet.
    right : callable, number or array
        The right answer.
    inputs : sequence of tuple
        The arguments to call both with, case by case.
    name : str
        Of the answer; by default that of the function.
    results : sequence of str
        Names of the results, if there are several.
    mistakes : dict from str to callable, number or array
        Common mistakes: a sentence about each, and the answer that contains it.
    tolerance : float
        Largest error of a number, relative to the largest right one.

    Returns
    -------
    bool
        Whether it is right.

    Examples
    --------
    >>> def double(x):
    ...     return x + 2
    >>> check(double, lambda x: 2 * x, [(2.0,), (5.0,)], mistakes={"Twice x is not x + 2.": lambda x: x + 2})
    Not right yet: double, case 2 of 2: yours is 7, right is 10.
    Hint: Twice x is not x + 2.
    False
    """
    name = name or getattr(answer, "__name__", "the answer")
    if not callable(right):
        return _check_value(answer, right, name, mistakes or {}, tolerance)
    if not callable(answer):
        return _say_unsolved(name)
    for number, case in enumerate(inputs, start=1):
        where = f"{name}, case {number} of {len(inputs)}" if len(inputs) > 1 else name
        arguments = copy.deepcopy(case)
        try:
            result = answer(*arguments)
        except NotImplementedError:
            return _say_unsolved(name)
        except Exception as error:
            print(f"Not right yet: {where} raises {type(error).__name__}: {error}{_line_of(error, answer)}")
            return False
        if _unwritten(result):
            return _say_unsolved(name)
        written_to = _changed(arguments, case, answer)
        if written_to:
            print(
                f"Not right yet: {where} writes into {written_to}, which is not its own: make a copy first."
            )
            return False
        difference = _difference(result, right(*copy.deepcopy(case)), results, tolerance)
        if difference:
            print(f"Not right yet: {where}: {difference}")
            for sentence, mistaken in (mistakes or {}).items():
                if _agree(answer, mistaken, inputs, tolerance):
                    print(f"Hint: {sentence}")
                    break
            return False
    cases = f" in all {len(inputs)} cases" if len(inputs) > 1 else ""
    print(f"Right: {name} does what it should{cases}.")
    return True


def check_layer(
    make: Callable, forward: Callable, x: Any, *, mistakes: Mapping[str, Callable] | None = None
) -> bool:
    """Print whether a layer is right, and if not, what is wrong with it. Never raises.

    ``forward`` is compared with a function, every gradient with small steps of forward.

    Parameters
    ----------
    make : callable
        Makes the student's layer: its class, or a function without arguments.
    forward : callable
        ``forward(x, *parameters)`` is the right output.
    x : array
        A small input.
    mistakes : dict from str to callable
        Common mistakes: a sentence about each, and ``wrong(x, dy, *parameters)``, the gradient that it gives.

    Returns
    -------
    bool
        Whether it is right.

    Examples
    --------
    >>> from scratchnet.layers import ReLU
    >>> check_layer(ReLU, lambda x: np.maximum(x, 0), np.array([[1.0, -2.0]]))
    Right: ReLU: all 2 gradients are what small steps measure.
    True
    """
    rng = np.random.default_rng(12345)  # a separate stream: lessons draw x with small seeds
    x, layer, name, stage = np.asarray(x, dtype="float32"), None, "the layer", "__init__"
    try:
        layer = make()
        name = type(layer).__name__
        parameters = list(layer.parameters().values())
        for p in parameters:
            p.data[...] = rng.uniform(0.5, 1.5, p.shape)  # initial values are often all equal
        values = [p.data.copy() for p in parameters]
        stage = "forward"
        y = layer.forward(x.copy())
        if _unwritten(y):
            return _say_unsolved(f"{name}.forward")
        difference = _difference(y, forward(x, *values), (), 1e-5)
        if difference:
            print(f"Not right yet: {name}.forward: {difference}")
            return False
        stage = "backward"
        dy = rng.standard_normal(y.shape).astype("float32")
        dx = layer.backward(dy.copy())
    except NotImplementedError:
        return _say_unsolved(f"{name}.{stage}")
    except Exception as error:
        where = _line_of(error, getattr(layer, stage, make))
        print(f"Not right yet: {name}.{stage} raises {type(error).__name__}: {error}{where}")
        for part, hint in HINTS.items():
            if part in str(error):
                print(f"Hint: {hint}")
        return False
    if _unwritten(dx):
        return _say_unsolved(f"{name}.backward (forward is right)")
    report = gradcheck.check_layer(layer, x)
    if report:
        checked = sum(row.checked for row in report.rows)
        print(f"Right: {name}: all {checked} gradients are what small steps measure.")
        return True
    print(f"Not right yet: {name}.backward")
    print(report)
    gradients = [dx] + [p.grad for p in parameters if p.grad is not None]
    for sentence, wrong in (mistakes or {}).items():
        mistaken = wrong(x, dy, *values)
        if any(not _difference(gradient, mistaken, (), 1e-5) for gradient in gradients):
            print(f"Hint: {sentence}")
    return False


HINTS = {
    "backward without a forward": "forward must end with `return self.save_for_backward(y, cache)`.",
    "this parameter has the shape": (
        "one number serves all images and places: its gradient is a sum over them, .sum(axis=(0, 1, 2))."
    ),
}


def _agree(answer: Callable, mistaken: Callable, inputs: Sequence[tuple], tolerance: float) -> bool:
    """Return whether an answer makes this mistake in every case: one case may not distinguish two."""
    try:
        return not any(
            _difference(answer(*copy.deepcopy(case)), mistaken(*copy.deepcopy(case)), (), tolerance)
            for case in inputs
        )
    except Exception:
        return False


def _check_value(answer: Any, right: Any, name: str, mistakes: Mapping[str, Any], tolerance: float) -> bool:
    """Check a computed number or array; a wrong number is only said to be too large or too small."""
    if _unwritten(answer):
        return _say_unsolved(name)
    difference = _difference(answer, right, (), tolerance)
    if not difference:
        print(f"Right: {name} is {answer:,}." if isinstance(answer, (int, float)) else f"Right: {name}.")
        return True
    if np.ndim(right) == 0 and isinstance(answer, (int, float)) and not isinstance(answer, bool):
        difference = f"{answer:,} is too {'large' if answer > right else 'small'}."
    print(f"Not right yet: {name}: {difference}")
    for sentence, mistaken in mistakes.items():
        if not _difference(answer, mistaken, (), tolerance):
            print(f"Hint: {sentence}")
            break
    return False


def _say_unsolved(name: str) -> bool:
    print(f"Not solved yet: {name}. Fill in the dots in the cell above, run it, and run this cell again.")
    return False


def _unwritten(value: Any) -> bool:
    """Return whether a value, or one in a tuple, is the placeholder of an unwritten answer."""
    return value is None or value is ... or (isinstance(value, tuple) and any(v is ... for v in value))


def _line_of(error: Exception, answer: Callable) -> str:
    """Return the line of the student's own code that raised, as ` (in line 3: y = x @ w)`."""
    file = getattr(getattr(answer, "__code__", None), "co_filename", None)
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" (in line {lines[-1].lineno}: {lines[-1].line})" if lines else ""


def _changed(arguments: tuple, case: tuple, answer: Callable) -> str:
    """Return the name of an array argument that has changed, or an empty string."""
    names = list(inspect.signature(answer).parameters)
    for i, (now, before) in enumerate(zip(arguments, case, strict=True)):
        if isinstance(before, np.ndarray) and not np.array_equal(now, before, equal_nan=True):
            return names[i] if i < len(names) else f"argument {i + 1}"
    return ""


def _difference(mine: Any, right: Any, results: Sequence[str], tolerance: float) -> str:
    """Return a sentence on how two results differ, or an empty string."""
    if isinstance(right, tuple):
        if not isinstance(mine, tuple) or len(mine) != len(right):
            got = f"{len(mine)} results" if isinstance(mine, tuple) else f"one {type(mine).__name__}"
            wanted = f" ({', '.join(results)})" if results else ""
            return f"it should return {len(right)} results{wanted}, and returns {got}."
        for i, (one, other) in enumerate(zip(mine, right, strict=True)):
            difference = _difference(one, other, (), tolerance)
            if difference:
                return f"{results[i] if results else f'result {i + 1}'}: {difference}"
        return ""
    try:
        mine, right = np.asarray(mine, dtype=np.float64), np.asarray(right, dtype=np.float64)
    except (TypeError, ValueError):
        return f"numbers are wanted, and this is of type {type(mine).__name__}."
    if mine.shape != right.shape:
        return f"the shape is {mine.shape}, and should be {right.shape}."
    wrong = ~(abs(mine - right) <= tolerance * max(1e-30, float(abs(right).max(initial=0.0))))
    if not wrong.any():
        return ""
    if not right.ndim:
        return f"yours is {mine:.6g}, right is {right:.6g}."
    distance = np.where(np.isnan(mine), np.inf, abs(mine - right))
    place = tuple(int(i) for i in np.unravel_index(distance.argmax(), right.shape))
    at = ", ".join(map(str, place))
    furthest = f"The furthest off is at [{at}]: yours is {mine[place]:.6g}, right is {right[place]:.6g}."
    return f"{int(wrong.sum())} of {wrong.size} numbers are wrong. {furthest}"
