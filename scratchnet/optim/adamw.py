"""Adam with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt
from typing import Any

from scratchnet import checks
from scratchnet.backend import Array
from scratchnet.optim.base import Optimizer, Span
from scratchnet.parameters import Parameter


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2), as in PyTorch.

    In step t, for each weight w with gradient g, and m and v, which are zero at first::

        w = w - lr * weight_decay * w      decay: not through the gradient, which v would divide again
        m = b1 * m + (1 - b1) * g          the gradient's mean       (Kingma and Ba 2015, algorithm 1)
        v = b2 * v + (1 - b2) * g * g      the mean of its square
        w = w - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    The divisors of m and v make up for their beginning at zero. A parameter that was frozen counts its own
    steps, t, from when it is trained. Rates are those of Adam, near 0.001, not those of SGD.

    Parameters
    ----------
    parameters : dict of str to Parameter
        What ``net.parameters()`` returns.
    lr : float
        The learning rate. Assign ``optimizer.lr`` to change it.
    betas : (float, float)
        b1 and b2, from 0 to below 1.
    eps : float
        Keeps the divisor above zero.
    weight_decay : float
    no_decay : callable, optional
        Tells what weight decay leaves alone, as ``is_bias_or_norm`` does. By default everything decays.
    lr_scales : dict of str to float, optional
        What multiplies the learning rate of some layers, by path, as for ``SGD``.

    Examples
    --------
    >>> import numpy as np
    >>> weight = Parameter([1.0, 2.0])
    >>> optimizer = AdamW({"weight": weight}, lr=0.1, weight_decay=0.0)
    >>> weight.grad = np.array([10.0, -0.001])
    >>> optimizer.step()
    >>> weight.data.round(3)
    array([0.9, 2.1])
    """

    keeps = ("first_moment", "second_moment")
    counts_steps = True

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        no_decay: Callable[[str, Parameter], bool] | None = None,
        lr_scales: Mapping[str, float] | None = None,
    ):
        self.betas, self.eps = betas, eps
        super().__init__(parameters, lr, weight_decay, no_decay, lr_scales)

    def check_rates(self) -> None:
        """Refuse rates that are none, also those that were assigned since."""
        super().check_rates()
        checks.real(0.0, eps=self.eps)
        if not isinstance(self.betas, (tuple, list)) or len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers, not {self.betas!r}")
        for beta in self.betas:
            checks.real(0.0, betas=beta)
            if beta >= 1.0:
                raise ValueError(f"betas must be below 1, not {beta}: what they add up would never fade")

    def _update(self, xp: Any, span: Span, w: Array, g: Array, s: Array) -> None:
        (b1, b2), lr = self.betas, self.lr * span.lr_scale
        m, v = span.of(self.kept["first_moment"]), span.of(self.kept["second_moment"])
        if span.decay:
            w *= 1.0 - lr * span.decay
        m *= b1
        m += xp.multiply(g, 1.0 - b1, out=s)
        v *= b2
        v += xp.multiply(xp.multiply(g, g, out=s), 1.0 - b2, out=s)
        s = xp.multiply(xp.sqrt(v, out=s), 1.0 / sqrt(1.0 - b2**span.steps), out=s)
        s += self.eps
        w -= xp.multiply(xp.divide(m, s, out=s), lr / (1.0 - b1**span.steps), out=s)

    def next_step(self, name: str, p: Parameter, g: Array, lr: float) -> Array:
        """Return the step that a parameter with this gradient is about to make."""
        (b1, b2), lr, kept = self.betas, lr * self.lr_scale(name), self.kept_of(name)
        t = self._steps.get(name, 0) + 1
        m = b1 * kept.get("first_moment", 0.0 * g) + (1.0 - b1) * g
        v = b2 * kept.get("second_moment", 0.0 * g) + (1.0 - b2) * g * g
        decay = 0.0 if self.no_decay(name, p) else self.weight_decay
        divisor = (v / (1.0 - b2**t)) ** 0.5 + self.eps
        return lr * (m / (1.0 - b1**t) / divisor + decay * p.data)
