"""What carries out a training step: the layers, one by one, or a plan, several times as fast."""

from __future__ import annotations

from typing import Any

from scratchnet import plans
from scratchnet.layers import Layer

ENGINES = ("plan", "layers")


class Layers:
    """The network's own ``forward`` and ``backward``: slow, plain, on every backend.

    Examples
    --------
    >>> import numpy as np
    >>> from scratchnet.layers import Linear
    >>> engine = Layers(Linear(4, 2))
    >>> engine.forward(np.zeros((3, 4), "float32")).shape
    (3, 2)
    """

    def __init__(self, net: Layer):
        self.net = net

    def forward(self, x: Any) -> Any:
        """Return the logits of a batch, in whatever mode the network is."""
        return self.net.forward(x)

    def backward(self, dlogits: Any) -> None:
        """Set the gradients of all parameters; that of the images is not computed."""
        self.net.backward(dlogits, need_input_gradient=False)


class Plans:
    """Plans for the network, one for each shape of a batch and each mode, made when they are first needed.

    So the last, short batch of an epoch is one more, small plan, and so is validation.

    Examples
    --------
    >>> import numpy as np
    >>> from scratchnet.layers import Linear
    >>> engine = Plans(Linear(4, 2))
    >>> engine.forward(np.zeros((3, 4), "float32")).shape
    (3, 2)
    """

    def __init__(self, net: Layer):
        self.net = net
        self.plans: dict[tuple[tuple[int, ...], bool], plans.Plan] = {}
        self._latest: plans.Plan | None = None

    def forward(self, x: Any) -> Any:
        """Return the logits of a batch, in whatever mode the network is."""
        key = (tuple(x.shape), self.net.training)
        if key not in self.plans:
            self.plans[key] = plans.compile(self.net, x.shape, training=self.net.training)
        self._latest = self.plans[key]
        return self._latest.forward(x)

    def backward(self, dlogits: Any) -> None:
        """Set the gradients of all parameters; that of the images is not computed."""
        self._latest.backward(dlogits)


def make_engine(net: Layer, name: str | None = None) -> Layers | Plans:
    """Return an engine by name.

    Parameters
    ----------
    net : Layer
        On the backend on which it shall compute.
    name : {"plan", "layers"}, optional
        By default a plan where there are plans for the backend, and otherwise the layers.

    Raises
    ------
    ValueError
        If a plan is asked for, and there is none for this backend.

    Examples
    --------
    >>> from scratchnet.layers import Linear
    >>> type(make_engine(Linear(4, 2), "layers")).__name__
    'Layers'
    """
    if name not in (*ENGINES, None):
        raise ValueError(f"engine must be 'plan' or 'layers', not {name!r}")
    on_cpu = net.backend.name == "numpy"
    if name == "plan" and not on_cpu:
        raise ValueError(
            f"there are no plans for {net.backend.name} yet: leave out --engine plan, or use numpy"
        )
    return Plans(net) if name == "plan" or (name is None and on_cpu) else Layers(net)
