"""Stochastic gradient descent, and schedules of its learning rate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import cos, pi
from typing import NamedTuple

from scratchnet import checks, workers
from scratchnet.backend import Array, Backend
from scratchnet.parameters import FlatBuffer, Parameter

# Numbers that one call updates: their values, gradients, momentum and scratch together stay in the cache.
BLOCK_SIZE = 1 << 15


def is_bias_or_norm(name: str, parameter: Parameter) -> bool:
    """Tell whether a parameter is a bias, or scale or shift of a normalisation: one number per channel.

    Parameters
    ----------
    name, parameter
        As in ``net.parameters()``: for ``SGD(..., no_decay=is_bias_or_norm)``.

    Examples
    --------
    >>> is_bias_or_norm("features.0.bias", Parameter([0.0, 0.0]))
    True
    """
    return parameter.ndim == 1


class _Span(NamedTuple):
    """Numbers that lie next to each other in the flat arrays, decay alike and learn at one rate."""

    buffer: FlatBuffer
    start: int
    stop: int
    momentum_start: int  # in the momentum buffer
    decay: float
    lr_scale: float

    def part(self, start: int, stop: int) -> _Span:
        """Return these numbers from ``start`` to ``stop``, which may lie beyond the end."""
        momentum_start = self.momentum_start + start - self.start
        return self._replace(start=start, stop=stop, momentum_start=momentum_start)


class SGD:
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
        if not isinstance(parameters, Mapping) or not parameters:
            raise ValueError("SGD takes the dict that net.parameters() returns, with at least one parameter")
        if nesterov and momentum == 0.0:
            raise ValueError("nesterov needs a momentum above zero")
        self.parameters = dict(parameters)
        self.lr, self.momentum, self.weight_decay, self.nesterov = lr, momentum, weight_decay, nesterov
        self._check_rates()
        self.no_decay = no_decay or (lambda name, parameter: False)
        self.lr_scales = dict(lr_scales or {})
        for path, scale in self.lr_scales.items():
            checks.real(0.0, **{f"lr_scales[{path!r}]": scale})
            if not any(_lies_in(name, path) for name in self.parameters):
                raise ValueError(f"lr_scales names {path!r}, where there are no parameters")
        self.momentum_buffer: Array | None = None
        self._momentum_names: list[str] | None = None
        _lay_together(list(self.parameters.values()))

    def _check_rates(self) -> None:
        """Refuse rates that are none, also those that were assigned since."""
        checks.real(0.0, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        if self.momentum >= 1.0:
            raise ValueError(
                f"momentum must be below 1, not {self.momentum}: what it adds up would never fade"
            )

    def trainable(self) -> dict[str, Parameter]:
        """Return the parameters that are not frozen, in order: ``momentum_buffer`` is laid out as these."""
        return {name: p for name, p in self.parameters.items() if p.trainable}

    def state(self) -> dict[str, Array]:
        """Return what a resumed run needs beside the parameters, by name; nothing before the first step."""
        return {} if self.momentum_buffer is None else {"momentum": self.momentum_buffer}

    def state_shapes(self, trained: Collection[str]) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return shape and dtype of what ``state`` has after a step in which these parameters are trained.

        >>> SGD({"w": Parameter([1.0, 2.0])}, lr=0.1, momentum=0.9).state_shapes(["w"])
        {'momentum': ((2,), 'float64')}
        """
        sizes = [p.size for name, p in self.parameters.items() if name in trained]
        dtype = str(next(iter(self.parameters.values())).dtype)
        return {"momentum": ((sum(sizes),), dtype)} if self.momentum else {}

    def load_state(self, arrays: Mapping[str, Array]) -> None:
        """Put back what ``state`` returned; the parameters that were trained then must be those that are."""
        backend = next(iter(self.parameters.values())).buffer.backend
        self.momentum_buffer = backend.asarray(arrays["momentum"]).copy() if "momentum" in arrays else None
        self._momentum_names = list(self.trainable())

    def lr_scale(self, name: str) -> float:
        """Return what multiplies the learning rate of a parameter."""
        path = max((path for path in self.lr_scales if _lies_in(name, path)), key=len, default=None)
        return 1.0 if path is None else self.lr_scales[path]

    def step(self) -> None:
        """Change the parameters by one step against their gradients.

        Parameters whose ``.grad`` is None are left alone, as in PyTorch, and so are frozen ones; a
        RuntimeError says that there is no other.
        """
        self._check_rates()
        backend = next(iter(self.parameters.values())).buffer.backend
        spans = self._spans()
        if not spans:
            raise RuntimeError("SGD.step: no parameter has a gradient: call net.backward() first")
        if self.momentum:
            self._lay_out_momentum(backend)
        buffers = {id(span.buffer): span.buffer for span in spans}.values()
        for buffer in buffers:
            buffer.fill()
        if backend.name == "numpy":
            # Every number is updated on its own, so it makes no difference which worker has which block.
            blocks = [
                span.part(start, min(start + BLOCK_SIZE, span.stop))
                for span in spans
                for start in range(span.start, span.stop, BLOCK_SIZE)
            ]
            count = min(workers.size(), len(blocks))
            workers.run_parallel([partial(self._update, blocks[k::count]) for k in range(count)])
        else:
            self._update(spans)
        for buffer in buffers:
            buffer.version += 1

    def _lay_out_momentum(self, backend: Backend) -> None:
        """Make the momentum buffer, or move it with the network, and lay it out as what is trained now.

        Momentum of what was frozen is dropped; of what was unfrozen, it is zero at first.
        """
        trainable, xp = self.trainable(), backend.xp
        sizes = {name: p.size for name, p in self.parameters.items()}
        if self.momentum_buffer is None:
            dtype = next(iter(trainable.values())).dtype
            self.momentum_buffer = xp.zeros(sum(sizes[name] for name in trainable), dtype=dtype)
        flat = self.momentum_buffer = backend.asarray(self.momentum_buffer)
        names = self._momentum_names or list(trainable)
        self._momentum_names = list(trainable)
        if names != self._momentum_names:
            stops = accumulate(sizes[name] for name in names)
            parts = {name: flat[stop - sizes[name] : stop] for name, stop in zip(names, stops, strict=True)}
            parts |= {name: xp.zeros(sizes[name], flat.dtype) for name in trainable if name not in parts}
            self.momentum_buffer = xp.concatenate([parts[name] for name in trainable])

    def _update(self, spans: list[_Span]) -> None:
        """Apply the formula to these numbers: w and v change, g is only read."""
        xp = spans[0].buffer.backend.xp
        longest = max(span.stop - span.start for span in spans)
        scratch = {span.buffer.dtype: xp.empty(longest, span.buffer.dtype) for span in spans}
        for buffer, start, stop, momentum_start, decay, lr_scale in spans:
            assert buffer.grad is not None  # there is no span without a gradient
            w, g = buffer.allocate()[start:stop], buffer.grad[start:stop]
            # A new array for the intermediate values of each block would cost more than the arithmetic.
            s, lr = scratch[buffer.dtype][: stop - start], self.lr * lr_scale
            if decay:
                g = xp.add(g, xp.multiply(w, decay, out=s), out=s)
            if self.momentum_buffer is not None:
                v = self.momentum_buffer[momentum_start : momentum_start + stop - start]
                v *= self.momentum
                v += g
                if self.nesterov:
                    w -= xp.multiply(g, lr, out=s)
                    g = xp.multiply(v, self.momentum, out=s)
                else:
                    g = v
            w -= xp.multiply(g, lr, out=s)

    def _spans(self) -> list[_Span]:
        """Join the parameters that have a gradient into spans; in a plain network there is one."""
        spans: list[_Span] = []
        momentum_start = 0
        for name, p in self.trainable().items():
            if p.has_grad:
                decay = 0.0 if self.no_decay(name, p) else self.weight_decay
                place = p.buffer, p.span.start, p.span.stop, momentum_start
                span = _Span(*place, decay, self.lr_scale(name))
                if spans and spans[-1].part(spans[-1].stop, span.stop) == span:
                    spans[-1] = spans[-1]._replace(stop=span.stop)
                else:
                    spans.append(span)
            momentum_start += p.size
        return spans


