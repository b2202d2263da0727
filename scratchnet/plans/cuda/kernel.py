"""What computes a group on a GPU, and the maps between groups."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from scratchnet.layers import Parameter
from scratchnet.plans.cuda.products import Products
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


class Operands:
    """The parameters as products read them: themselves, or all of them a second time as bfloat16.

    There is one for each network and precision, which all of its plans share: they are derived from the same
    values. ``SGD`` on the device writes them as it goes; whatever else changes parameters makes them stale.

    Parameters
    ----------
    buffer : FlatBuffer
    dtype : dtype
        Of operands, see ``modules.operand_dtype``.

    Attributes
    ----------
    flat : array (size,)
    version : int or None
        The buffer's, when they were derived.
    """

    def __init__(self, buffer: Any, dtype: Any):
        self.version: int | None = None
        self.separate = np.dtype(dtype) != buffer.dtype
        self.flat = buffer.backend.xp.empty(buffer.size, dtype) if self.separate else buffer.data

    def of(self, parameter: Parameter) -> Any:
        """Return the matrix of a weight, (everything before, outputs)."""
        return parameter.view(self.flat).reshape(-1, parameter.shape[-1])


@dataclass(frozen=True)
class PlanContext:
    """What all kernels of a plan have in common.

    Attributes
    ----------
    xp : module
        CuPy.
    training : bool
    products : Products
    operand : numpy.dtype
        Of what products read.
    operands : Operands or None
        The parameters in that form; None for a network without any.
    """

    xp: Any
    training: bool
    products: Products
    operand: np.dtype
    operands: Operands | None


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


def first_of(buffer: Buffer, dtype: Any, *shape: int) -> Any:
    """Return the beginning of a buffer as an array of this dtype and shape."""
    dtype = np.dtype(dtype)
    flat = buffer.array.reshape(-1).view(np.uint8)
    return flat[: prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


def gradient(parameter: Parameter) -> Any:
    """Return where a parameter's gradient goes, whether or not it has one yet."""
    return parameter.grad_view
