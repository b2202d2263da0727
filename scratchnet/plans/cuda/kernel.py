"""What computes a group on a GPU, and the maps between groups."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from scratchnet.backend import Array
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
        The parameters in that form; None for a network without any.
    """

    xp: Any
    matmul: Matmul
    operand: np.dtype
    weights: LowPrecisionWeights | None


class Kernel(kernel.Kernel):
    """One group of layers, on given maps, whose gradients are those before any mask.

    First ``reserve`` asks for memory; when it is there, ``forward`` and ``backward`` launch, any number of
    times.
    """

    replayable = True  # whether all that it does is launching, so that a graph can record it
    context: PlanContext

    def forward(self) -> None:
        """Launch the forward pass: input.data to output.data."""
        raise NotImplementedError

    def backward(self, need_input_gradient: bool) -> None:
        """Launch the backward pass: output.grad to input.grad, and the gradients of the parameters.

        With ``need_input_gradient`` False input.grad may be left as it is.
        """
        raise NotImplementedError

    def constants(self) -> tuple:
        """Return the numbers and arrays among a launch's arguments that may be exchanged later.

        (Not parameters and probabilities: a plan whose parameters move is stale.)
        """
        return ()


def front(buffer: Buffer, dtype: DTypeLike, *shape: int) -> Array:
    """Return the front of a buffer as an array of this dtype and shape."""
    dtype = np.dtype(dtype)
    flat = buffer.array.reshape(-1).view(np.uint8)
    return flat[: prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
