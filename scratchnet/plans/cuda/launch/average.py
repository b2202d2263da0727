"""Launches of ``kernels/average.cu``: global average pooling."""

from __future__ import annotations

import numpy as np

from scratchnet.backend import Array
from scratchnet.plans.cuda.launch.common import by_channel, check
from scratchnet.plans.cuda.launch.compiling import launch


def average(x: Array, y: Array) -> None:
    """Compute the mean of every channel over the image, as ``functional.global_avg_pool2d_forward`` does.

    Parameters
    ----------
    x : float32 (N, H, W, C)
    y : float32 (N, C)
        Written.
    """
    check(x, "float32", 4)
    N, H, W, C = x.shape
    check(y, "float32", (N, C))
    launch("average", "average", (), *by_channel(N, C), x, y, np.int32(N), np.int32(H * W), np.int32(C))


def average_backward(dy: Array, dx: Array) -> None:
    """Give every pixel its share of the gradient of the mean.

    Parameters
    ----------
    dy : float32 (N, C)
    dx : float32 (N, H, W, C)
        Written.
    """
    check(dx, "float32", 4)
    N, H, W, C = dx.shape
    check(dy, "float32", (N, C))
    sizes = np.int32(N), np.int32(H * W), np.int32(C)
    launch("average", "average_backward", (), *by_channel(N * H * W, C), dy, dx, *sizes)
