"""How much memory a plan would take, without taking it."""

from __future__ import annotations

from typing import NamedTuple

from scratchnet.layers import Layer


class Sizes(NamedTuple):
    """What a plan holds, in bytes.

    Attributes
    ----------
    activations : int
        The maps between the groups. In training they are kept until the backward pass has been there.
    workspace : int
        The rest of the plan's block, where gradients and scratch take turns.
    """

    activations: int
    workspace: int


def sizes(net: Layer, input_shape: tuple[int, ...], training: bool = False, precision: str = "fp32") -> Sizes:
    """Return how much memory ``compile`` with these arguments takes.

    All buffers are given their places, as in a plan that runs, but no array is made.

    Parameters
    ----------
    net : Layer
        In the mode that the plan shall be in.
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
    >>> small, large = (sizes(net, (N, 2, 2, 3), training=True) for N in (64, 128))
    >>> small.activations == 4 * 64 * (12 + 5 + 3)
    True
    >>> large.activations == 2 * small.activations
    True
    """
    if net.backend.name == "numpy":
        from scratchnet.plans.cpu.plan import CpuPlan as Kind
    else:
        from scratchnet.plans.cuda.plan import CudaPlan as Kind

    class Unbound(Kind):
        def _bind(self) -> None:
            """Take no memory."""

    arena = Unbound(net, input_shape, training, precision, "auto").arena
    maps = sum(buffer.nbytes for buffer in arena.buffers if buffer.name.startswith("map "))
    activations = min(maps, arena.size)  # in inference maps take turns, too
    return Sizes(activations, arena.size - activations)
