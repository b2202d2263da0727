"""Launches of ``kernels/average.cu``: global average pooling."""

from __future__ import annotations

from scratchnet.backend import Array
from scratchnet.plans.cuda.launch.common import by_channel, check
from scratchnet.plans.cuda.launch.compiling import launch


def average(x: Array, y: Array) -> None:
    """Write to y (N, C) the mean of every channel of x, as ``functional.global_avg_pool2d_forward`` does."""
    check(x, "float32", 4)
    N, H, W, C = x.shape
    check(y, "float32", (N, C))
    launch("average", "average", (), *by_channel(N, C), x, y, N, H * W, C)


def average_backward(dy: Array, dx: Array) -> None:
    """Write to every pixel of dx (N, H, W, C) its share of the gradient of the mean, dy (N, C)."""
    check(dx, "float32", 4)
    N, H, W, C = dx.shape
    check(dy, "float32", (N, C))
    launch("average", "average_backward", (), *by_channel(N * H * W, C), dy, dx, N, H * W, C)
