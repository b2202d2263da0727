"""Max pooling, and the global average pooling that makes a network independent of the size of the image.

Symbols: N images, H x W pixels, C channels, OH x OW output pixels, K the side of a window, S the stride.
"""

from __future__ import annotations

from typing import Any

from scratchnet.backend import Array, array_module


def max_pool2d_forward(x: Array, kernel_size: int = 2, stride: int | None = None) -> tuple[Array, Any]:
    """Return the largest value of every K x K window.

    Parameters
    ----------
    x : array (N, H, W, C)
    kernel_size : int
        K. At most 16, since the position within a window is kept in a byte.
    stride : int, optional
        S; by default K, so that windows touch and do not overlap.

    Returns
    -------
    y : array (N, OH, OW, C)
        OH = (H - K) // S + 1: rows and columns that fill no whole window are left out.
    cache
        For ``max_pool2d_backward``: for every window which of its positions had the largest value, in a byte.
        Of equal values (common after a ReLU, where they are zeros) the first one counts.

    Examples
    --------
    >>> import numpy as np
    >>> y, cache = max_pool2d_forward(np.arange(16.0).reshape(1, 4, 4, 1))
    >>> y[0, :, :, 0]
    array([[ 5.,  7.],
           [13., 15.]])
    """
    xp = array_module(x)
    K, S = kernel_size, stride or kernel_size
    y = x[_at(x.shape, K, S, 0)].copy()  # (N, OH, OW, C), the largest so far
    winner = xp.zeros(y.shape, dtype="uint8")  # (N, OH, OW, C), its position
    for position in range(1, K * K):
        candidate = x[_at(x.shape, K, S, position)]  # (N, OH, OW, C)
        # Positions only grow, so the latest one that was larger than all before it is also the largest
        # number.
        xp.maximum(winner, (candidate > y) * xp.uint8(position), out=winner)
        xp.maximum(y, candidate, out=y)
    return y, (winner, x.shape, K, S)


def max_pool2d_backward(dy: Array, cache: Any) -> Array:
    """Return the gradient with respect to ``x``.

    y = x[winner] in each window, so dy goes to the winner, to exactly one position, and the others get zero.
    (A mask ``x == y`` would give it to all positions of a tie.) Where windows overlap, a pixel adds up what
    it gets from each.

    Parameters
    ----------
    dy : array (N, OH, OW, C)
    cache
        From ``max_pool2d_forward``.

    Returns
    -------
    dx : array (N, H, W, C)

    Examples
    --------
    >>> import numpy as np
    >>> _, cache = max_pool2d_forward(np.array([[4.0, 9.0], [9.0, 1.0]]).reshape(1, 2, 2, 1))
    >>> max_pool2d_backward(np.full((1, 1, 1, 1), 5.0), cache)[0, :, :, 0]
    array([[0., 5.],
           [0., 0.]])
    """
    winner, x_shape, K, S = cache
    dx = array_module(dy).zeros(x_shape, dtype=dy.dtype)
    for position in range(K * K):
        dx[_at(x_shape, K, S, position)] += dy * (winner == position)  # (N, OH, OW, C)
    return dx


def _at(x_shape: tuple[int, ...], K: int, S: int, position: int) -> tuple[slice, ...]:
    """Return the slices of x that hold the given position (counted row by row) of every window."""
    _, H, W, _ = x_shape
    OH, OW = (H - K) // S + 1, (W - K) // S + 1
    i, j = divmod(position, K)
    return slice(None), slice(i, i + S * (OH - 1) + 1, S), slice(j, j + S * (OW - 1) + 1, S)


def global_avg_pool2d_forward(x: Array) -> tuple[Array, Any]:
    """Return the mean of every channel over the image (Lin et al. 2014, sec. 3.2).

    Parameters
    ----------
    x : array (N, H, W, C)

    Returns
    -------
    y : array (N, C)
    cache
        For ``global_avg_pool2d_backward``.

    Examples
    --------
    >>> import numpy as np
    >>> global_avg_pool2d_forward(np.arange(4.0).reshape(1, 2, 2, 1))[0]
    array([[1.5]])
    """
    _, H, W, _ = x.shape
    y = x.sum(axis=2).sum(axis=1) / (H * W)  # (N, H, C), then (N, C)
    return y, x.shape


def global_avg_pool2d_backward(dy: Array, cache: Any) -> Array:
    """Return the gradient with respect to ``x``.

    y = (1 / HW) sum of x over H and W, so that every pixel gets dy / HW.

    Parameters
    ----------
    dy : array (N, C)
    cache
        From ``global_avg_pool2d_forward``.

    Returns
    -------
    dx : array (N, H, W, C)

    Examples
    --------
    >>> import numpy as np
    >>> _, cache = global_avg_pool2d_forward(np.zeros((1, 2, 2, 1)))
    >>> global_avg_pool2d_backward(np.array([[8.0]]), cache)[0, :, :, 0]
    array([[2., 2.],
           [2., 2.]])
    """
    N, H, W, C = cache
    dx = array_module(dy).empty(cache, dtype=dy.dtype)
    dx[...] = (dy / (H * W)).reshape(N, 1, 1, C)  # spread over (N, H, W, C)
    return dx
