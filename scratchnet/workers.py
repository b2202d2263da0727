"""One pool of worker threads for the whole process.

NumPy releases Python's global lock inside its array operations, so threads compute at the same time.
Everything that works beside the main thread asks this module for it: a loader that prepares the next batch
(``submit``), a plan or a step of the optimizer, which spread their work over all cores (``together``). There
is one pool, so that the program never runs more threads than it was given cores.

Its size is the environment variable ``SCRATCHNET_THREADS``, or else the number of cores that the process may
use. Idle workers wait on a lock; they never spin.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

from threadpoolctl import OpenBLASController, ThreadpoolController

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()
_blas: ThreadpoolController | None = None
_blas_users = 0
_blas_limit: Any = None


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


def together(tasks: Sequence[Callable[[], Any]]) -> None:
    """Run several functions at the same time, and return when all have finished.

    The first runs on the calling thread, the others on the pool's. A function that no worker has begun when
    the caller is ready with its own is run by the caller: so a pool that is busy with something else delays
    nobody, and one may call this from within the pool.

    Parameters
    ----------
    tasks : sequence of callables without arguments
        They must not depend on each other.

    Raises
    ------
    BaseException
        What a task raised. Also then, and after Ctrl-C, none of them is still running.

    Examples
    --------
    >>> done = [False, False]
    >>> together([lambda: done.__setitem__(0, True), lambda: done.__setitem__(1, True)])
    >>> done
    [True, True]
    """
    futures = [submit(task) for task in tasks[1:]]
    try:
        if tasks:
            tasks[0]()
        for task, future in zip(tasks[1:], futures, strict=True):
            if future.cancel():
                task()
        for future in futures:
            if not future.cancelled():
                future.result()
    finally:  # nobody may still be writing into the caller's arrays when the caller goes on
        wait([future for future in futures if not future.cancel()])


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let matrix products run on the thread that calls them, and on no other, within this context.

    The workers are the parallelism: a BLAS that started threads of its own under each of them would only make
    them wait for each other. The setting is the process's; it is restored when the last of the contexts that
    are open at the same time ends.

    Examples
    --------
    >>> with one_blas_thread():
    ...     pass
    """
    global _blas_users, _blas_limit, _blas
    with _lock:
        if _blas is None:
            _blas = ThreadpoolController().select(user_api="blas")  # takes milliseconds: once
        if _blas_users == 0:
            _release_control()
            _blas_limit = _blas.limit(limits=1)
        _blas_users += 1
    try:
        yield
    finally:
        with _lock:
            _blas_users -= 1
            if _blas_users == 0:
                _release_control()
                _blas_limit.restore_original_limits()
                _release_control()


def _release_control() -> None:
    # From 3.8 on threadpoolctl lets nobody but the thread that set a limit change it, silently. Here the last
    # to leave, which restores, may be another thread than the first to enter; and the lock keeps order.
    # Whoever else holds a limit gets control back by restoring his own.
    release = getattr(OpenBLASController, "clear_controlling_thread", None)
    if release is not None:
        release(force=True)


def _forget_pool() -> None:
    # A fork copies the pool object but none of its threads, and perhaps a lock that one of them held.
    # A plan that another thread was running does not run here.
    global _pool, _lock, _blas_users
    _pool, _lock = None, threading.Lock()
    if _blas_users:
        _blas_users = 0
        _blas_limit.restore_original_limits()
        _release_control()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
