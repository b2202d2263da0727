"""Worker threads, for the whole process.

NumPy releases Python's global lock inside its array operations, so threads compute at the same time.
Everything that works beside the main thread asks this module for it: a loader that prepares the next batch
(``submit``), a plan or a step of the optimizer, which spread their work over all cores (``in_step``,
``together``). The latter take no more of them than what was submitted leaves free.

How many there are is the environment variable ``SCRATCHNET_THREADS``, or else the number of cores that the
process may use. Idle workers wait on a lock; they never spin: a thread that spins in Python holds up all
others, which need Python's global lock between two array operations.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from threadpoolctl import OpenBLASController, ThreadpoolController

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()
_submitted = 0  # functions that have not ended
_limit = 0  # the size of the pool, once it is in use
_idle: list[_Helper] = []
_helping = 0
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
    global _pool, _submitted
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(_size_in_use(), thread_name_prefix="scratchnet")
        future = _pool.submit(function, *arguments)
        _submitted += 1
    future.add_done_callback(_has_ended)
    return future


def _has_ended(future: Future) -> None:
    global _submitted
    with _lock:
        _submitted -= 1


def together(tasks: Sequence[Callable[[], Any]]) -> None:
    """Run several functions at the same time, and return when all have finished.

    The first runs on the calling thread, the others on workers as far as any are free, and where none is, on
    the calling thread as well: so workers that are busy with something else delay nobody, and one may call
    this from within the pool.

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
    if not tasks:
        return
    rest = deque(tasks[1:])

    def run_the_rest() -> None:
        while rest:
            try:
                task = rest.popleft()
            except IndexError:  # somebody else was quicker
                return
            task()

    def run_first() -> None:
        tasks[0]()
        run_the_rest()

    helpers = _take_helpers(len(rest))
    _run_beside(helpers, [run_the_rest] * len(helpers), run_first, give_up=rest.clear)


def in_step(phases: Sequence[Sequence[Callable[[], Any] | None]], ended: Callable[[int], Any]) -> None:
    """Run phases one after the other: each thread has its own task in each, and waits for the others then.

    It does what a call of ``together`` for each phase does, but whoever is last goes on at once, and only the
    others have to be woken up.

    Parameters
    ----------
    phases : sequence of sequences of callables without arguments
        Task k of each phase runs on thread k; task 0 on the caller's. None for nothing to do.
    ended : callable
        ``ended(k)`` is called on the caller's thread when phase k has.

    Raises
    ------
    BaseException
        What a task raised. Also then, and after Ctrl-C, none of them is still running.

    Examples
    --------
    >>> x = [1, 2]
    >>> double = [lambda: x.__setitem__(0, 2 * x[0]), lambda: x.__setitem__(1, 2 * x[1])]
    >>> add = [lambda: x.append(x[0] + x[1]), None]
    >>> in_step([double, double, add], ended=lambda k: None)
    >>> x
    [4, 8, 12]
    """
    threads = len(phases[0]) if phases else 0
    helpers = _take_helpers(threads - 1)
    if len(helpers) < threads - 1:  # the others have something else to do, perhaps not for long
        _give_back(helpers)
        for k, tasks in enumerate(phases):
            together([task for task in tasks if task is not None])
            ended(k)
        return
    barrier = _Barrier(threads)

    def walk(thread: int) -> None:
        try:
            for k, tasks in enumerate(phases):
                if tasks[thread] is not None:
                    tasks[thread]()
                barrier.wait(thread)
                if thread == 0:
                    ended(k)
        except _Broken:  # by another thread, whose error will be raised
            pass
        except BaseException:
            barrier.break_off()
            raise

    theirs = [partial(walk, thread) for thread in range(1, threads)]
    _run_beside(helpers, theirs, partial(walk, 0), give_up=barrier.break_off)


class _Broken(Exception):
    pass


