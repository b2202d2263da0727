"""Dropout: in training, forget a random part of the activations (Srivastava et al. 2014)."""

from __future__ import annotations

from typing import Any

from scratchnet.backend import Array


def dropout_forward(x: Array, keep: Array, p: float) -> tuple[Array, Any]:
    """Set the activations that are not kept to zero, and scale the others by 1 / (1 - p).

    With that scale ("inverted dropout") the expected value of every activation stays what it was, so that
    nothing has to be done in evaluation.

    Parameters
    ----------
    x : array of any shape
    keep : bool array, shape of x
        True with probability 1 - p. It is an argument, so that this function is one of arrays only: the layer
        draws it.
    p : float
        The share that is dropped, in [0, 1].

    Returns
    -------
    y : array, shape and dtype of x
    cache
        For ``dropout_backward``.

    Examples
    --------
    >>> import numpy as np
    >>> dropout_forward(np.ones(4), np.array([True, False, True, False]), p=0.5)[0]
    array([2., 0., 2., 0.])
    """
    scale = 1.0 / (1.0 - p) if p < 1.0 else 0.0
    y = x * keep  # shape of x
    y *= scale
    return y, (keep, scale)


def dropout_backward(dy: Array, cache: Any) -> Array:
    """Return the gradient with respect to ``x``.

    y = x * keep / (1 - p) elementwise, and ``keep`` does not depend on x: so dx = dy * keep / (1 - p).

    Parameters
    ----------
    dy : array, shape of y
    cache
        From ``dropout_forward``.

    Returns
    -------
    dx : array, shape of y

    Examples
    --------
    What was dropped gets no gradient, and the rest what it was scaled by:

    >>> import numpy as np
    >>> y, cache = dropout_forward(np.ones(4), np.array([True, False, True, False]), p=0.5)
    >>> dropout_backward(np.ones(4), cache)
    array([2., 0., 2., 0.])
    """
    keep, scale = cache
    dx = dy * keep  # shape of x
    dx *= scale
    return dx
