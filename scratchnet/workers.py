"""Worker threads, for the whole process.

NumPy releases Python's global lock inside its array operations, so threads compute at the same time.
Everything that computes beside the main thread does so through this module: a loader that prepares the next
batch (``submit``), a plan or an optimizer's step, which spread their work over all cores (``run_phases``,
``run_parallel``). The latter two use only the workers that submitted tasks leave free.

The number of threads that compute at a time is the environment variable ``SCRATCHNET_THREADS``, or else the
number of cores that the process may use; with the caller, which does not stop for submitted tasks, it may be
one more. Idle workers wait on a lock; they never spin: a thread that spins in Python holds up all others,
which need Python's global lock between two array operations.

**Ctrl-C** raises KeyboardInterrupt in the main thread between any two instructions, and so may the handler of
any other signal; and an object that the garbage collector ends may cancel what it had submitted, at any
allocation. So counts are taken from what is there (jobs that have not finished), not kept up and down; a task
is handed over by a single call into C; and whatever may have been interrupted may be done again.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeAlias

from threadpoolctl import OpenBLASController, ThreadpoolController

from scratchnet.cores import usable_cores

Task: TypeAlias = Callable[[], Any]

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()
_submitted: set[Future] = set()  # what has not ended
_limit = 0  # the size of the pool, once it is in use
_helpers: list[_Helper] = []
_blas: ThreadpoolController | None = None
_blas_users: set[object] = set()
_blas_before: list[tuple[Any, int]] = []  # the libraries that are limited now, and their threads before


def size() -> int:
    """Return how many threads the process computes with; the pool keeps the value of its first use.

    That is ``SCRATCHNET_THREADS``, or else the cores that this process may use, see ``usable_cores``.
    """
    wanted = os.environ.get("SCRATCHNET_THREADS")
    if wanted:
        if not wanted.isdecimal() or int(wanted) < 1:
            raise ValueError(f"SCRATCHNET_THREADS must be a whole number above zero, not {wanted!r}")
        return int(wanted)
    return usable_cores()


def submit(function: Callable[..., Any], *arguments: Any) -> Future:
    """Run ``function(*arguments)`` on a worker thread.

    >>> submit(pow, 2, 10).result()
    1024
    """
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(_size_in_use(), thread_name_prefix="scratchnet")
        future = _pool.submit(function, *arguments)
    _submitted.add(future)
    future.add_done_callback(_submitted.discard)
    return future


def run_parallel(tasks: Sequence[Task]) -> None:
    """Run functions that do not depend on each other at the same time, and return when all have finished.

    The first runs on the calling thread, the others on workers as far as any are free, and where none is, on
    the calling thread as well: so workers that are busy with something else delay nobody, and one may call
    this from within the pool. Where a task raises, and after Ctrl-C too, none of them is still running.

    >>> done = [False, False]
    >>> run_parallel([lambda: done.__setitem__(0, True), lambda: done.__setitem__(1, True)])
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
            except IndexError:  # another thread was quicker
                return
            task()

    def run_first() -> None:
        tasks[0]()
        run_the_rest()

    _run_beside([run_the_rest] * len(rest), run_first, give_up=rest.clear)


def run_phases(phases: Sequence[Sequence[Task | None]], ended: Callable[[int], Any]) -> None:
    """Run phases one after the other: each thread has its own task in each, and waits for the others then.

    It does what a call of ``run_parallel`` for each phase does, but the last thread to arrive goes on, and
    only the others must be woken up. (Where there are not enough free workers, it is that call.) All phases
    have equally many tasks, None for nothing to do: task k of each runs on thread k, task 0 on the caller's,
    where ``ended(k)`` is called when phase k has ended.

    >>> x = [1, 2]
    >>> double = [lambda: x.__setitem__(0, 2 * x[0]), lambda: x.__setitem__(1, 2 * x[1])]
    >>> add = [lambda: x.append(x[0] + x[1]), None]
    >>> run_phases([double, double, add], ended=lambda k: None)
    >>> x
    [4, 8, 12]
    """
    threads = len(phases[0]) if phases else 0
    barrier = _Barrier(threads)

    def walk(thread: int) -> None:
        try:
            for k, tasks in enumerate(phases):
                if (task := tasks[thread]) is not None:
                    task()
                barrier.wait(thread)
                if thread == 0:
                    ended(k)
        except _Broken:  # by another thread, whose error will be raised
            pass
        except BaseException:
            barrier.break_off()
            raise

    theirs = [partial(walk, thread) for thread in range(1, threads)]
    if _run_beside(theirs, partial(walk, 0), give_up=barrier.break_off, all_or_none=True):
        return
    for k, tasks in enumerate(phases):  # the others have something else to do, perhaps not for long
        run_parallel([task for task in tasks if task is not None])
        ended(k)


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
        """Let all go, who then find ``_Broken`` raised. It may be called again."""
        with self._lock:
            self._broken = True
            for gate in self._gates:
                if gate.locked():
                    gate.release()