class _Barrier:
    """Where threads wait for each other; ``threading.Barrier`` takes twice as long."""

    def __init__(self, threads: int):
        self._lock, self._arrived, self._broken = threading.Lock(), 0, False
        self._gates = [threading.Lock() for _ in range(threads)]
        for gate in self._gates:
            gate.acquire()

    def wait(self, thread: int) -> None:
        """Return when all have come."""
        with self._lock:
            if self._broken:
                raise _Broken
            self._arrived += 1
            if self._arrived == len(self._gates):
                self._arrived = 0
                for k, gate in enumerate(self._gates):
                    if k != thread:
                        gate.release()
                return
        self._gates[thread].acquire()
        if self._broken:
            raise _Broken

    def break_off(self) -> None:
        """Let all go, who then find ``_Broken`` raised; also if Ctrl-C comes meanwhile."""
        while True:
            try:
                with self._lock:
                    self._broken = True
                    for gate in self._gates:
                        if gate.locked():
                            gate.release()
                return
            except KeyboardInterrupt:
                continue


class _Helper:
    """A thread that works for ``together`` and ``in_step``, and waits on a lock in between.

    A phase of a small layer takes a tenth of a millisecond. To hand it to a ``ThreadPoolExecutor`` and to
    wait for its ``Future`` costs 70 microseconds; with two locks it is 50, most of it the thread's waking up.
    """

    def __init__(self) -> None:
        self._begins, self._ends = threading.Lock(), threading.Lock()
        self._begins.acquire()
        self._ends.acquire()
        self._task: Callable[[], Any] | None = None
        self._error: BaseException | None = None
        threading.Thread(target=self._serve, name="scratchnet helper", daemon=True).start()

    def _serve(self) -> None:
        while True:
            self._begins.acquire()
            try:
                self._task()
            except BaseException as error:  # raised again by whoever waits for this helper
                self._error = error
            self._ends.release()

    def begin(self, task: Callable[[], Any]) -> None:
        """Run a task."""
        self._task = task
        self._begins.release()

    def end(self) -> BaseException | None:
        """Wait until the task, if there is one, has ended, and return what it raised."""
        if self._task is None:
            return None
        self._ends.acquire()
        self._task, error, self._error = None, self._error, None  # let go of everything
        return error


def _take_helpers(wanted: int) -> list[_Helper]:
    global _helping
    if wanted < 1:
        return []
    with _lock:
        most = _size_in_use()
        free = min(most - 1, most - _submitted) - _helping  # the caller works, too
        helpers = [_idle.pop() if _idle else _Helper() for _ in range(min(wanted, free))]
        _helping += len(helpers)
    return helpers


def _run_beside(
    helpers: list[_Helper], theirs: list[Callable], own: Callable[[], Any], give_up: Callable[[], Any]
) -> None:
    """Run a task on each helper and our own here; call ``give_up`` if ours fails, and wait for theirs."""
    try:
        for helper, task in zip(helpers, theirs, strict=True):
            helper.begin(task)
        own()
    except BaseException:
        give_up()
        raise
    finally:  # nobody may still be writing into the caller's arrays when the caller goes on
        error = _wait_for(helpers)
    if error is not None:
        raise error


def _wait_for(helpers: list[_Helper]) -> BaseException | None:
    """Wait for all, also where Ctrl-C comes meanwhile; return the first error, if there was one."""
    first = None
    for helper in helpers:
        while True:
            try:
                error = helper.end()
                break
            except KeyboardInterrupt as interruption:
                first = interruption
        first = first or error
    _give_back(helpers)
    return first


def _give_back(helpers: list[_Helper]) -> None:
    global _helping
    if helpers:
        with _lock:
            _helping -= len(helpers)
            _idle.extend(helpers)


def _size_in_use() -> int:
    global _limit
    _limit = _limit or size()
    return _limit


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
    global _pool, _lock, _idle, _submitted, _helping, _blas_users
    _pool, _lock, _idle = None, threading.Lock(), []
    _submitted = _helping = 0
    if _blas_users:
        _blas_users = 0
        _blas_limit.restore_original_limits()
        _release_control()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
