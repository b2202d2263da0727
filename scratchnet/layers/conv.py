"""Convolution as a layer (``functional/conv.py``)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from scratchnet import functional as F
from scratchnet.backend import Array
from scratchnet.checks import whole
from scratchnet.initialise import fills
from scratchnet.layers.base import Layer
from scratchnet.layers.checking import check_fit, check_shape
from scratchnet.layers.tree import assemble
from scratchnet.parameters import Parameter


class Conv2d(Layer):
    """Convolution (``functional/conv.py``).

    Parameters
    ----------
    in_channels, out_channels : int
        C and O.
    kernel_size : int
        The side of the square kernel.
    stride, padding : int
        Padding is with zeros, on every side; the output size is rounded down.
    bias : bool
    dtype, rng : as of every ``Layer``
    init : {"he", "pytorch", "normal"}, see ``initialise.py``

    Attributes
    ----------
    weight : Parameter (kernel_size, kernel_size, in_channels, out_channels)
    bias : Parameter (out_channels,), or None

    Examples
    --------
    >>> Conv2d(3, 64).forward(np.zeros((8, 32, 32, 3), "float32")).shape
    (8, 32, 32, 64)
    """

    skips_input_gradient = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 1,
        bias: bool = True,
        *,
        dtype: DTypeLike = "float32",
        rng: np.random.Generator | None = None,
        init: str = "he",
    ):
        super().__init__(dtype=dtype)
        whole(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, stride=stride)
        whole(0, padding=padding)
        self.in_channels, self.out_channels = int(in_channels), int(out_channels)
        self.kernel_size, self.stride, self.padding = int(kernel_size), int(stride), int(padding)
        fill_weight, fill_bias = fills(init, kernel_size * kernel_size * in_channels, rng)
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        self.weight = Parameter(shape=shape, dtype=self.dtype, fill=fill_weight)
        self.bias = Parameter(shape=(out_channels,), dtype=self.dtype, fill=fill_bias) if bias else None
        assemble(self)

    def forward(self, x: Array) -> Array:
        """Convolve (N, H, W, in_channels) to (N, OH, OW, out_channels)."""
        self.check_input(x, "N", "H", "W", self.in_channels)
        check_fit(self, "kernel", self.kernel_size, x.shape, self.padding)
        bias = None if self.bias is None else self.bias.data
        return self.save_for_backward(*F.conv2d_forward(x, self.weight.data, bias, self.stride, self.padding))

    def backward(self, dy: Array, need_input_gradient: bool = True) -> Array | None:
        """Set the gradients of weight and bias; return dx, or None if it is not needed."""
        dx, self.weight.grad, dbias = F.conv2d_backward(dy, self.saved(dy), need_input_gradient)
        if self.bias is not None:
            self.bias.grad = dbias
        return dx

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:  # noqa: D102
        check_shape(self, shape, "N", "H", "W", self.in_channels)
        N, H, W, _ = shape
        size = [F.conv_output_size(s, self.kernel_size, self.stride, self.padding) for s in (H, W)]
        return (N, *size, self.out_channels)

    def multiply_adds(self, shape: tuple[int, ...]) -> int:  # noqa: D102
        N, OH, OW, O = self.output_shape(shape)
        return N * OH * OW * O * self.kernel_size**2 * self.in_channels

    def settings(self) -> dict[str, Any]:  # noqa: D102
        names = "in_channels", "out_channels", "kernel_size", "stride", "padding"
        return {name: getattr(self, name) for name in names} | {"bias": self.bias is not None}
