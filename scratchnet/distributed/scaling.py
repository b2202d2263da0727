"""The learning rate of many ranks, after Goyal et al. 2017, sec. 2.1 and 2.2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ScaledRate:
    """A schedule times the number of ranks, from once to so many times during a warm-up.

    Where each rank has as many images per batch as one process had, the batch is ``ranks`` times as large,
    and a rate that many times as high keeps what an epoch changes (the linear scaling rule). At the very
    beginning, where the weights change quickly, that does not hold: hence the warm-up.

    Parameters
    ----------
    schedule : callable
        From the step, counted from 0, to the rate of one rank.
    ranks : int
    warmup : int
        In how many steps the factor rises; theirs is five epochs.

    Examples
    --------
    >>> rate = ScaledRate(lambda step: 0.1, ranks=4, warmup=3)
    >>> [round(rate(step), 6) for step in range(5)]
    [0.1, 0.2, 0.3, 0.4, 0.4]
    """

    schedule: Callable[[int], float]
    ranks: int
    warmup: int

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        risen = min(1.0, step / self.warmup) if self.warmup else 1.0
        return self.schedule(step) * (1 + (self.ranks - 1) * risen)
