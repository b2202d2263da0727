"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from scratchnet import checks
from scratchnet.backend import Array
from scratchnet.optim.base import Optimizer, Span
from scratchnet.parameters import Parameter


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, Nesterov momentum and weight decay, as in PyTorch.

    For each weight w with gradient g and momentum buffer v, which is zero at first::

        g = g + weight_decay * w           decay: the gradient of weight_decay / 2 * |w|^2
        v = momentum * v + g               (Polyak 1964; Sutskever et al. 2013, sec. 2)
        g = v                              or, with nesterov: g = g + momentum * v
        w = w - lr * g

    Parameters
    ----------
    parameters : dict of str to Parameter
        What ``net.parameters()`` returns.
    lr : float
        The learning rate. Assign ``optimizer.lr`` to change it.
    momentum : float
        From 0 to below 1.
    weight_decay : float
    nesterov : bool
    no_decay : callable, optional
        Tells what weight decay leaves alone, as ``is_bias_or_norm`` does. By default everything decays.
    lr_scales : dict of str to float, optional
        What multiplies the learning rate of some layers, by path: ``{"features": 0.1}`` for a network whose
        features were trained before. Of several paths that fit, the longest counts.

    Attributes
    ----------
    momentum_buffer : array or None
        All of v, end to end in the order of the parameters. None before the first step, or without momentum.

    Examples
    --------
    >>> import numpy as np
    >>> weight = Parameter([1.0, 2.0])
    >>> optimizer = SGD({"weight": weight}, lr=0.1)
    >>> weight.grad = np.array([10.0, 0.0])
    >>> optimizer.step()
    >>> weight.data
    array([0., 2.])
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        no_decay: Callable[[str, Parameter], bool] | None = None,
        lr_scales: Mapping[str, float] | None = None,
    ):
        if nesterov and momentum == 0.0:
            raise ValueError("nesterov needs a momentum above zero")
        self.momentum, self.nesterov = momentum, nesterov
        super().__init__(parameters, lr, weight_decay, no_decay, lr_scales)
        self.keeps = ("momentum",) if momentum else ()

    def check_rates(self) -> None:
        """Refuse rates that are none, also those that were assigned since."""
        super().check_rates()
        checks.real(0.0, momentum=self.momentum)
        if self.momentum >= 1.0:
            raise ValueError(
                f"momentum must be below 1, not {self.momentum}: what it adds up would never fade"
            )

    @property
    def momentum_buffer(self) -> Array | None:
        """All of v, end to end; None before the first step, or without momentum."""
        return self.kept.get("momentum")

    def _update(self, xp: Any, span: Span, w: Array, g: Array, s: Array) -> None:
        lr = self.lr * span.lr_scale
        if span.decay:
            g = xp.add(g, xp.multiply(w, span.decay, out=s), out=s)
        if self.momentum:
            v = span.of(self.kept["momentum"])
            v *= self.momentum
            v += g
            if self.nesterov:
                w -= xp.multiply(g, lr, out=s)
                g = xp.multiply(v, self.momentum, out=s)
            else:
                g = v
        w -= xp.multiply(g, lr, out=s)

    def next_step(self, name: str, p: Parameter, g: Array, lr: float) -> Array:
        """Return the step that a parameter with this gradient is about to make.

        Before the first step it is what equal gradients will add up to.
        """
        lr *= self.lr_scale(name)
        g = g + (0.0 if self.no_decay(name, p) else self.weight_decay) * p.data
        kept = self.kept_of(name)
        if not kept:
            return lr * g / max(1.0 - self.momentum, 1e-3)
        v = self.momentum * kept["momentum"] + g
        return lr * (g + self.momentum * v if self.nesterov else v)
