"""Lists of array calls, recorded once and run on several worker threads, with barriers between them.

A plan decides everything before it runs: which NumPy function is called on which views of which buffers. What
is left at run time is a list of calls, and a list is quick to walk::

    phase 1   worker 0   matmul(...) add(...) maximum(...) matmul(...) ...
              worker 1   matmul(...) add(...) maximum(...) matmul(...) ...
    --------- barrier: every worker has finished -------------------------------
    phase 2   worker 0   ...

In one phase no worker touches what another one writes; phases follow each other. Making the views at run time
instead would cost a few microseconds each, all of them under Python's global lock, where only one worker at a
time can be.

Which worker does what is decided before, too, never by which worker happens to be free: so sums are added in
the same order every time, and the same machine gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import setitem
from time import perf_counter
from typing import Any

import numpy as np

from scratchnet import workers
from scratchnet.plans.describe import Clock

# NumPy's element-wise functions work through operands that need a conversion (as a boolean mask times
# numbers does) in parts of this many elements. The default, 8192, makes two of them overflow the first-level
# cache; with 1024 the large layers of VGG take a quarter less time.
UFUNC_BUFFER = 1024

# Element-wise work on large arrays goes in blocks of this many elements, which stay in the second-level cache
# from one call to the next.
CACHE_ELEMENTS = 1 << 16


class Calls(list[Any]):
    """Array calls that are recorded once and run as often as needed.

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

    def __call__(self, function: Callable[..., Any], *arguments: Any, out: Any, **options: Any) -> None:
        """Record ``function(*arguments, out=out)``, with further options such as ``where=``."""
        self.append((function, arguments, {"out": out, **options}))

    def call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Record ``function(*arguments)``."""
        self.append((function, arguments, {}))

    def copy(self, source: Any, out: np.ndarray) -> None:  # type: ignore[override]
        """Record ``out[...] = source``, where ``source`` may be a number."""
        self.append((setitem, (out, Ellipsis, source), {}))

    def run(self) -> None:
        """Run all calls, in order."""
        before = np.getbufsize()
        try:
            np.setbufsize(UFUNC_BUFFER)  # holds for this thread
            for function, arguments, options in self:
                function(*arguments, **options)
        finally:
            np.setbufsize(before)


@dataclass
class Phase:
    """Work for all workers between two barriers."""

    name: str  # what it does, for ``describe()``
    workers: list[Calls]  # what each runs
    for_input_gradient: bool = False  # whether only the gradient of the network's input needs it


def run(
    phases: Sequence[tuple[int, Phase]],
    clock: Clock,
    direction: str,
    group_done: Callable[[int], None] | None = None,
) -> None:
    """Run phases, each of a group with this number, one after the other, each on all workers.

    ``group_done`` is called with a group's number after the last of its phases, while the next ones run.
    """
    phases = [(group, phase) for group, phase in phases if any(phase.workers)]
    start = perf_counter()

    def ended(k: int) -> None:
        nonlocal start
        now = perf_counter()
        group, phase = phases[k]
        key = group, direction, phase.name
        clock.seconds[key] = clock.seconds.get(key, 0.0) + now - start
        start = now
        if group_done is not None and (k + 1 == len(phases) or phases[k + 1][0] != group):
            group_done(group)

    workers.run_phases(
        [[worker.run if worker else None for worker in phase.workers] for _, phase in phases], ended
    )


def cache_sized(*arrays: np.ndarray) -> Iterable[tuple[np.ndarray, ...]]:
    """Cut arrays of one shape into slices of at most CACHE_ELEMENTS, which fit into the cache together.

    Examples
    --------
    >>> [block.shape for block, in cache_sized(np.zeros((3, 20000)))]
    [(3, 20000)]
    >>> [block.shape for block, in cache_sized(np.zeros((2, 50000)))]
    [(1, 50000), (1, 50000)]
    >>> [block.shape for block, in cache_sized(np.zeros((1, 100000)))]
    [(65536,), (34464,)]
    """
    first = arrays[0]
    if first.size <= CACHE_ELEMENTS:
        yield arrays
    elif first.ndim > 1 and first[0].size > CACHE_ELEMENTS:
        for rows in zip(*arrays, strict=True):
            yield from cache_sized(*rows)
    else:
        step = CACHE_ELEMENTS // first[0].size
        for start in range(0, len(first), step):
            yield tuple(array[start : start + step] for array in arrays)


def split_evenly(count: int, workers: int) -> list[range]:
    """Divide ``count`` items among workers: neighbours stay together, and sizes differ by one at most.

    Examples
    --------
    >>> split_evenly(5, 2)
    [range(0, 2), range(2, 5)]
    """
    return [range(worker * count // workers, (worker + 1) * count // workers) for worker in range(workers)]


def in_steps(items: range, size: int) -> list[range]:
    """Cut a range into ranges of ``size`` items, the last one of what is left.

    Examples
    --------
    >>> in_steps(range(2, 9), 3)
    [range(2, 5), range(5, 8), range(8, 9)]
    """
    return [items[start : start + size] for start in range(0, len(items), size)]


def reshaped(array: np.ndarray, *shape: int) -> np.ndarray:
    """Return a view of another shape; where NumPy would have to copy, the plan is wrong."""
    view = array.reshape(shape)
    if view.size and not np.may_share_memory(view, array):
        raise AssertionError(f"{array.shape} with strides {array.strides} is no view of shape {shape}")
    return view
