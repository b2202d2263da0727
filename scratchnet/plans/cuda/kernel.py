"""The base of all kernels of a plan on a GPU, and what they have in common."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from scratchnet.backend import Array
from scratchnet.layers import Dropout
from scratchnet.parameters import Parameter
from scratchnet.plans import kernel
from scratchnet.plans.cuda.matmul import Matmul
from scratchnet.plans.cuda.weights import LowPrecisionWeights
from scratchnet.plans.memory import Buffer


@dataclass(frozen=True)
class PlanContext(kernel.PlanContext):
    """What all kernels of a plan on a GPU have in common.

    Attributes
    ----------
    xp : module
        CuPy.
    matmul : Matmul
    operand : numpy.dtype
        Of what products read.
    weights : LowPrecisionWeights or None
        The parameters in that form; None if there are none, or they are not float32.
    """

    xp: ModuleType
    matmul: Matmul
    operand: np.dtype[Any]
    weights: LowPrecisionWeights | None


class Kernel(kernel.Kernel):
    """One group of layers, on given maps in float32, whose gradients are those before any mask.

    First ``reserve`` asks for memory; when it is there, ``forward`` and ``backward`` launch, any number of
    times.

    Attributes
    ----------
    replayable : bool
        Whether all that it does is launching, so that a graph can record it.
    dropout : Dropout or None
        The layer for which it drops numbers.
    counter : int64 (1,)
        In device memory, set by the plan where there is a ``dropout``: which numbers it drops next.
    """

    replayable = True
    dropout: Dropout | None = None
    counter: Array
    context: PlanContext

    def forward(self) -> None:
        """Launch the forward pass: input.data to output.data."""
        raise NotImplementedError

    def backward(self, need_input_gradient: bool) -> None:
        """Launch the backward pass: output.grad to input.grad, and the gradients of the parameters.

        With ``need_input_gradient`` False input.grad may be left as it is.
        """
        raise NotImplementedError

    def matrix(self, weight: Parameter) -> Array:
        """Return a weight as products read it, (everything before, outputs)."""
        assert self.context.weights is not None  # since there is a parameter
        return self.context.weights.matrix(weight)

    def constants(self) -> tuple[Any, ...]:
        """Return the numbers and arrays among a launch's arguments that may be exchanged later.

        (Not parameters and a layer's settings: a plan is stale after they have changed.)
        """
        return ()


def front(buffer: Buffer, dtype: DTypeLike, *shape: int) -> Array:
    """Return the front of a buffer as an array of this dtype and shape."""
    dtype = np.dtype(dtype)
    flat = buffer.array.reshape(-1).view(np.uint8)
    return flat[: prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
