"""One pool of worker threads for the whole process.

NumPy releases Python's global lock inside its array operations, so threads compute at the same time.
Everything that works beside the main thread asks this module for it: a loader that prepares the next batch, a
step of the optimizer. There is one pool, so that the program never runs more threads than it was given cores.

Its size is the environment variable ``SCRATCHNET_THREADS``, or else the number of cores that the process may
use. Idle workers wait on a lock; they never spin.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def size() -> int:
    """Return how many worker threads the process uses.

    Returns
    -------
    int
        ``SCRATCHNET_THREADS`` where it is set, otherwise the cores that this process may use (its affinity
        mask, not the machine's total).

    Raises
    ------
    ValueError
        If ``SCRATCHNET_THREADS`` is not a whole number above zero.

    Examples
    --------
    >>> size() >= 1
    True
    """
    wanted = os.environ.get("SCRATCHNET_THREADS")
    if wanted:
        if not wanted.isdecimal() or int(wanted) < 1:
            raise ValueError(f"SCRATCHNET_THREADS must be a whole number above zero, not {wanted!r}")
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def submit(function: Callable[..., Any], *arguments: Any) -> Future:
    """Run ``function(*arguments)`` on a worker thread.

    Parameters
    ----------
    function : callable
        What to run. An exception that it raises is raised again by ``Future.result()``.
    *arguments
        Passed on to it.

    Returns
    -------
    concurrent.futures.Future
        ``.result()`` waits for the function and returns what it returned.

    Examples
    --------
    >>> submit(pow, 2, 10).result()
    1024
    """
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(size(), thread_name_prefix="scratchnet")
        return _pool.submit(function, *arguments)


def _forget_pool() -> None:
    # A fork copies the pool object but none of its threads, and perhaps a lock that one of them held.
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
