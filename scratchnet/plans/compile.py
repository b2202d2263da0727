"""Compiling: the door to plans, which chooses the plan for the device that the network is on."""

from __future__ import annotations

from typing import NamedTuple

from scratchnet.layers import Layer
from scratchnet.plans.cpu.plan import CpuPlan
from scratchnet.plans.cuda.plan import CudaPlan
from scratchnet.plans.plan import Plan


def compile(
    net: Layer,
    input_shape: tuple[int, ...],
    training: bool = False,
    precision: str = "fp32",
    algorithm: str = "auto",
) -> Plan:
    """Make a network fast for one input shape and one mode.

    Parameters
    ----------
    net : Layer
        Any network of layers; those without a kernel run by their own forward and backward, with a warning.
    input_shape : tuple of int
        Of the batch, (N, H, W, C).
    training : bool
        Whether for training, with ``backward``; the network must be in the same mode.
    precision : {"fp32", "tf32", "bf16"}
        In which float32 networks multiply: on a CPU always ``"fp32"``. On a GPU ``"tf32"`` and ``"bf16"``
        round what goes into a product to 11 and 8 significant bits; sums, weights and gradients stay float32.
        (A float64 network is computed in float64.)
    algorithm : str
        The name of a kernel, used wherever there is one of that name that can compute the layer; elsewhere,
        as with ``"auto"``, the kernel that suits best. ``"im2col"`` is the numerically plainest one for
        convolutions; ``"winograd4"`` holds Winograd's algorithm to tiles of 4 x 4 pixels, which round less
        than those of 6 x 6, ``"winograd6"`` to the latter, and ``"winograd"`` leaves the choice to the plan.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        If the network is not in that mode, or does not fit the shape, or an argument is none of the above.

    Warns
    -----
    UserWarning
        If layers run by their own forward and backward: it names them, and their share of the multiply-adds.

    Examples
    --------
    >>> import numpy as np
    >>> from scratchnet.layers import Conv2d, Flatten, Linear, ReLU, Sequential
    >>> net = Sequential(Conv2d(3, 8), ReLU(), Flatten(), Linear(8 * 8 * 8, 10))
    >>> plan = compile(net, (4, 8, 8, 3), training=True)
    >>> logits = plan.forward(np.ones((4, 8, 8, 3), "float32"))
    >>> plan.backward(logits)
    >>> net[0].weight.grad.shape
    (3, 3, 3, 8)
    """
    if not isinstance(net, Layer):
        raise ValueError(f"a plan is made of a network of layers, not of {type(net).__name__}")
    plan = plan_class(net)(net, input_shape, training, precision, algorithm)
    plan.bind()
    plan.warn_of_fallback(stacklevel=2)
    return plan


def plan_class(net: Layer) -> type[Plan]:
    """Return the class of plans for the device that a network is on."""
    return CpuPlan if net.backend.name == "numpy" else CudaPlan


class Sizes(NamedTuple):
    """What a plan holds, in bytes.

    Attributes
    ----------
    activations : int
        The maps between the groups. In training they are kept until the backward pass has read them.
    workspace : int
        The rest of the plan's block, where gradients and scratch take turns.
    """

    activations: int
    workspace: int


def memory(
    net: Layer, input_shape: tuple[int, ...], training: bool = False, precision: str = "fp32"
) -> Sizes:
    """Return how much memory ``compile`` with these arguments takes, without taking it.

    Parameters
    ----------
    net : Layer
        In the mode that the plan would be in.
    input_shape : tuple of int
        Of the batch, (N, H, W, C).
    training : bool
    precision : {"fp32", "tf32", "bf16"}

    Returns
    -------
    Sizes

    Raises
    ------
    ValueError
        As ``compile`` does.

    Examples
    --------
    >>> from scratchnet.layers import Flatten, Linear, ReLU, Sequential
    >>> net = Sequential(Flatten(), Linear(12, 5), ReLU(), Linear(5, 3))
    >>> small, large = (memory(net, (N, 2, 2, 3), training=True) for N in (64, 128))
    >>> small.activations == 4 * 64 * (12 + 5 + 3)
    True
    >>> large.activations == 2 * small.activations
    True
    """
    arena = plan_class(net)(net, input_shape, training, precision, "auto").arena  # all offsets, and no array
    maps = sum(buffer.nbytes for buffer in arena.buffers if buffer.name.startswith("map "))
    activations = min(maps, arena.size)  # in inference maps take turns, too
    return Sizes(activations, arena.size - activations)