class _Job:
    """A task that a helper runs, and what became of it."""

    def __init__(self, helper: _Helper, task: Task):
        # In the caller's context, a copy of it, so that np.errstate, for one, holds for all threads.
        self.helper = helper
        self._task: Task | None = partial(copy_context().run, task)
        self.finished = False
        self.error: BaseException | None = None
        self._ended = threading.Lock()
        self._ended.acquire()

    def run(self) -> None:
        """Run the task, on the helper's thread, unless that has been done."""
        if self.finished:
            return
        try:
            if self._task is not None:
                self._task()
        except BaseException as error:  # raised again by the thread that waits for this job
            self.error = error
        self._task = None  # let go of everything
        self.finished = True
        self._ended.release()

    def wait(self) -> None:
        """Return when the task has ended."""
        while not self.finished:
            self._ended.acquire()


class _Helper:
    """A thread that works for ``run_parallel`` and ``run_phases``.

    A phase of a small layer takes a tenth of a millisecond. To hand it to a ``ThreadPoolExecutor`` and to
    wait for its ``Future`` costs 70 microseconds; this is 50, most of it the thread's waking up.
    """

    def __init__(self) -> None:
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        self.job: _Job | None = None  # the latest
        threading.Thread(target=self._serve, name="scratchnet helper", daemon=True).start()

    @property
    def is_free(self) -> bool:
        return self.job is None or self.job.finished

    def _serve(self) -> None:
        while True:
            self.jobs.get().run()


def _run_beside(theirs: Sequence[Task], own: Task, give_up: Task, all_or_none: bool = False) -> bool:
    """Run tasks on the helpers that are free, and our own here; return whether it was run.

    Whatever is raised, none is running any more when this ends: no thread may still be writing into the
    caller's arrays when the caller goes on. ``give_up`` lets all go that wait for one that does not come.
    """
    jobs: list[_Job] = []
    well = False
    try:
        try:
            _begin(theirs, all_or_none, jobs)
            if all_or_none and len(jobs) < len(theirs):
                return False
            own()
            well = True
        finally:
            _settle(jobs, give_up, well)
    finally:  # again, should a signal have come between two lines of the above
        _settle(jobs, give_up, well=False)
    errors = [job.error for job in jobs if job.error is not None]
    for job in jobs:
        job.error = None  # its frames hold arrays
    if errors:
        raise errors[0]
    return True


def _begin(tasks: Sequence[Task], all_or_none: bool, jobs: list[_Job]) -> None:
    """Begin tasks on the helpers that are free, and add these jobs to the list."""
    if not tasks:
        return
    with _lock:
        free = [helper for helper in _helpers if helper.is_free]
        # The caller works, too, and what was submitted has the first claim.
        others, most = len(_helpers) - len(free), _size_in_use()
        count = min(len(tasks), min(most - 1, most - len(_submitted)) - others)
        if count < (len(tasks) if all_or_none else 1):
            return
        while len(free) < count:
            free.append(_Helper())
            _helpers.append(free[-1])
        for helper, task in zip(free, tasks[:count], strict=False):
            jobs.append(_Job(helper, task))
            helper.job = jobs[-1]
            helper.jobs.put(helper.job)


def _settle(jobs: list[_Job], give_up: Task, well: bool) -> None:
    """Return when no job is running any more; what the handlers of signals raise meanwhile is raised then."""
    interruption: BaseException | None = None
    while not all(job.finished for job in jobs):
        try:
            if not well or interruption is not None:
                give_up()
                for job in jobs:  # one that has not begun would never end; a second time changes nothing
                    job.helper.jobs.put(job)
            for job in jobs:
                job.wait()
        except BaseException as raised:
            interruption = raised
    if interruption is not None:
        raise interruption


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
    """
    global _blas
    user = object()
    try:
        with _lock:
            if _blas is None:
                _blas = ThreadpoolController().select(user_api="blas")  # takes milliseconds: once
            _blas_users.add(user)
            if not _blas_before:
                _blas_before[:] = [(library, library.num_threads) for library in _blas.lib_controllers]
                _set_blas_threads((library, 1) for library, _ in _blas_before)
        yield
    finally:
        _blas_users.discard(user)
        with _lock:
            if not _blas_users:
                _set_blas_threads(_blas_before)
                _blas_before.clear()


def _set_blas_threads(numbers: Iterable[tuple[Any, int]]) -> None:
    # From 3.8 on threadpoolctl lets only the thread that set a limit change it, silently. Here the last
    # to leave, which restores, may be another thread than the first to enter; and the lock keeps order.
    # Another holder of a limit gets control back by restoring its own.
    release_control = getattr(OpenBLASController, "clear_controlling_thread", lambda force: None)
    release_control(force=True)
    for library, threads in numbers:
        library.set_num_threads(threads)
    release_control(force=True)


def _forget_pool() -> None:
    # A fork copies the objects but none of the threads, and perhaps a lock that one of them held. A pass that
    # another thread of the parent was in does not go on here.
    global _pool, _lock, _helpers, _submitted
    _pool, _lock, _helpers, _submitted = None, threading.Lock(), [], set()
    _blas_users.clear()
    if _blas_before:
        _set_blas_threads(_blas_before)
        _blas_before.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
