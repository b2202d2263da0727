"""Checks of arguments at the public door: each error names the argument, what it must be and what came."""

from __future__ import annotations

from math import isfinite
from numbers import Integral, Real
from typing import Any


def whole(least: int = 1, **arguments: Any) -> None:
    """Check that every argument is a whole number of at least ``least``.

    Parameters
    ----------
    least : int
    **arguments
        From the name of an argument to its value.

    Raises
    ------
    ValueError
        For the first that is not, with its name and value.

    Examples
    --------
    >>> whole(kernel_size=0)
    Traceback (most recent call last):
    ValueError: kernel_size must be a whole number of at least 1, not 0
    """
    for name, value in arguments.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")


def real(low: float = float("-inf"), high: float = float("inf"), **arguments: Any) -> None:
    """Check that every argument is a finite number with ``low <= number <= high``.

    Parameters
    ----------
    low, high : float
    **arguments
        From the name of an argument to its value.

    Raises
    ------
    ValueError
        For the first that is not, with its name and value.

    Examples
    --------
    >>> real(0.0, lr=float("inf"))
    Traceback (most recent call last):
    ValueError: lr must be a finite number of at least 0, not inf
    >>> real(0.0, 1.0, p=2)
    Traceback (most recent call last):
    ValueError: p must be a number between 0 and 1, not 2
    """
    for name, value in arguments.items():
        if not _is_finite(value) or not low <= value <= high:
            if isfinite(low) and isfinite(high):
                wanted = f"a number between {low:g} and {high:g}"
            elif isfinite(low):
                wanted = f"a finite number of at least {low:g}"
            else:
                wanted = "a finite number"
            raise ValueError(f"{name} must be {wanted}, not {value!r}")


def _is_finite(value: Any) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False
