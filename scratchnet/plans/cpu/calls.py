"""Running: lists of array calls, on several worker threads, with barriers between them.

A plan decides everything before it runs: which NumPy function is called on which views of which buffers. What
is left at run time is a list of calls, and a list is quick to walk::

    phase 1   worker 0   matmul(...) add(...) maximum(...) matmul(...) ...        one worker a worker
              worker 1   matmul(...) add(...) maximum(...) matmul(...) ...
    --------- barrier: every worker has finished -------------------------------
    phase 2   worker 0   ...

Lanes of one phase never touch what another worker of that phase writes; phases follow each other. Making the
views at run time instead would cost a few microseconds each, all of them under Python's global lock, where
only one worker at a time can be.

Which worker does what is decided before, too, and never by who happens to be free: so that sums are added in
the same order every time, and the same machine gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import setitem
from time import perf_counter
from typing import Any

import numpy as np

from scratchnet import workers

# NumPy's element-wise functions work through operands that need a conversion (as a boolean mask times
# numbers does) in pieces of this many elements. The default, 8192, makes two of them overflow the first-level
# cache; with 1024 the large layers of VGG take a quarter less time.
UFUNC_BUFFER = 1024

# Element-wise work on large arrays goes in blocks of this many elements, which stay in the second-level cache
# from one call to the next.
BLOCK = 1 << 16


class Calls(list):
    """Array calls that are recorded now and made later, as often as one likes.

    Examples
    --------
    >>> x, y = np.ones(3), np.zeros(3)
    >>> do = Calls()
    >>> do(np.add, x, x, out=y)
    >>> do.copy(y, out=x)
    >>> do.run()
    >>> x
    array([2., 2., 2.])
    """

    def __call__(self, function: Callable[..., Any], *arguments: Any, out: Any) -> None:
        """Record ``function(*arguments, out=out)``."""
        self.append((function, arguments, {"out": out}))

    def call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Record ``function(*arguments)``."""
        self.append((function, arguments, {}))

    def copy(self, source: Any, out: np.ndarray) -> None:
        """Record ``out[...] = source``, where ``source`` may be a number."""
        self.append((setitem, (out, Ellipsis, source), {}))

    def run(self) -> None:
        """Make all calls, in order."""
        before = np.getbufsize()
        try:
            np.setbufsize(UFUNC_BUFFER)  # holds for this thread
            for function, arguments, out in self:
                function(*arguments, **out)
        finally:
            np.setbufsize(before)


@dataclass
class Phase:
    """Work for all workers between two barriers.

    Attributes
    ----------
    name : str
        What it does, for ``describe()``.
    workers : list of Calls
        One for each worker.
    for_input_gradient : bool
        Whether it is only needed for the gradient with respect to the network's input.
    """

    name: str
    workers: list[Calls]
    for_input_gradient: bool = False

    @classmethod
    def new(cls, name: str, workers: int, **settings: Any) -> Phase:
        """Return a phase with nothing in it."""
        return cls(name, [Calls() for _ in range(workers)], **settings)


@dataclass
class Clock:
    """How long the phases of each group took, in seconds, since the last ``reset``.

    Attributes
    ----------
    seconds : dict from (group, pass, phase) to float
    runs : dict from pass ("forward" or "backward") to int
    """

    seconds: dict[tuple[int, str, str], float] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)

    def reset(self) -> None:
        """Forget everything, as after a change of the machine's load."""
        self.seconds.clear()
        self.runs.clear()


def run(phases: Sequence[tuple[int, Phase]], clock: Clock, direction: str) -> None:
    """Run phases, each of a group with this number, one after the other, each on all workers."""
    phases = [(group, phase) for group, phase in phases if any(phase.workers)]
    start = perf_counter()

    def ended(k: int) -> None:
        nonlocal start
        now = perf_counter()
        group, phase = phases[k]
        key = group, direction, phase.name
        clock.seconds[key] = clock.seconds.get(key, 0.0) + now - start
        start = now

    workers.run_phases(
        [[worker.run if worker else None for worker in phase.workers] for _, phase in phases], ended
    )


def in_blocks(*arrays: np.ndarray) -> Iterable[tuple[np.ndarray, ...]]:
    """Cut arrays of one shape into pieces of at most BLOCK elements, which fit into the cache together.

    Examples
    --------
    >>> [piece.shape for piece, in in_blocks(np.zeros((3, 20000)))]
    [(3, 20000)]
    >>> [piece.shape for piece, in in_blocks(np.zeros((2, 50000)))]
    [(1, 50000), (1, 50000)]
    >>> [piece.shape for piece, in in_blocks(np.zeros((1, 100000)))]
    [(65536,), (34464,)]
    """
    first = arrays[0]
    if first.size <= BLOCK:
        yield arrays
    elif first.ndim > 1 and first[0].size > BLOCK:
        for rows in zip(*arrays, strict=True):
            yield from in_blocks(*rows)
    else:
        step = BLOCK // first[0].size
        for start in range(0, len(first), step):
            yield tuple(array[start : start + step] for array in arrays)


def split_evenly(count: int, workers: int) -> list[range]:
    """Divide ``count`` things among workers: neighbours stay together, and sizes differ by one at most.

    Examples
    --------
    >>> split_evenly(5, 2)
    [range(0, 2), range(2, 5)]
    """
    return [range(worker * count // workers, (worker + 1) * count // workers) for worker in range(workers)]


def reshaped(array: np.ndarray, *shape: int) -> np.ndarray:
    """Return a view of another shape; where NumPy would have to copy, that is a mistake in a plan."""
    view = array.reshape(shape)
    if view.size and not np.may_share_memory(view, array):
        raise AssertionError(f"{array.shape} with strides {array.strides} is no view of shape {shape}")
    return view


ZEROS = 1 << 12  # numbers, which stay in the first-level cache
_ZEROS = {np.dtype(t): np.zeros(ZEROS, t) for t in (np.float32, np.float64)}


def relu_(do: Calls, x: np.ndarray) -> None:
    """Record x = max(x, 0), in place, for a contiguous array.

    Against an array of zeros NumPy's maximum is two and a half times as fast as against the number 0.
    """
    flat, zeros = reshaped(x, -1), _ZEROS[x.dtype]
    whole = flat.size // ZEROS * ZEROS
    if whole:
        rows = flat[:whole].reshape(-1, ZEROS)
        do(np.maximum, rows, zeros, out=rows)
    if whole < flat.size:
        do(np.maximum, flat[whole:], zeros[: flat.size - whole], out=flat[whole:])
