"""Pooling windows: the base of kernels that compute each output from a square window, and max pooling.

A window of K x K pixels is seen as K * K arrays, each with the pixel at one place of every window: views
(n, OH, OW, C) of the map, in steps of the stride S. What a pooling computes is then a few calls on them::

    x (n, H, W, C)          windows[K*i + j] = x[:, i::S, j::S], as far as whole windows go
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from scratchnet.backend import Array
from scratchnet.layers import Layer
from scratchnet.plans.cpu.by_images import ByImages, Images
from scratchnet.plans.cpu.calls import Calls
from scratchnet.plans.cpu.kernel import Kernel, first_of
from scratchnet.plans.kernel import Group, Registrable
from scratchnet.plans.memory import Arena


class Windows(Registrable):
    """The base of kernels of pooling layers, which have a ``kernel_size`` and a ``stride``.

    Parameters
    ----------
    layer : Layer

    Attributes
    ----------
    algorithm : str
        A name, for ``describe()``.
    scratch_dtypes : tuple of dtypes
        Of scratch arrays, shaped as y, that both methods get as further arguments; None for that of y.

    Examples
    --------
    Average pooling is linear, so that its backward hands out equal parts:

    >>> class Average(Windows):
    ...     algorithm = "average"
    ...
    ...     def record_forward(self, calls, windows, y):
    ...         calls.copy(windows[0], out=y)
    ...         for x in windows[1:]:
    ...             calls(np.add, y, x, out=y)
    ...         calls(np.divide, y, y.dtype.type(len(windows)), out=y)
    ...
    ...     def record_backward(self, calls, windows, y, dy, dwindows):
    ...         calls(np.divide, dy, dy.dtype.type(len(windows)), out=dy)
    ...         for dx in dwindows:
    ...             calls(np.add, dx, dy, out=dx)
    """

    device = "cpu"
    input_layout: str | None = "plain"
    output_layout: str | None = None
    scratch_dtypes: tuple[Any, ...] = ()

    def __init__(self, layer: Layer):
        self.layer = layer

    @abstractmethod
    def record_forward(self, calls: Calls, windows: list[Array], y: Array, *scratch: Array) -> None:
        """Record y = what becomes of the windows.

        Parameters
        ----------
        calls : Calls
        windows : list of K * K arrays (n, OH, OW, C)
            Row by row; they are not to be written to.
        y : array (n, OH, OW, C)
        *scratch : arrays of the ``scratch_dtypes``
        """

    @abstractmethod
    def record_backward(
        self, calls: Calls, windows: list[Array], y: Array, dy: Array, dwindows: list[Array], *scratch: Array
    ) -> None:
        """Record what adds to ``dwindows`` what each pixel gets of ``dy``, which may be overwritten.

        Where windows overlap, so do the arrays of ``dwindows``: add to one after the other.
        """

    @classmethod
    def build(cls, group: Group, source: Any, target: Any, context: Any, first: bool = False) -> Kernel:  # noqa: D102
        return WindowsKernel(cls(group.main), group, source, target, context, first)


class WindowsKernel(ByImages):
    """A pooling layer that no group takes along."""

    keeps_output = True

    def __init__(self, windows: Windows, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.windows, self.algorithm = windows, windows.algorithm
        layer: Any = self.group.main
        K, S, (N, H, W, C) = layer.kernel_size, layer.stride, self.group.input_shape
        if not (isinstance(K, (int, np.integer)) and isinstance(S, (int, np.integer))):
            raise ValueError(f"{layer.label}: kernel_size and stride must be whole numbers, not {K}, {S}")
        shape = N, (H - K) // S + 1, (W - K) // S + 1, C
        if self.group.output_shape != shape:
            raise ValueError(
                f"{layer.label}: windows of {K} in steps of {S} make {shape} of {self.group.input_shape}, "
                f"output_shape() says {self.group.output_shape}"
            )

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        super().reserve(arena, forward, backward)
        self.scratch = [  # of the forward pass, then of the backward pass
            [
                self.per_worker(arena, "scratch", self.block_shape, step, t)
                for t in self.windows.scratch_dtypes
            ]
            for step in (forward, backward)
            if step is not None
        ]

    def record_images(self, calls: Calls, images: Images) -> None:  # noqa: D102
        scratch = [first_of(buffers[images.worker], *images.y.shape) for buffers in self.scratch[0]]
        self.windows.record_forward(calls, self._windows(images.x), images.y, *scratch)

    def record_images_backward(self, calls: Calls, images: Images) -> None:  # noqa: D102
        x, y, dx, dy = images.x, images.y, images.dx, images.dy
        calls.copy(0, out=dx)
        scratch = [first_of(buffers[images.worker], *y.shape) for buffers in self.scratch[1]]
        self.windows.record_backward(calls, self._windows(x), y, dy, self._windows(dx), *scratch)

    def _windows(self, x: Array) -> list[Array]:
        """Return x at each place of all windows, K * K views (n, OH, OW, C)."""
        layer: Any = self.group.main
        K, S, (_, OH, OW, _) = layer.kernel_size, layer.stride, self.group.output_shape
        height, width = S * (OH - 1) + 1, S * (OW - 1) + 1
        return [x[:, i : i + height : S, j : j + width : S] for i in range(K) for j in range(K)]


class MaxPool(Windows):
    """Max pooling; of equal numbers the first in reading order counts, as in ``functional/pool.py``.

    With windows of 2 x 2, side by side, it is part of the group before it where that can take it along.
    """

    algorithm = "maximum"
    role = "pool"
    scratch_dtypes = np.bool_, np.uint8, None

    @classmethod
    def may_follow(cls, group: Group, layer: Any) -> bool:  # noqa: D102
        activation = group.activation_kernel
        return layer.kernel_size == layer.stride == 2 and (activation is None or activation.increasing)

    def record_forward(  # noqa: D102
        self, calls: Calls, windows: list[Array], y: Array, *scratch: Array
    ) -> None:
        calls.copy(windows[0], out=y)
        for x in windows[1:]:
            calls(np.maximum, y, x, out=y)

    def record_backward(  # noqa: D102
        self, calls: Calls, windows: list[Array], y: Array, dy: Array, dwindows: list[Array], *scratch: Array
    ) -> None:
        mask, winner, largest = scratch
        calls.copy(windows[0], out=largest)
        calls.copy(0, out=winner)
        for place, x in enumerate(windows[1:], 1):
            calls(np.greater, x, largest, out=mask)
            calls.call(np.copyto, winner, place, "unsafe", mask)  # the latest that was larger is the largest
            calls(np.maximum, largest, x, out=largest)
        for place, dx in enumerate(dwindows):
            calls(np.equal, winner, place, out=mask)
            calls(np.multiply, dy, mask, out=largest)
            calls(np.add, dx, largest, out=dx)
