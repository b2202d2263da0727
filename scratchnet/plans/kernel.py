"""The bases that maps and kernels of both devices share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from scratchnet.backend import Array
from scratchnet.layers import Layer
from scratchnet.plans.memory import Arena, Buffer

ROLES = "norm", "activation", "pool", "dropout"  # what a group may take along, in this order


@dataclass(frozen=True)
class PlanContext:
    """What all kernels of a plan have in common; ``algorithm`` is as it was given to ``compile``."""

    training: bool
    dtype: np.dtype[Any]
    algorithm: str


@dataclass
class Group:
    """Layers that are computed together."""

    main: Layer  # the first of them
    layers: list[Layer]  # all of them, in order
    paths: list[str]  # where they stand in the network
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    kernels: tuple[type[Registrable], ...] = ()  # registered for the main layer; if none, its own passes run
    norm: Layer | None = None  # what was taken along
    activation: Layer | None = None  # it may be the main layer
    pool: Layer | None = None
    dropout: Layer | None = None
    activation_kernel: type[Any] | None = None  # what computes the activation

    @property
    def name(self) -> str:
        """Where the group stands, as in ``features.2-4``."""
        first, last = self.paths[0], self.paths[-1]
        return first if first == last else f"{first}-{last.rsplit('.', 1)[-1]}"

    @property
    def title(self) -> str:
        """What it is made of, as in ``Conv2d+ReLU+MaxPool2d``."""
        return "+".join(type(layer).__name__ for layer in self.layers)

    @property
    def learns(self) -> bool:
        """Whether any of its parameters is trainable."""
        return any(p.trainable for layer in self.layers for p in layer.parameters().values())

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of a forward pass, by the definition of its layers."""
        return self.main.multiply_adds(self.input_shape)


class Map:
    """A feature map and, in training, its gradient; of ``shape`` as the layers see it.

    With a ``source`` it is that map's memory, under another shape.
    """

    layout = ""

    def __init__(self, shape: tuple[int, ...], dtype: Any, source: Map | None = None):
        self.shape, self.dtype, self.source = tuple(shape), np.dtype(dtype), source
        self.buffers: dict[str, Buffer] = {}  # "data" and "grad", once they are reserved

    @property
    def is_view(self) -> bool:
        """Whether its memory is another map's."""
        return self.source is not None

    def memory_shape(self, *, grad: bool = False) -> tuple[int, ...]:
        """Return the shape of the array in memory."""
        return self.shape

    def reserve(self, arena: Arena, name: str, first: int, last: int, *, grad: bool = False) -> None:
        """Ask for memory for the map, or for its gradient, from its first use to its last."""
        shape = self.memory_shape(grad=grad)
        self.buffers["grad" if grad else "data"] = arena.reserve(name, shape, self.dtype, first, last)

    @property
    def data(self) -> Array:
        """The map's memory."""
        if self.source is not None:
            return self.source.data.reshape(self.memory_shape())
        return self.buffers["data"].array

    @property
    def grad(self) -> Array:
        """Its gradient's memory."""
        if self.source is not None:
            return self.source.grad.reshape(self.memory_shape(grad=True))
        return self.buffers["grad"].array

    def put(self, x: Array) -> None:
        """Copy an array, as the layers see it, into the map, now."""
        self.data[...] = x.reshape(self.data.shape)

    def take(self) -> Array:
        """Return a copy of the map as the layers see it, now."""
        return self.data.reshape(self.shape).copy()

    def take_gradient(self) -> Array:
        """Return a copy of the gradient as the layers see it, now."""
        return self.grad.reshape(self.shape).copy()


class Registrable(ABC):
    """What can be registered for a class of layers: it says which groups it computes, and makes kernels."""

    algorithm: str = ""  # its name, for ``compile(algorithm=...)`` and ``describe``
    family: ClassVar[str] = ""  # a name that it has in common with others: of these, the one that suits best
    takes: ClassVar[tuple[str, ...]] = ()  # which ROLES it computes along with its layer, if they follow it
    role: ClassVar[str] = ""  # which of ROLES its own layer has in a group that takes it along
    computes_role: ClassVar[str] = ""  # the role in which other kernels call it
    device: ClassVar[str] = ""  # on which it computes
    is_view: ClassVar[bool] = False  # whether its output is its input, under another shape

    @classmethod
    def may_follow(cls, group: Group, layer: Layer) -> bool:
        """Tell whether a group that takes this role along can take this layer."""
        return True

    @classmethod
    def does_nothing(cls, layer: Layer) -> bool:
        """Tell whether the layer's output is its input, so that a plan leaves it out."""
        return False

    @classmethod
    def supports(cls, groups: list[Group], i: int, context: PlanContext) -> bool:
        """Tell whether it can compute group i."""
        return True

    @classmethod
    def suits(cls, groups: list[Group], i: int, context: PlanContext) -> bool:
        """Tell whether to choose it for group i, if none that was registered later suits."""
        return cls.supports(groups, i, context)

    @classmethod
    @abstractmethod
    def build(cls, group: Group, source: Any, target: Any, context: Any, first: bool = False) -> Kernel:
        """Return the kernel of a group, on given maps."""


class Kernel(Registrable):
    """One group of layers, on given maps; ``first`` if below it nothing is trained: dx is rarely asked for.

    First ``reserve`` asks for memory; when it is there, the device's own methods follow.
    """

    keeps_output = False  # whether backward needs the output map, too

    def __init__(self, group: Group, source: Any, target: Any, context: Any, first: bool = False):
        self.group, self.input, self.output, self.context, self.first = group, source, target, context, first

    @classmethod
    def build(cls, group: Group, source: Any, target: Any, context: Any, first: bool = False) -> Kernel:  # noqa: D102
        return cls(group, source, target, context, first)

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:
        """Ask for buffers that are used at the step (see ``memory.py``) of the forward or the backward pass.

        For inference ``backward`` is None.
        """

    def describe(self) -> str:
        """Say in a few words how this kernel works on its map."""
        return ""


class View(Kernel):
    """The same numbers under another shape, so nothing to do."""

    algorithm = "view"
    is_view = True


class Fallback(Kernel):
    """A layer without a kernel: its own forward and backward, on the calling thread."""

    algorithm = "fallback"

    def run_forward(self) -> None:
        """Run the layer's forward pass, now."""
        layer, group = self.group.main, self.group
        # The layer gets an array of its own, and may keep it: this memory is soon used for other buffers.
        y = layer.forward(self.input.take())
        shape = getattr(y, "shape", type(y).__name__)
        if shape != group.output_shape:
            chain = (
                ", or chain() if it applies its layers one after the other" if any(layer.children()) else ""
            )
            raise ValueError(
                f"{layer.label}: forward returned {shape}, output_shape() promised "
                f"{group.output_shape}: define output_shape in {type(layer).__name__}{chain}"
            )
        self.output.put(y)

    def run_backward(self) -> None:
        """Run the layer's backward pass, now."""
        layer, group = self.group.main, self.group
        dx = layer.backward(self.output.take_gradient())
        shape = getattr(dx, "shape", type(dx).__name__)
        if shape != group.input_shape:
            raise ValueError(f"{layer.label}: backward returned {shape}, its input was {group.input_shape}")
        self.input.grad[...] = dx.reshape(self.input.grad.shape)
