"""What computes a group on a GPU, and the maps between groups."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from scratchnet.backend import Array
from scratchnet.plans.cuda.matmul import Matmul
from scratchnet.plans.cuda.weights import LowPrecisionWeights
from scratchnet.plans.grouping import Group
from scratchnet.plans.memory import Arena, Buffer


class Map:
    """A feature map (N, H, W, C), or features (N, C), and in training its gradient: with respect to all of
    it, so before any mask.

    Parameters
    ----------
    shape : tuple of int
    dtype : dtype
    source : Map, optional
        Whose memory this is, under another shape.
    """

    layout = ""

    def __init__(self, shape: tuple[int, ...], dtype: Any, source: Map | None = None):
        self.shape, self.dtype, self.source = tuple(shape), np.dtype(dtype), source
        self._data: Buffer | None = None
        self._grad: Buffer | None = None

    @property
    def is_view(self) -> bool:
        """Whether its memory is another map's."""
        return self.source is not None

    def reserve(self, arena: Arena, name: str, first_use: int, last_use: int) -> None:
        """Ask for memory for the map."""
        self._data = arena.reserve(name, self.shape, self.dtype, first_use, last_use)

    def reserve_grad(self, arena: Arena, name: str, first_use: int, last_use: int) -> None:
        """Ask for memory for its gradient."""
        self._grad = arena.reserve(name, self.shape, self.dtype, first_use, last_use)

    @property
    def data(self) -> Any:
        """The map."""
        return self._data.array if self.source is None else self.source.data.reshape(self.shape)

    @property
    def grad(self) -> Any:
        """Its gradient."""
        return self._grad.array if self.source is None else self.source.grad.reshape(self.shape)


@dataclass(frozen=True)
class PlanContext:
    """What all kernels of a plan have in common.

    Attributes
    ----------
    xp : module
        CuPy.
    training : bool
    matmul : Matmul
    operand : numpy.dtype
        Of what products read.
    weights : LowPrecisionWeights or None
        The parameters in that form; None for a network without any.
    """

    xp: Any
    training: bool
    matmul: Matmul
    operand: np.dtype
    weights: LowPrecisionWeights | None


class Kernel:
    """One group of layers, on given maps.

    First ``reserve`` asks for memory; when it is there, ``forward`` and ``backward`` launch, as often as one
    likes.

    Parameters
    ----------
    group : Group
        The layers.
    input, output : Map
    setting : Setting
    first : bool
        Whether the map before it is the network's input, whose gradient is rarely asked for.
    """

    algorithm = ""
    is_view = False  # whether its output is its input, under another shape
    keeps_output = False  # whether backward needs the output map, too
    replayable = True  # whether all that it does is launching, so that a graph can record it

    def __init__(self, group: Group, input: Map, output: Map, context: PlanContext, first: bool = False):
        self.group, self.input, self.output, self.context, self.first = group, input, output, context, first

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:
        """Ask for buffers that live at the step (see ``memory.py``) of the forward or the backward pass.

        For inference ``backward`` is None.
        """

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

    def describe(self) -> str:
        """Say in a few words how this kernel works on its map."""
        return ""


def front(buffer: Buffer, dtype: DTypeLike, *shape: int) -> Array:
    """Return the front of a buffer as an array of this dtype and shape."""
    dtype = np.dtype(dtype)
    flat = buffer.array.reshape(-1).view(np.uint8)
    return flat[: prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
