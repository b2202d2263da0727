"""The fully connected layer, and what turns feature maps into its rows (``functional/linear.py``)."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from scratchnet import functional as F
from scratchnet.backend import Array
from scratchnet.checks import whole
from scratchnet.initialise import fills
from scratchnet.layers.base import Layer
from scratchnet.layers.checking import check_shape
from scratchnet.layers.tree import assemble
from scratchnet.parameters import Parameter


class Linear(Layer):
    """Fully connected layer (``functional/linear.py``).

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    dtype, rng : as of every ``Layer``
    init : {"he", "pytorch", "normal"}, see ``initialise.py``

    Attributes
    ----------
    weight : Parameter (in_features, out_features)
    bias : Parameter (out_features,), or None

    Examples
    --------
    >>> Linear(512, 10).forward(np.zeros((8, 512), "float32")).shape
    (8, 10)
    """

    skips_input_gradient = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: DTypeLike = "float32",
        rng: np.random.Generator | None = None,
        init: str = "he",
    ):
        super().__init__(dtype=dtype)
        whole(in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = int(in_features), int(out_features)
        fill_weight, fill_bias = fills(init, in_features, rng)
        self.weight = Parameter(shape=(in_features, out_features), dtype=self.dtype, fill=fill_weight)
        self.bias = Parameter(shape=(out_features,), dtype=self.dtype, fill=fill_bias) if bias else None
        assemble(self)

    def forward(self, x: Array) -> Array:
        """Multiply (N, in_features) to (N, out_features)."""
        self.check_input(x, "N", self.in_features)
        bias = None if self.bias is None else self.bias.data
        return self.save_for_backward(*F.linear_forward(x, self.weight.data, bias))

    def backward(self, dy: Array, need_input_gradient: bool = True) -> Array | None:
        """Set the gradients of weight and bias; return dx, or None if it is not needed."""
        dx, self.weight.grad, dbias = F.linear_backward(dy, self.saved(dy), need_input_gradient)
        if self.bias is not None:
            self.bias.grad = dbias
        return dx

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:  # noqa: D102
        check_shape(self, shape, "N", self.in_features)
        return (shape[0], self.out_features)

    def multiply_adds(self, shape: tuple[int, ...]) -> int:  # noqa: D102
        return shape[0] * self.in_features * self.out_features

    def settings(self) -> dict[str, Any]:  # noqa: D102
        bias = self.bias is not None
        return {"in_features": self.in_features, "out_features": self.out_features, "bias": bias}


class Flatten(Layer):
    """Everything of an image in a row: (N, H, W, C) to (N, H*W*C).

    Parameters
    ----------
    dtype, rng : as of every ``Layer``

    Examples
    --------
    >>> Flatten().forward(np.zeros((8, 7, 7, 512))).shape
    (8, 25088)
    """

    def forward(self, x: Array) -> Array:
        """Reshape (N, ...) to (N, everything else)."""
        self.check_input(x)
        if not x.shape:
            raise ValueError(f"{self.label}: expected (N, ...), got ()")
        return self.save_for_backward(x.reshape(x.shape[0], -1), x.shape)

    def backward(self, dy: Array) -> Array:
        """Reshape back."""
        x_shape = self.saved(dy)
        return dy.reshape(x_shape)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:  # noqa: D102
        return (shape[0], prod(shape[1:]))
