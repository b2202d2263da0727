"""Sums over a feature map, one number per channel: the gradient of a bias, the mean of a batch."""

from __future__ import annotations

from scratchnet.backend import Array


def channel_sum(x: Array) -> Array:
    """Add up every axis but the last.

    One axis after the other, from the inside: a float32 running total over the 131,072 pixels of a batch
    would lose three digits, since each addition rounds at the size of the total; short sums of short sums
    lose hardly any (Higham 1993, "The accuracy of floating point summation", sec. 3).

    Parameters
    ----------
    x : array (..., C)

    Returns
    -------
    array (C,)

    Examples
    --------
    >>> import numpy as np
    >>> channel_sum(np.ones((2, 4, 4, 3), "float32"))
    array([32., 32., 32.], dtype=float32)
    """
    while x.ndim > 1:
        x = x.sum(axis=-2)
    return x
