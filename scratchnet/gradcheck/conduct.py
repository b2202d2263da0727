"""What a layer may do wrong beside its gradients, each in a sentence."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scratchnet.backend import Array, array_module, to_numpy
from scratchnet.gradcheck.measure import Subject, own_copy, parameters_of, recording, size_of
from scratchnet.gradcheck.report import Report
from scratchnet.layers import Layer, chain_of, leaves


def watch(layer: Any, x: ArrayLike, rng: np.random.Generator, report: Report) -> None:
    """Run a copy of the layer once in its own dtype, and report what it does that it should not."""
    own = copy.deepcopy(layer)
    parameters = parameters_of(own)
    dtype = next((p.dtype for p in parameters.values()), getattr(own, "dtype", np.dtype(np.float32)))
    x = own_copy(x, dtype)
    x_before, data_before = x.copy(), {name: p.data.copy() for name, p in parameters.items()}

    def unchanged(array: Any, before: Any) -> bool:
        return bool(((array == before) | (array != array)).all())

    complain = report.problems.append
    with recording(own):
        y = own.forward(x)
        if not hasattr(y, "shape") or not hasattr(y, "dtype"):
            return complain(f"forward returns {_type_of(y)}, and should return an array.")
        if not unchanged(x, x_before):
            complain("forward writes into its input, which is not its own: make a copy first.")
            x[...] = x_before
        report.problems += filter(None, _faults_of_output(layer, x, y))
        if y.dtype != dtype:
            complain(f"forward turns {dtype} into {y.dtype}: the output should keep the input's dtype.")
        dy = array_module(x).asarray(rng.standard_normal(y.shape).astype(y.dtype))
        dy_before = dy.copy()
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
    fault = _fault_of("input", dx, x.shape)
    if not fault and dx.dtype != y.dtype:
        fault = f"backward turns {y.dtype} into {dx.dtype}: dx should have dy's dtype."
    faults = [fault, *(_fault_of(name, p.grad, p.shape) for name, p in parameters.items() if p.trainable)]
    report.problems += filter(None, faults)


def _faults_of_output(layer: Any, x: Array, y: Array) -> Iterator[str]:
    """Yield in what plans and files would take the layer for another one: its output's shape, its chain."""
    if not isinstance(layer, Layer):
        return
    if type(layer).output_shape is not Layer.output_shape and y.shape != layer.output_shape(x.shape):
        yield f"forward returns {y.shape}, and output_shape() says {layer.output_shape(x.shape)}."
    if chain_of(layer) is None:
        return
    z = x
    for _, part in leaves(copy.deepcopy(layer)):
        z = part.forward(z)
    rounding = 1e-3 * float(np.nanmax(abs(to_numpy(y)), initial=0.0))
    if z.shape != y.shape or not np.allclose(to_numpy(z), to_numpy(y), atol=rounding, equal_nan=True):
        yield "forward computes something else than the layers of chain(), one after the other."


def trustworthy_gradients(subject: Subject, dy: Array, report: Report) -> dict[str, np.ndarray] | None:
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
        gradients, *others = (subject.gradients(dy, keep) for keep in (False, False, True))
    except Exception as error:
        report.cause = error
        report.problems.append(f"backward raises {type(error).__name__}: {error}")
        return None
    for name, gradient in gradients.items():
        again = [other[name] for other in others]
        if fault := _fault_of(name, gradient, subject.arrays[name].shape):
            report.problems.append(fault)
        elif not all(np.allclose(gradient, g, rtol=1e-7, atol=1e-10, equal_nan=True) for g in again):
            report.problems.append(
                f"a second backward gives another gradient of {name}: backward should set the gradient, not "
                "add to it."
            )
    return None if report.problems else gradients


def _fault_of(name: str, gradient: Any, shape: tuple[int, ...]) -> str:
    """Say what is wrong with a gradient that is missing or of the wrong shape; nothing if it is neither."""
    if gradient is None and name == "input":
        return "backward returns None: it should return dx, the gradient of its input."
    if gradient is None:
        return f"backward leaves {name}.grad at None: it should set it to the gradient of {name}."
    if not hasattr(gradient, "shape"):
        return f"the gradient of {name} is {_type_of(gradient)}, and should be an array."
    found, wanted = tuple(gradient.shape), tuple(shape)
    return (
        ""
        if found == wanted
        else f"the gradient of {name} has the shape {found}, and {name} itself {wanted}."
    )


def _type_of(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def hint_of_rounding(subject: Subject, report: Report, rng: np.random.Generator) -> None:
    """Report a forward in which small changes of the input vanish, as float32 makes them."""
    x, y = subject.x.copy(), subject.forward()
    noise = array_module(x).asarray(size_of(x) * rng.standard_normal(x.shape))
    changed = []
    for size in (1e-4, 1e-12):
        subject.x[...] = x + size * noise
        changed.append(int((subject.forward() != y).sum()))
    subject.x[...] = x
    if changed[1] < 0.01 * changed[0]:
        report.problems.append(
            "forward rounds to float32, so that small steps are lost: the check works in float64, and arrays "
            "should be made with dtype=x.dtype."
        )
