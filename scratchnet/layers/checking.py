"""Checks of what reaches a layer: arrays, gradients and attributes. Each error names the layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from scratchnet.backend import Array, array_module
from scratchnet.parameters import Parameter

if TYPE_CHECKING:
    from scratchnet.layers.base import Layer


def checked_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return the element type, which must be one that layers compute in.

    Examples
    --------
    >>> checked_dtype("float32")
    dtype('float32')
    """
    kind = np.dtype(dtype)
    if kind not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, not {kind}")
    return kind


def check_input(layer: Layer, x: Array, axes: tuple[str | int, ...], hint: str = "") -> None:
    """Raise a ValueError that names the layer, what was expected and what came.

    Parameters
    ----------
    layer : Layer
    x : array
    axes : tuple of str or int
        For each axis the size that it must have, or a letter where any size will do.
    hint : str
        Ends the message.

    Examples
    --------
    >>> from scratchnet.layers import ReLU
    >>> check_input(ReLU(), np.zeros((2, 4)), ("N", 5))
    Traceback (most recent call last):
    ValueError: ReLU: expected (N, 5), got (2, 4)
    """
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise ValueError(f"{layer.label}: expected an array, got {type(x).__name__}")
    if axes:
        check_shape(layer, x.shape, *axes, hint=hint)
    if 0 in x.shape:
        raise ValueError(f"{layer.label}: the input is empty, {tuple(x.shape)}")
    parameter = next((value for value in vars(layer).values() if isinstance(value, Parameter)), None)
    if parameter is not None:
        if x.dtype != layer.dtype:
            raise ValueError(f"{layer.label}: expected {layer.dtype}, got {x.dtype}")
        if array_module(x) is not parameter.buffer.backend.xp:
            raise ValueError(
                f"{layer.label}: the network is on {parameter.buffer.backend.name}, the input is not: "
                "use net.backend.asarray(x)"
            )


def check_shape(layer: Layer, shape: tuple[int, ...], *axes: str | int, hint: str = "") -> None:
    """Raise a ValueError if an input of this shape does not fit the layer."""
    wrong = len(shape) != len(axes) or any(
        isinstance(axis, int) and axis != size for axis, size in zip(axes, shape, strict=True)
    )
    if wrong:
        hint = f": {hint}" if hint else ""
        wanted = ", ".join(map(str, axes)) + ("," if len(axes) == 1 else "")
        raise ValueError(f"{layer.label}: expected ({wanted}), got {tuple(shape)}{hint}")


def check_gradient(layer: Layer, saved: tuple[Any, tuple[int, ...]] | None, dy: Array) -> Any:
    """Return the cache of what a forward saved, if the gradient has the shape of that forward's output.

    Parameters
    ----------
    layer : Layer
    saved : tuple (cache, shape of the output) or None
    dy : array

    Raises
    ------
    RuntimeError
        If nothing is saved: backward came before forward, or twice, or after a forward in evaluation.
    ValueError
        If ``dy`` does not have the shape of the output.

    Examples
    --------
    >>> from scratchnet.layers import ReLU
    >>> check_gradient(ReLU(), ("cache", (2,)), np.zeros(2))
    'cache'
    """
    if saved is None:
        reason = (
            "call forward first, once for each backward"
            if layer.training
            else "evaluation keeps nothing for it; call train(), or use `with net.recording():`"
        )
        raise RuntimeError(f"{layer.label}: backward without a forward before it: {reason}")
    cache, shape = saved
    if not hasattr(dy, "shape"):
        raise ValueError(f"{layer.label}: expected an array {shape}, got {type(dy).__name__}")
    if tuple(dy.shape) != shape:
        raise ValueError(f"{layer.label}: the output was {shape}, its gradient is {tuple(dy.shape)}")
    return cache


def check_attribute(layer: Layer, name: str, value: Any) -> None:
    """Refuse to put anything but a Parameter, or None, in the place of a Parameter: it would not be learned.

    Parameters
    ----------
    layer : Layer
    name : str
        Of the attribute.
    value : object

    Examples
    --------
    >>> from scratchnet.layers import Linear
    >>> Linear(2, 2).weight = np.zeros((2, 2))
    Traceback (most recent call last):
    ValueError: Linear: weight is a Parameter: write weight.data[...] = array, or assign a Parameter
    """
    if not isinstance(value, Parameter) and value is not None:
        if isinstance(vars(layer).get(name), Parameter):
            raise ValueError(
                f"{layer.label}: {name} is a Parameter: write {name}.data[...] = array, or assign a Parameter"
            )
