"""Checks of arguments at the public door: each error names the argument, what it must be and what came."""

from __future__ import annotations

from math import inf, isfinite
from numbers import Integral, Real
from typing import Any


def whole(least: int = 1, **arguments: Any) -> None:
    """Raise a ValueError unless every argument is a whole number of at least ``least``.

    >>> whole(kernel_size=0)
    Traceback (most recent call last):
    ValueError: kernel_size must be a whole number of at least 1, not 0
    """
    for name, value in arguments.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")


def real(low: float = -inf, high: float = inf, **arguments: Any) -> None:
    """Raise a ValueError unless every argument is a finite number with ``low <= number <= high``.

    >>> real(0.0, lr=inf)
    Traceback (most recent call last):
    ValueError: lr must be a finite number of at least 0, not inf
    >>> real(0.0, 1.0, p=2)
    Traceback (most recent call last):
    ValueError: p must be a number between 0 and 1, not 2
    """
    for name, value in arguments.items():
        if not _is_finite(value) or not low <= value <= high:
            wanted = f"a finite number of at least {low:g}" if isfinite(low) else "a finite number"
            if isfinite(low) and isfinite(high):
                wanted = f"a number between {low:g} and {high:g}"
            raise ValueError(f"{name} must be {wanted}, not {value!r}")


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False
