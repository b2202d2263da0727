"""Learning-rate schedules: functions of the step, counted from 0.

They have no state, so a resumed run needs nothing but the number of steps already made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi

from scratchnet import checks


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
