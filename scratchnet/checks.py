"""Checks of arguments at the public door: each error names the argument, what it must be and what came."""

from __future__ import annotations

from math import inf, isfinite
from numbers import Integral, Real
from typing import Any

MOST = 2**31 - 1  # of anything that is counted: beyond it nothing fits into a memory, or ends
SHOWN = 80  # characters of a value that is refused


def whole(least: int = 1, most: float = MOST, /, **arguments: Any) -> None:
    """Raise a ValueError unless every argument is a whole number of at least ``least``, and at most ``most``.

    >>> whole(kernel_size=0)
    Traceback (most recent call last):
    ValueError: kernel_size must be a whole number of at least 1, not 0
    >>> whole(epochs=10**30)
    Traceback (most recent call last):
    ValueError: epochs must be a whole number of at most 2147483647, not 1000000000000000000000000000000
    """
    for name, value in arguments.items():
        number = isinstance(value, Integral) and not isinstance(value, bool)
        if not number or not least <= value <= most:
            bound = f"at most {most}" if number and value > most else f"at least {least}"
            raise ValueError(f"{name} must be a whole number of {bound}, not {shown(value)}")


def seed(value: Any) -> None:
    """Raise a ValueError unless a seed is a whole number of at least 0, however large."""
    whole(0, inf, seed=value)


def real(low: float = -inf, high: float = inf, /, **arguments: Any) -> None:
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
            raise ValueError(f"{name} must be {wanted}, not {shown(value)}")


def shown(value: Any) -> str:
    """Write a value that is refused, in a few characters.

    >>> shown("a" * 1000)[-10:]
    'aaaaaa ...'
    """
    try:
        text = repr(value).replace("\n", " ")
    except ValueError:  # Python does not write so many digits
        return "a number of thousands of digits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False
