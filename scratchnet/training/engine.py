"""Execution engines: layer by layer, or compiled plans, several times as fast."""

from __future__ import annotations

import warnings
from typing import NamedTuple

from scratchnet import plans
from scratchnet.backend import Array, Backend, BackendError
from scratchnet.layers import Layer
from scratchnet.plans.cuda import capability, selfcheck

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

    def refresh(self) -> None:
        """Do nothing: layers derive nothing from the parameters."""


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
        plan = self._latest = self.plans[key]  # another thread may want another one meanwhile
        return plan.forward(x)

    def refresh(self) -> None:
        """Call it after writing into an array that ``.data`` gave before: see ``Plan.refresh``."""
        for plan in self.plans.values():
            plan.refresh()

    def backward(self, dlogits: Array) -> None:
        """Set the gradients of all parameters; that of the images is not computed."""
        if self._latest is None:
            raise ValueError("backward needs a forward before it")
        self._latest.backward(dlogits)


class EngineChoice(NamedTuple):
    """An engine that can compute on a device.

    Attributes
    ----------
    name : {"plan", "layers"}
    precision : {"fp32", "tf32", "bf16"}
    note : str
        What there is to say of it on a GPU: a clause.
    """

    name: str
    precision: str
    note: str = ""


def choose_engine(device: Backend, name: str | None = None, precision: str | None = None) -> EngineChoice:
    """Choose the engine and precision for a device.

    By default a plan; on a GPU in tf32 where it has that (compute capability 8.0), as PyTorch convolves, and
    layer by layer where it is too old for a plan, or where a plan fails the self-check.

    Parameters
    ----------
    device : Backend
    name : {"plan", "layers"}, optional
    precision : {"fp32", "tf32", "bf16"}, optional

    Returns
    -------
    EngineChoice

    Raises
    ------
    ValueError
        If there is no such engine, or no such precision here.
    BackendError
        If a plan, or a precision, was asked for that this GPU cannot do.

    Examples
    --------
    >>> from scratchnet import backend
    >>> choose_engine(backend.get("numpy"))
    EngineChoice(name='plan', precision='fp32', note='')
    """
    if name not in (*ENGINES, None):
        raise ValueError(f"engine must be 'plan' or 'layers', not {name!r}")
    if precision not in (*PRECISIONS, None):
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if name == "layers" or device.name == "numpy":
        if precision not in (None, "fp32"):
            raise ValueError(f"only a plan on a GPU computes in {precision}: leave --precision out")
        return EngineChoice(name or "plan", "fp32")
    chosen = precision or capability.default_precision(device.xp)
    by_default = name is None and precision is None
    if (reason := capability.too_old(device.xp, chosen)) and by_default:
        return EngineChoice("layers", "fp32", f"layer by layer, since {reason}")
    capability.require(device.xp, chosen)
    ok, found, is_new = selfcheck.verdict(device.xp, chosen)
    if not ok and not by_default:
        raise BackendError(f"{found}: use --engine layers")
    if not ok:
        return EngineChoice("layers", "fp32", f"layer by layer; {found}")
    note = f"plans in {chosen}" + (", --precision fp32 computes in float32" if chosen != precision else "")
    note = note if chosen != "fp32" else "plans in fp32"
    return EngineChoice("plan", chosen, f"{note}; {found}" if is_new else note)


def make_engine(net: Layer, name: str | None = None, precision: str | None = None) -> Layers | Plans:
    """Return an engine by name.

    Parameters
    ----------
    net : Layer
        On the backend on which it is to compute.
    name : {"plan", "layers"}, optional
    precision : {"fp32", "tf32", "bf16"}, optional
        In which a plan on a GPU multiplies. Both are chosen by ``choose_engine`` where they are left out.

    Raises
    ------
    ValueError
        If there is no such engine, or no such precision here.
    BackendError
        If a plan, or a precision, was asked for that this GPU cannot do.

    Warns
    -----
    UserWarning
        If the layers compute because this GPU cannot run a plan.

    Examples
    --------
    >>> from scratchnet.layers import Linear
    >>> type(make_engine(Linear(4, 2), "layers")).__name__
    'Layers'
    """
    chosen = choose_engine(net.backend, name, precision)
    if chosen.name == "layers" and name is None:
        warnings.warn(chosen.note, UserWarning, stacklevel=2)
    return Layers(net) if chosen.name == "layers" else Plans(net, chosen.precision)
