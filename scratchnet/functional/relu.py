"""The rectified linear unit: what is negative becomes zero."""

from __future__ import annotations

from typing import Any

from scratchnet.backend import Array, array_module


def relu_forward(x: Array) -> tuple[Array, Any]:
    """Return max(x, 0), elementwise.

    Parameters
    ----------
    x : array of any shape

    Returns
    -------
    y : array, shape and dtype of x
    cache
        ``y`` itself: it is positive exactly where ``x`` is, and the next layer keeps it anyway, so
        remembering it costs no memory.

    Examples
    --------
    >>> import numpy as np
    >>> relu_forward(np.array([-1.0, 0.0, 2.0]))[0]
    array([0., 0., 2.])
    """
    y = array_module(x).maximum(x, 0)  # shape of x
    return y, y


def relu_backward(dy: Array, cache: Any) -> Array:
    """Return the gradient with respect to ``x``.

    y = max(x, 0), so dy/dx is 1 where x > 0 and 0 where x < 0. At x = 0 there is no derivative; any number
    between 0 and 1 is a subgradient, and everybody takes 0 (Nair and Hinton 2010; Goodfellow et al. 2016,
    sec. 6.3).

    Parameters
    ----------
    dy : array, shape of y
    cache
        From ``relu_forward``.

    Returns
    -------
    dx : array, shape of y

    Examples
    --------
    >>> import numpy as np
    >>> _, cache = relu_forward(np.array([-1.0, 0.0, 2.0]))
    >>> relu_backward(np.array([5.0, 5.0, 5.0]), cache)
    array([0., 0., 5.])
    """
    y = cache
    return dy * (y > 0)  # shape of x
