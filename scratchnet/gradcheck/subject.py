"""Copies in float64 of what is checked: a layer, or a network with its loss, and all of its state."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from scratchnet.backend import Array, array_module, to_numpy
from scratchnet.parameters import FlatBuffer, Parameter
from scratchnet.state import Attributes

NUDGE = 1e-3  # how far off a kink to measure again, relative to the size of the values


class Subject:
    """A float64 copy of a layer, or of a network with its loss, and the arrays to differentiate by."""

    def __init__(self, layer: Any, x: ArrayLike, loss: Any = None, labels: Any = None):
        self.layer, self.loss, self.labels = _float64(copy.deepcopy(layer)), copy.deepcopy(loss), labels
        self.x = own_copy(x, np.float64)
        self.parameters = {n: p for n, p in parameters_of(self.layer).items() if p.trainable}
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

    def gradients(self, dy: Array) -> dict[str, Any]:
        """Run forward and backward, and return a copy of each gradient, which may be None."""
        for p in self.parameters.values():
            p.grad = None
        with recording(self.layer):
            self.forward()
            dx = self.layer.backward(dy if self.loss is None else self.loss.backward())
        found = {"input": dx, **{name: p.grad for name, p in self.parameters.items()}}
        return {name: None if g is None else to_numpy(g).copy() for name, g in found.items()}

    def sides(self, rng: np.random.Generator) -> Iterator[None]:
        """Move all arrays a little, away from kinks: first to one side, then to the other."""
        middle = {name: array.copy() for name, array in self.arrays.items()}
        offsets = {
            name: array_module(array).asarray(NUDGE * size_of(array) * rng.standard_normal(array.shape))
            for name, array in self.arrays.items()
        }
        for sign in (1, -1):
            for name, array in self.arrays.items():
                array[...] = middle[name] + sign * offsets[name]
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
        for name, array in _arrays(part):
            if array.dtype.kind == "f":
                setattr(part, name, array.astype(np.float64))
    return layer


def _arrays(layer: Any) -> list[tuple[str, Array]]:
    """Return the arrays that are attributes of a layer: running statistics, or any other."""
    return [(name, v) for name, v in vars(layer).items() if isinstance(v, array_module(v).ndarray)]
