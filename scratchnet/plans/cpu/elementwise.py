"""Elementwise layers: the base of their kernels, and ReLU.

A kernel of this kind is two methods long. In a group that takes activations along it works on blocks of the
group's output, in the cache; on its own it is a group that ``ElementwiseKernel`` computes. Its derivative has
to be a function of its output, since only that is kept (``masking.py``).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from scratchnet.backend import Array
from scratchnet.layers import Layer
from scratchnet.plans.cpu.by_images import ByImages, Images
from scratchnet.plans.cpu.calls import Calls, cache_sized, reshaped
from scratchnet.plans.cpu.kernel import Kernel
from scratchnet.plans.kernel import Group, Registrable


class Elementwise(Registrable):
    """The base of kernels of elementwise layers: y = f(x), number by number.

    Parameters
    ----------
    layer : Layer

    Attributes
    ----------
    algorithm : str
        A name, for ``describe()``.
    increasing : bool
        Whether f never decreases, and f' is 0 wherever f is flat. Then it commutes with max pooling, forward
        and backward, and a group may have both.
    zero_derivative_at_zero : bool
        Whether f'(x) counts as zero wherever y = 0. Then a dropout may follow in the same group, and zeros
        beyond an image stay zeros.
    scratch_dtype : dtype or None
        Of the scratch that ``record_backward`` gets; None for that of y.

    Examples
    --------
    >>> class Half(Elementwise):
    ...     algorithm = "half"
    ...     increasing = True
    ...
    ...     def record_forward(self, calls, x):
    ...         calls(np.multiply, x, x.dtype.type(0.5), out=x)
    ...
    ...     def record_backward(self, calls, dy, y, scratch):
    ...         calls(np.multiply, dy, dy.dtype.type(0.5), out=dy)
    """

    device = "cpu"
    role = computes_role = "activation"
    input_layout: str | None = "plain"
    output_layout: str | None = None
    increasing = False
    zero_derivative_at_zero = False
    scratch_dtype: Any = np.bool_

    def __init__(self, layer: Layer):
        self.layer = layer

    @abstractmethod
    def record_forward(self, calls: Calls, x: Array) -> None:
        """Record x = f(x), in place, for a block in the cache."""

    @abstractmethod
    def record_backward(self, calls: Calls, dy: Array, y: Array, scratch: Array) -> None:
        """Record dy = dy * f', in place, where f' is given by the output y; scratch is shaped as both."""

    @classmethod
    def build(cls, group: Group, source: Any, target: Any, context: Any, first: bool = False) -> Kernel:  # noqa: D102
        return ElementwiseKernel(group, source, target, context, first)


class ElementwiseKernel(ByImages):
    """An elementwise layer that no group takes along.

    Backward there is nothing to multiply by: the gradient of its output was masked where it was written.
    """

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.algorithm = self.activation.algorithm

    def record_images(self, calls: Calls, images: Images) -> None:  # noqa: D102
        for x, y in cache_sized(images.x, images.y):
            calls.copy(x, out=y)
            self.activation.record_forward(calls, y)

    def record_images_backward(self, calls: Calls, images: Images) -> None:  # noqa: D102
        calls.copy(images.dy, out=images.dx)


class ReLU(Elementwise):
    """max(x, 0), and the derivative (y > 0)."""

    algorithm = "relu"
    increasing = True
    zero_derivative_at_zero = True

    def record_forward(self, calls: Calls, x: Array) -> None:  # noqa: D102
        if x.flags.c_contiguous:
            relu_(calls, x)
        else:
            calls(np.maximum, x, 0, out=x)

    def record_backward(self, calls: Calls, dy: Array, y: Array, scratch: Array) -> None:  # noqa: D102
        calls(np.greater, y, 0, out=scratch)
        calls(np.multiply, dy, scratch, out=dy)


ZEROS = 1 << 12  # numbers, which stay in the first-level cache
_ZEROS = {np.dtype(t): np.zeros(ZEROS, t) for t in (np.float32, np.float64)}


def relu_(calls: Calls, x: Array) -> None:
    """Record x = max(x, 0), in place, for a contiguous array.

    Against an array of zeros NumPy's maximum is two and a half times as fast as against the number 0.
    """
    flat, zeros = reshaped(x, -1), _ZEROS[x.dtype]
    whole = flat.size // ZEROS * ZEROS
    if whole:
        rows = flat[:whole].reshape(-1, ZEROS)
        calls(np.maximum, rows, zeros, out=rows)
    if whole < flat.size:
        calls(np.maximum, flat[whole:], zeros[: flat.size - whole], out=flat[whole:])
