"""Numeric walks through one operation each, on a tiny input, to accompany a lecture.

``python -m scratchnet.explain conv --backward`` prints one; ``explain("conv")`` returns it. Every number is
computed by ``functional/`` (Winograd's by the matrices of ``plans/cpu/winograd/``) and again from
the step before: the page says where the two disagree.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from scratchnet.explain.page import Page

__all__ = ["OPERATIONS", "explain"]

# Operations, each with a line on what its walk shows.
OPERATIONS: dict[str, str] = {
    "conv": "convolution as a matrix product, and why col2im adds",
    "pool": "max pooling: windows, winners, ties, and the way back",
    "relu": "ReLU: what is negative becomes zero, and so does its gradient",
    "linear": "a linear layer: y = x W + b, and three gradients by the chain rule",
    "softmax": "softmax and cross-entropy: the shift, the loss, and p - t",
    "batchnorm": "batch normalisation: mean, variance, and three paths back",
    "winograd": "Winograd's F(4x4, 3x3): 36 multiplications in place of 144",
}
LARGEST = 12


def explain(
    operation: str,
    size: int = 4,
    backward: bool = False,
    *,
    seed: int = 0,
    channels: int | None = None,
    stride: int | None = None,
    padding: int | None = None,
    colour: bool = False,
) -> str:
    """Walk through one operation with numbers.

    Parameters
    ----------
    operation : str
        A name in ``OPERATIONS``.
    size : int
        Of the tiny input: the side of the image for conv, pool and relu; the number of features, classes or
        values per channel for linear, softmax and batchnorm. From 2 to 12; winograd's is always 4.
    backward : bool
        Whether to walk back as well, with a central difference beside each gradient.
    seed : int
        Of the random numbers.
    channels, stride, padding : int, optional
        For the operations that have them: conv (by default 1, 1 and 0) and pool (stride 2).
    colour : bool
        Whether to colour marked numbers, for a terminal.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If there is no such operation, or not of that size.

    Examples
    --------
    >>> print(explain("relu", size=2))  # doctest: +NORMALIZE_WHITESPACE
    ReLU: what is negative becomes zero, and so does its gradient
    =============================================================
    <BLANKLINE>
    1. The maximum with zero
    ------------------------
    <BLANKLINE>
    y = max(x, 0), number by number. Positive numbers, in brackets, pass unchanged.
    <BLANKLINE>
      x  (2, 2)        y  (2, 2)
        0 [ 1]   ->     0 [1]
        0  -2           0  0
    <BLANKLINE>
      Equal to each number compared with zero: yes
    <BLANKLINE>
    The backward pass keeps y, and not x: y is positive exactly where x is.
    """
    sizes = {"channels": channels, "stride": stride, "padding": padding}
    return str(write(operation, size, backward, seed=seed, colour=colour, **sizes))


def write(
    operation: str,
    size: int = 4,
    backward: bool = False,
    *,
    seed: int = 0,
    colour: bool = False,
    **given: Any,
) -> Page:
    """Return the page of a walk. See ``explain`` for the arguments."""
    if operation not in OPERATIONS:
        raise ValueError(f"the operation must be one of {', '.join(OPERATIONS)}, not {operation!r}")
    if not 2 <= size <= LARGEST:
        raise ValueError(f"the size must be a whole number from 2 to {LARGEST}, not {size}")
    walk = importlib.import_module(f"scratchnet.explain.{operation}").walk
    given = {name: value for name, value in given.items() if value is not None}
    for name in given.keys() - inspect.signature(walk).parameters.keys():
        raise ValueError(f"{operation} has no {name}: leave it out")
    page = Page(colour)
    title = OPERATIONS[operation]
    page.lines += [title[0].upper() + title[1:], "=" * len(title), ""]
    walk(page, size, backward, seed, **given)
    return page
