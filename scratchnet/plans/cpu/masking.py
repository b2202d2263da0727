"""Masks: what a gradient is multiplied by on its way back through an activation, and who does it.

A group applies its activation to its output while that is in the cache, and the derivative is best applied in
the same way. So the gradient of a map is multiplied by the derivative of the activation that the map came out
of by the kernel that writes this gradient, the one that reads the map, block by block. What stands in
``map.grad`` is then the gradient with respect to what went into the activation.

The derivative has to be a function of the output y. For ReLU it is (y > 0), and with a dropout after it
(y > 0) / (1 - p): y is positive exactly where both let a number pass.

Four rules:

- A plan gives every map its mask when it makes the map; no kernel changes it. A view has its source's.
- A kernel that writes ``input.grad`` masks all of it, once, with ``Kernel.mask_gradient``. For one that never
  calls that the plan does it, after the kernel.
- The gradient of a plan's output is written, and so masked, by the plan.
- A mask that ``clears`` leaves zeros where the map has zeros, see ``padding.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchnet.backend import Array
from scratchnet.plans.cpu.calls import Calls, cache_sized


class Mask:
    """What the gradient of a map is multiplied by: the derivative of the ``Elementwise`` that it came out of.

    ``scale`` is 1 / (1 - p) after a dropout.
    """

    def __init__(self, activation: Any = None, scale: float = 1.0):
        self.activation, self.scale = activation, scale

    @property
    def clears(self) -> bool:
        """Whether a gradient becomes zero where the map is zero."""
        return self.activation is not None and self.activation.zero_derivative_at_zero

    def record(self, calls: Calls, gradient: Array, data: Array, scratch: Array) -> None:
        """Record what turns a gradient into the one with respect to the activation's input.

        ``gradient`` and ``data`` are views of one shape, of the map's gradient and of the map; ``scratch``
        has CACHE_ELEMENTS elements of its ``scratch_dtype``, or as many as the views.
        """
        if self.activation is None:
            return
        for dy, y in cache_sized(gradient, data):
            self.activation.record_backward(calls, dy, y, scratch[: dy.size].reshape(dy.shape))
            if self.scale != 1.0:
                calls(np.multiply, dy, dy.dtype.type(self.scale), out=dy)
