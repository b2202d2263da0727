"""Layers that are made of layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from scratchnet.backend import Array
from scratchnet.layers.base import Layer
from scratchnet.layers.tree import assemble, listed


class Chain(Layer):
    """A composite that applies the layers of its ``chain()`` one after the other.

    Derive from it where a network is a chain and its layers have names of their own.

    Parameters
    ----------
    dtype, rng : as of every ``Layer``; the layers bring their own

    Attributes
    ----------
    info : dict
        Of a network that was loaded from a file, what the file says about it, such as ``class_names``.

    Examples
    --------
    >>> import numpy as np
    >>> from scratchnet.layers import Flatten, Linear
    >>> class Classifier(Chain):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.flatten, self.linear = Flatten(), Linear(12, 2)
    ...
    ...     def chain(self):
    ...         return [self.flatten, self.linear]
    >>> Classifier().forward(np.zeros((8, 2, 2, 3), "float32")).shape
    (8, 2)
    """

    skips_input_gradient = True
    info: dict[str, Any]

    def chain(self) -> Sequence[Layer]:
        """Return the layers, first to last."""
        raise NotImplementedError(f"{type(self).__name__} has no chain")

    def forward(self, x: Array) -> Array:
        """Run all layers, first to last."""
        for layer in listed(self, self.chain()):
            x = layer.forward(x)
        return x

    def backward(self, dy: Array, need_input_gradient: bool = True) -> Array | None:
        """Run all layers back, last to first.

        Parameters
        ----------
        dy : array, shape of the output
        need_input_gradient : bool
            False leaves out the work that only the gradient of the input needs; then None is returned.
        """
        layers = listed(self, self.chain())
        if not need_input_gradient:
            while layers and not any(p.trainable for p in layers[0].parameters().values()):
                layers.pop(0).clear_saved()
        for layer in reversed(layers):
            if layer is layers[0] and layer.skips_input_gradient and not need_input_gradient:
                layer.backward(dy, need_input_gradient=False)  # type: ignore[call-arg]
            else:
                dy = layer.backward(dy)
        return dy if need_input_gradient else None


class Sequential(Chain):
    """Layers one after the other.

    Parameters
    ----------
    *layers : Layer
    dtype, rng : as of every ``Layer``; the layers bring their own

    Examples
    --------
    >>> import numpy as np
    >>> from scratchnet.layers import Conv2d, GlobalAvgPool2d, Linear, ReLU
    >>> net = Sequential(Conv2d(3, 8), ReLU(), GlobalAvgPool2d(), Linear(8, 10))
    >>> net.forward(np.zeros((2, 32, 32, 3), "float32")).shape
    (2, 10)
    >>> net[3]
    Linear(in_features=8, out_features=10, bias=True)
    """

    def __init__(self, *layers: Layer, **common: Any):
        super().__init__(**common)
        for layer in layers:
            if not isinstance(layer, Layer):
                kind = type(layer).__name__
                raise ValueError(f"Sequential takes layers, not {kind}: Sequential(Conv2d(3, 8), ReLU())")
        self.layers = list(layers)
        assemble(self)

    def chain(self) -> Sequence[Layer]:
        """Return the layers, first to last."""
        return self.layers

    def children(self) -> Iterator[tuple[str, Layer]]:
        """Yield the layers, named by their index."""
        return ((str(i), layer) for i, layer in enumerate(self.layers))

    def __getitem__(self, index: int) -> Layer:
        return self.layers[index]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        lines = [f"  ({name}): " + repr(layer).replace("\n", "\n  ") for name, layer in self.children()]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])
