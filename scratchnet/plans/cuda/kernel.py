"""The base of all kernels of a plan on a GPU, and what they have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import prod
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from scratchnet.backend import Array
from scratchnet.layers import Dropout
from scratchnet.layers.norm import BatchNorm
from scratchnet.parameters import Parameter
from scratchnet.plans import kernel
from scratchnet.plans.cuda.launch.compiling import address
from scratchnet.plans.cuda.matmul import Matmul
from scratchnet.plans.cuda.weights import LowPrecisionWeights
from scratchnet.plans.memory import Buffer


@dataclass(frozen=True)
class PlanContext(kernel.PlanContext):
    """What all kernels of a plan on a GPU have in common."""

    xp: ModuleType  # CuPy
    matmul: Matmul
    operand: np.dtype[Any]  # of what products read
    weights: LowPrecisionWeights | None  # the parameters in that form; None if there are none, or not float32


class Kernel(kernel.Kernel):
    """One group of layers, on given maps in float32, whose gradients are those before any mask.

    When ``reserve`` has asked for memory and it is there, ``forward`` and ``backward`` launch, any number of
    times.
    """

    device = "cuda"
    replayable = True  # whether all that it does is launching, so that a graph can record it
    dropout: Dropout | None = None  # the layer for which it drops numbers
    norm: BatchNorm | None = None  # the layer whose running statistics it reads
    counter: Array  # int64 (1,), in device memory, set by the plan where there is one: what it drops next
    context: PlanContext

    @abstractmethod
    def forward(self) -> None:
        """Launch the forward pass: input.data to output.data."""

    @abstractmethod
    def backward(self, need_input_gradient: bool) -> None:
        """Launch the backward pass: output.grad to input.grad, and the gradients of the parameters.

        With ``need_input_gradient`` False input.grad may be left as it is.
        """

    def follow(self, before: Kernel) -> None:
        """Learn which kernel writes this one's input, before either reserves memory."""

    def prepare(self) -> None:
        """Allocate what keeps its contents from one pass to the next, once the plan has its memory."""

    def leave_out_bias(self) -> Parameter | None:
        """Leave the bias out of the output, forward and backward, and return it, if there is one.

        A batch normalisation that follows takes a channel's mean away, and with it whatever was added to the
        whole channel: the bias moves the running mean, and its gradient is zero.
        """
        return None

    def matrix(self, weight: Parameter) -> Array:
        """Return a weight as products read it, (everything before, outputs)."""
        assert self.context.weights is not None  # since there is a parameter
        return self.context.weights.matrix(weight)

    def constants(self) -> tuple[Any, ...]:
        """Return where arrays among a launch's arguments are that may be exchanged later.

        (Not parameters and a layer's settings: a plan is stale after they have changed.)
        """
        norm = self.norm
        return () if norm is None else (address(norm.running_mean), address(norm.running_var))


def front(buffer: Buffer, dtype: DTypeLike, *shape: int) -> Array:
    """Return the front of a buffer as an array of this dtype and shape."""
    dtype = np.dtype(dtype)
    flat = buffer.array.reshape(-1).view(np.uint8)
    return flat[: prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
