"""The fully connected layer: one matrix product and a bias.

Symbols: N images in the batch, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

from scratchnet.backend import Array
from scratchnet.functional.sums import channel_sum


def linear_forward(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Any]:
    """Return x W + b.

    Parameters
    ----------
    x : array (N, I)
    weight : array (I, O)
    bias : array (O,), optional

    Returns
    -------
    y : array (N, O)
    cache
        For ``linear_backward``.

    Examples
    --------
    >>> import numpy as np
    >>> linear_forward(np.array([[1.0, 2.0]]), np.array([[1.0], [10.0]]), np.array([0.5]))[0]
    array([[21.5]])
    """
    y = x @ weight  # (N, O)
    if bias is not None:
        y += bias
    return y, (x, weight, bias is not None)


def linear_backward(dy: Array, cache: Any, need_dx: bool = True) -> tuple[Any, Any, Any]:
    """Return the gradients with respect to ``x``, ``weight`` and ``bias``.

    y[n, o] = sum_i x[n, i] W[i, o] + b[o]. By the chain rule, every gradient is dy times the other factor,
    summed over the index that the two share (Goodfellow et al. 2016, sec. 6.5.6)::

        dx[n, i] = sum_o dy[n, o] W[i, o]        dx = dy W^T
        dW[i, o] = sum_n x[n, i] dy[n, o]        dW = x^T dy
        db[o]    = sum_n dy[n, o]

    Parameters
    ----------
    dy : array (N, O)
    cache
        From ``linear_forward``.
    need_dx : bool
        False for the first layer of a network: the gradient of the image is not needed.

    Returns
    -------
    dx : array (N, I), or None
    dweight : array (I, O)
    dbias : array (O,), or None where there was no bias

    Examples
    --------
    >>> import numpy as np
    >>> _, cache = linear_forward(np.array([[1.0, 2.0]]), np.array([[1.0], [10.0]]), np.array([0.5]))
    >>> dx, dweight, dbias = linear_backward(np.array([[3.0]]), cache)
    >>> dx, dweight.ravel(), dbias
    (array([[ 3., 30.]]), array([3., 6.]), array([3.]))
    """
    x, weight, has_bias = cache
    dx = dy @ weight.T if need_dx else None  # (N, I)
    dweight = x.T @ dy  # (I, O)
    dbias = channel_sum(dy) if has_bias else None  # (O,)
    return dx, dweight, dbias