def _lies_in(name: str, path: str) -> bool:
    """Tell whether a parameter is one of the layer of this path, as ``Layer.freeze`` understands it."""
    return not path or f"{name}.".startswith(f"{path}.")


def _lay_together(parameters: list[Parameter]) -> None:
    """Gather parameters of layers that are in no network into one buffer, so that a step is one pass.

    What lies in a buffer with others stays there: it is a part of a network that only some of is trained.
    """
    neighbours = {id(p) for buffer in {p.buffer for p in parameters} for p in buffer.parameters}
    if len({p.dtype for p in parameters}) == 1 and neighbours == {id(p) for p in parameters}:
        FlatBuffer.gather(parameters)


# Learning-rate schedules: functions of the step, counted from 0, without state, so that a resumed run needs
# nothing but the number of steps already made.


@dataclass(frozen=True)
class Constant:
    """The same learning rate from beginning to end.

    Parameters
    ----------
    lr : float

    Examples
    --------
    >>> Constant(0.1)(1000)
    0.1
    """

    lr: float

    def __post_init__(self) -> None:
        checks.real(0.0, lr=self.lr)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.lr


@dataclass(frozen=True)
class Step:
    """Multiply the learning rate by ``gamma`` at each milestone (He et al. 2016 divide by ten, twice).

    Parameters
    ----------
    lr : float
        Before the first milestone.
    milestones : tuple of int
        Steps, counted from 0.
    gamma : float

    Examples
    --------
    >>> schedule = Step(0.1, milestones=(100, 150))
    >>> [round(schedule(step), 6) for step in (0, 99, 100, 150)]
    [0.1, 0.1, 0.01, 0.001]
    """

    lr: float
    milestones: tuple[int, ...]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        checks.real(0.0, lr=self.lr, gamma=self.gamma)
        checks.whole(0, **{f"milestones[{i}]": step for i, step in enumerate(self.milestones)})

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.lr * self.gamma ** sum(step >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class Cosine:
    """Rise linearly to ``lr`` during ``warmup`` steps, then fall to zero along half a cosine.

    The warm-up of Goyal et al. 2017, sec. 2.2; Loshchilov and Hutter 2017, eq. 5, without restarts.

    Parameters
    ----------
    lr : float
        The highest learning rate.
    steps, warmup : int
        Of the whole run, and how many of them are the warm-up.

    Examples
    --------
    >>> schedule = Cosine(0.1, steps=110, warmup=10)
    >>> [round(schedule(step), 3) for step in (0, 9, 10, 60, 109)]
    [0.01, 0.1, 0.1, 0.05, 0.0]
    """

    lr: float
    steps: int
    warmup: int = 0

    def __post_init__(self) -> None:
        checks.real(0.0, lr=self.lr)
        checks.whole(0, steps=self.steps, warmup=self.warmup)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.lr * 0.5 * (1.0 + cos(pi * progress))


@dataclass(frozen=True)
class OneCycle:
    """Rise from ``lr / 25`` to ``lr``, then fall to almost 0, both along half a cosine (Smith 2018, sec. 4).

    Parameters
    ----------
    lr, steps
        The highest learning rate, and the steps of the whole run.
    rise : float
        The share of the run in which it rises.

    Examples
    --------
    >>> schedule = OneCycle(0.1, steps=100)
    >>> [round(schedule(step), 3) for step in (0, 30, 99)]
    [0.004, 0.1, 0.0]
    """

    lr: float
    steps: int
    rise: float = 0.3

    def __post_init__(self) -> None:
        checks.real(0.0, lr=self.lr)
        checks.whole(0, steps=self.steps)
        checks.real(0.0, 1.0, rise=self.rise)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        low, peak = self.lr / 25.0, self.rise * self.steps
        if step < peak:
            return low + (self.lr - low) * 0.5 * (1.0 - cos(pi * step / peak))
        progress = min(1.0, (step - peak) / max(1.0, self.steps - peak))
        return self.lr * 0.5 * (1.0 + cos(pi * progress))


SCHEDULES: dict[str, Callable[[float, int], Callable[[int], float]]] = {
    "constant": lambda lr, steps: Constant(lr),
    "step": lambda lr, steps: Step(lr, milestones=(steps // 2, steps * 3 // 4)),
    "cosine": lambda lr, steps: Cosine(lr, steps, warmup=steps // 10),
    "one-cycle": OneCycle,
}


def schedule(name: str, lr: float, steps: int) -> Callable[[int], float]:
    """Return a schedule by name, with the usual proportions: a function of the step, counted from 0.

    Parameters
    ----------
    name : {"constant", "step", "cosine", "one-cycle"}
        ``step`` divides by ten after half and after three quarters of the run; ``cosine`` warms up during the
        first tenth of it; ``one-cycle`` rises during the first 30 %.
    lr, steps
        The highest learning rate, and the steps of the whole run.

    Examples
    --------
    >>> schedule("step", 0.1, steps=100)
    Step(lr=0.1, milestones=(50, 75), gamma=0.1)
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {name!r}")
    checks.whole(0, steps=steps)
    return SCHEDULES[name](lr, steps)
