"""Execution engines: layer by layer, or compiled plans, several times as fast."""

from __future__ import annotations

from scratchnet import plans
from scratchnet.backend import Array
from scratchnet.layers import Layer

ENGINES = ("plan", "layers")
PRECISIONS = ("fp32", "tf32", "bf16")


class Layers:
    """The network's own ``forward`` and ``backward``: slow, plain, on every backend.

    >>> import numpy as np
    >>> from scratchnet.layers import Linear
    >>> engine = Layers(Linear(4, 2))
    >>> engine.forward(np.zeros((3, 4), "float32")).shape
    (3, 2)
    """

    def __init__(self, net: Layer):
        self.net = net

    def forward(self, x: Array) -> Array:
        """Return the logits of a batch, in whatever mode the network is in."""
        return self.net.forward(x)

    def backward(self, dlogits: Array) -> None:
        """Set the gradients of all parameters; that of the images is not computed."""
        skip = {"need_input_gradient": False} if self.net.skips_input_gradient else {}
        self.net.backward(dlogits, **skip)


class Plans:
    """Plans for the network, one for each batch shape, mode and what is frozen, compiled when first needed.

    So the last, short batch of an epoch is one more, small plan, and so is validation.

    >>> import numpy as np
    >>> from scratchnet.layers import Linear
    >>> engine = Plans(Linear(4, 2))
    >>> engine.forward(np.zeros((3, 4), "float32")).shape
    (3, 2)
    """

    def __init__(self, net: Layer, precision: str = "fp32"):
        self.net, self.precision = net, precision
        self.plans: dict[tuple[tuple[int, ...], bool, tuple[bool, ...]], plans.Plan] = {}
        self._parameters = list(net.parameters().values())  # walked once, not at every step
        self._latest: plans.Plan | None = None

    def forward(self, x: Array) -> Array:
        """Return the logits of a batch, in whatever mode the network is in."""
        net, training = self.net, self.net.training
        key = tuple(x.shape), training, tuple(p.trainable for p in self._parameters)
        if key not in self.plans:
            self.plans[key] = plans.compile(net, x.shape, training=training, precision=self.precision)
        self._latest = self.plans[key]
        return self._latest.forward(x)

    def backward(self, dlogits: Array) -> None:
        """Set the gradients of all parameters; that of the images is not computed."""
        if self._latest is None:
            raise ValueError("backward needs a forward before it")
        self._latest.backward(dlogits)


def make_engine(net: Layer, name: str | None = None, precision: str = "fp32") -> Layers | Plans:
    """Return an engine by name.

    Parameters
    ----------
    net : Layer
        On the backend on which it is to compute.
    name : {"plan", "layers"}, optional
        By default a plan.
    precision : {"fp32", "tf32", "bf16"}
        In which a plan on a GPU multiplies.

    Raises
    ------
    ValueError
        If there is no such engine, or no such precision here.

    Examples
    --------
    >>> from scratchnet.layers import Linear
    >>> type(make_engine(Linear(4, 2), "layers")).__name__
    'Layers'
    """
    if name not in (*ENGINES, None):
        raise ValueError(f"engine must be 'plan' or 'layers', not {name!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision != "fp32" and (name == "layers" or net.backend.name == "numpy"):
        raise ValueError(f"only a plan on a GPU computes in {precision}: leave --precision out")
    return Layers(net) if name == "layers" else Plans(net, precision)
