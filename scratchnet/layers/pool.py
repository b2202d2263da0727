"""Pooling: the largest value of each window, or the mean of each channel (``functional/pool.py``)."""

from __future__ import annotations

from typing import Any

from scratchnet import functional as F
from scratchnet.backend import Array
from scratchnet.checks import whole
from scratchnet.layers.base import Layer
from scratchnet.layers.checking import check_fit, check_shape


class MaxPool2d(Layer):
    """The largest value of each window (``functional/pool.py``).

    Parameters
    ----------
    kernel_size : int
        The side of the square window, at most 16.
    stride : int, optional
        By default ``kernel_size``.
    dtype, rng : as of every ``Layer``

    Examples
    --------
    >>> import numpy as np
    >>> MaxPool2d(2).forward(np.zeros((8, 32, 32, 64), "float32")).shape
    (8, 16, 16, 64)
    """

    def __init__(self, kernel_size: int = 2, stride: int | None = None, **common: Any):
        super().__init__(**common)
        stride = kernel_size if stride is None else stride
        whole(kernel_size=kernel_size, stride=stride)
        if kernel_size > 16:
            raise ValueError(f"kernel_size must be at most 16, not {kernel_size}")
        self.kernel_size, self.stride = int(kernel_size), int(stride)

    def forward(self, x: Array) -> Array:
        """Pool (N, H, W, C) to (N, OH, OW, C)."""
        self.check_input(x, "N", "H", "W", "C")
        check_fit(self, "window", self.kernel_size, x.shape)
        return self.save_for_backward(*F.max_pool2d_forward(x, self.kernel_size, self.stride))

    def backward(self, dy: Array) -> Array:
        """Give each dy to the largest value of its window, of equal ones to the first."""
        return F.max_pool2d_backward(dy, self.saved(dy))

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:  # noqa: D102
        check_shape(self, shape, "N", "H", "W", "C")
        N, H, W, C = shape
        return (N, *(F.conv_output_size(s, self.kernel_size, self.stride) for s in (H, W)), C)

    def settings(self) -> dict[str, Any]:  # noqa: D102
        return {"kernel_size": self.kernel_size, "stride": self.stride}


class GlobalAvgPool2d(Layer):
    """The mean of each channel over the image, (N, H, W, C) to (N, C) (``functional/pool.py``).

    Parameters
    ----------
    dtype, rng : as of every ``Layer``

    Examples
    --------
    >>> import numpy as np
    >>> GlobalAvgPool2d().forward(np.ones((8, 7, 7, 512), "float32")).shape
    (8, 512)
    """

    def forward(self, x: Array) -> Array:
        """Average (N, H, W, C) to (N, C)."""
        self.check_input(x, "N", "H", "W", "C")
        return self.save_for_backward(*F.global_avg_pool2d_forward(x))

    def backward(self, dy: Array) -> Array:
        """Give every pixel its share."""
        return F.global_avg_pool2d_backward(dy, self.saved(dy))

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:  # noqa: D102
        check_shape(self, shape, "N", "H", "W", "C")
        return (shape[0], shape[3])
