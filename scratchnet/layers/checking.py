"""Checks of what reaches a layer: arrays, gradients and attributes. Each error names the layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scratchnet.backend import Array, array_module
from scratchnet.parameters import Parameter

if TYPE_CHECKING:
    from scratchnet.layers.base import Layer


def check_input(layer: Layer, x: Array, *axes: str | int) -> None:
    """Refuse an input that has not these axes, each a size or a letter."""
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise ValueError(f"{layer.label}: expected an array, got {type(x).__name__}")
    if axes:
        check_shape(layer, x.shape, *axes)
    if 0 in x.shape:
        raise ValueError(f"{layer.label}: the input is empty, {tuple(x.shape)}")
    library = array_module(x)
    parameter = next((value for value in vars(layer).values() if isinstance(value, Parameter)), None)
    if parameter is not None:
        if x.dtype != layer.dtype:
            raise ValueError(f"{layer.label}: expected {layer.dtype}, got {x.dtype}")
        backend = parameter.buffer.backend
        if library is not backend.xp:
            where = f"the network is on {backend.name}, the input is not"
            raise ValueError(f"{layer.label}: {where}: use net.backend.asarray(x)")


def check_shape(layer: Layer, shape: tuple[int, ...], *axes: str | int) -> None:
    """Refuse the shape of an input that does not fit the layer.

    Examples
    --------
    >>> from scratchnet.layers import ReLU
    >>> check_shape(ReLU(), (2, 4), "N", 5)
    Traceback (most recent call last):
    ValueError: ReLU: expected (N, 5), got (2, 4)
    """
    if len(shape) != len(axes) or any(a != s for a, s in zip(axes, shape, strict=True) if isinstance(a, int)):
        wanted = ", ".join(map(str, axes)) + ("," if len(axes) == 1 else "")
        hint = ""
        if "H" in axes and isinstance(axes[-1], int):
            hint = ": images are channels last"
        elif len(axes) == 2 < len(shape):
            hint = ": put Flatten() before it"
        raise ValueError(f"{layer.label}: expected ({wanted}), got {tuple(shape)}{hint}")


def check_fit(layer: Layer, what: str, size: int, shape: tuple[int, ...], padding: int = 0) -> None:
    """Refuse images (N, H, W, C) that are smaller than a kernel or window of this size."""
    if min(shape[1:3]) + 2 * padding < size:
        raise ValueError(f"{layer.label}: a {what} of {size} does not fit into {tuple(shape)}")


def check_gradient(layer: Layer, saved: tuple[Any, tuple[int, ...]] | None, dy: Array) -> Any:
    """Return the cache of what a forward saved, if the gradient has the shape of that forward's output."""
    if saved is None:
        reason = "call forward first, once for each backward"
        if not layer.training:
            reason = (
                "evaluation keeps nothing for it; call train(), or use `with net.recording():`, or keep a "
            )
            reason += "part of a network as it is by freeze(path)"
        raise RuntimeError(f"{layer.label}: backward without a forward before it: {reason}")
    cache, shape = saved
    array_module(dy)  # refuses masks
    if not hasattr(dy, "shape"):
        raise ValueError(f"{layer.label}: expected an array {shape}, got {type(dy).__name__}")
    if tuple(dy.shape) != shape:
        raise ValueError(f"{layer.label}: the output was {shape}, its gradient is {tuple(dy.shape)}")
    return cache


def check_attribute(layer: Layer, name: str, value: Any) -> None:
    """Refuse to put anything but a Parameter, or None, in the place of a Parameter: it would not be learned.

    Examples
    --------
    >>> import numpy as np
    >>> from scratchnet.layers import Linear
    >>> Linear(2, 2).weight = np.zeros((2, 2))
    Traceback (most recent call last):
    ValueError: Linear: weight is a Parameter: write weight.data[...] = array, or assign a Parameter
    """
    if isinstance(vars(layer).get(name), Parameter) and not isinstance(value, (Parameter, type(None))):
        advice = f"write {name}.data[...] = array, or assign a Parameter"
        raise ValueError(f"{layer.label}: {name} is a Parameter: {advice}")
