"""NaN and infinity: in which layer they first appeared."""

from __future__ import annotations

from scratchnet.backend import Array, array_module
from scratchnet.data import Loader
from scratchnet.layers import Layer, leaves

ADVICE = "lower the learning rate, or warm it up"


class NotFinite(ArithmeticError):
    """The loss is NaN or infinite. The message says in which layer that first appeared."""


def is_finite(x: Array) -> bool:
    """Tell whether an array has neither NaN nor infinity."""
    return bool(array_module(x).isfinite(x).all())


def why_not_finite(net: Layer, x: Array) -> str:
    """Say where a NaN or an infinity first appeared, given the batch with which the loss showed it.

    Where weights are spoilt already, the last step spoilt them, with the gradients that are still there:
    backward runs from the last layer to the first, so the spoilt gradient nearest to the output came first.
    Otherwise this batch did it, and the first layer whose output is not finite is looked for, by running them
    one by one.

    What it returns is a clause, with what to do.

    >>> import numpy as np
    >>> from scratchnet.layers import Linear, ReLU, Sequential
    >>> net = Sequential(Linear(2, 2), ReLU())
    >>> net[0].bias.data = np.array([0.0, np.inf])
    >>> why_not_finite(net, np.ones((1, 2), "float32"))
    'it first appeared in 0.bias, which is not finite: lower the learning rate, or warm it up'
    """
    parameters = net.parameters()
    spoilt = [name for name, p in parameters.items() if not is_finite(p.data)]
    if spoilt:
        gradients = [name for name, p in parameters.items() if p.grad is not None and not is_finite(p.grad)]
        if gradients:
            return f"it first appeared in the gradient of {gradients[-1]}, one step before: {ADVICE}"
        return f"it first appeared in {spoilt[0]}, which is not finite: {ADVICE}"
    if not is_finite(x):
        return "it first appeared in the images themselves: check the data and its normalisation"
    for path, layer in leaves(net):
        x = layer.forward(x)
        if not is_finite(x):
            name = type(layer).__name__
            return f"it first appeared in the output of {path or name} ({name}): {ADVICE}"
    return f"every layer's output is finite, so it appeared in the loss itself: {ADVICE}"


def why_not_finite_on(net: Layer, validation: Loader) -> str:
    """Say it of the first validation images whose logits are not finite: the last steps spoilt weights."""
    net.eval()
    for images, _ in validation.epoch(0):
        x = net.backend.asarray(images)
        if not is_finite(net.forward(x)):
            break
    return why_not_finite(net, x)
