"""What ranks tell each other, by MPI: sums of host arrays, and objects.

MPI goes on with a sum only within calls to it, and some libraries spin while they wait. So a sum begins
without waiting, and a thread then asks five times per millisecond, as long as there is anything to ask
for. Who waits for gradients asks all the time, and lets others compute in between; for anything else it
sleeps.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from scratchnet import workers
from scratchnet.backend import Array

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

INSTALL = "pip install mpi4py, and an MPI library, as pip install mpich brings"
POLL_SECONDS = 2e-4
# What launchers tell the processes that they start: how many there are, and which one this is.
LAUNCHERS = {
    "PMI_SIZE": "PMI_RANK",  # MPICH, Intel MPI
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",  # Open MPI
    "SLURM_STEP_NUM_TASKS": "SLURM_PROCID",  # srun
}


class DistributedError(ValueError):
    """Ranks cannot train together. The message says why and what to do."""


class Elsewhere(DistributedError):
    """Another rank has failed, and says how; this one only ends."""


def started_by_mpirun() -> tuple[int, int]:
    """Return how many processes a launcher has started, and which of them this is; (1, 0) without one.

    Examples
    --------
    >>> started_by_mpirun()
    (1, 0)
    """
    for size, rank in LAUNCHERS.items():
        if os.environ.get(size, "").isdecimal():
            return int(os.environ[size]), int(os.environ.get(rank) or 0)
    return 1, 0


def join() -> Communicator:
    """Return this process's communicator with all that were started together; one, if there is no other.

    Processes on one host divide its cores, unless ``SCRATCHNET_THREADS`` says otherwise: call this before
    anything is computed.

    Raises
    ------
    DistributedError
        If there is no mpi4py, no MPI library, or not the one that started the processes.

    Examples
    --------
    >>> with join() as ranks:  # doctest: +SKIP
    ...     print(ranks.rank, ranks.size)
    0 4
    """
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise DistributedError(f"training in many processes needs mpi4py ({error}): {INSTALL}") from None
    except RuntimeError as error:  # mpi4py is there, and finds no library
        raise DistributedError(f"mpi4py finds no MPI library ({error}): {INSTALL}") from None
    ranks, (started, _) = Communicator(MPI.COMM_WORLD, MPI), started_by_mpirun()
    if ranks.size == 1 and started > 1:
        raise DistributedError(
            f"{started} processes were started, and mpi4py's MPI library knows of one: start them by the "
            f"mpirun of that library, {MPI.Get_library_version().splitlines()[0].strip()}"
        )
    ranks.divide_cores()
    return ranks


class Communicator:
    """What this rank tells the others. Every rank makes the same calls in the same order.

    As a context it ends all ranks where one fails: with the error's traceback, unless all have met the error
    together.

    Parameters
    ----------
    comm : mpi4py communicator
    mpi : module
        ``mpi4py.MPI``.

    Attributes
    ----------
    rank, size : int
        Which rank this is, of how many.

    Examples
    --------
    >>> with join() as ranks:  # doctest: +SKIP
    ...     ranks.gather({"rank": ranks.rank})
    [{'rank': 0}, {'rank': 1}]
    """

    def __init__(self, comm: Any, mpi: Any):
        self.mpi, self.comm, self.rank, self.size = mpi, comm, comm.Get_rank(), comm.Get_size()
        self._sums = comm.Dup()  # of its own, so that the order of other messages does not matter
        self._underway: list[Any] = []
        self._lock, self._begun = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._threads = mpi.Query_thread() >= mpi.THREAD_MULTIPLE

    # Sums of gradients, while other things are computed

    def begin_sum(self, x: Array) -> None:
        """Begin to replace an array by the sum of all ranks' arrays; ``finish_sums`` ends it."""
        with self._lock:
            self._underway.append(self._sums.Iallreduce(self.mpi.IN_PLACE, x, op=self.mpi.SUM))
        if self._threads and self._thread is None:
            self._thread = threading.Thread(target=self._go_on, name="scratchnet sums", daemon=True)
            self._thread.start()
        self._begun.set()

    def finish_sums(self) -> None:
        """Return when all sums that were begun are there."""
        while not self._all_there():
            time.sleep(0)  # only asking makes it go on: all cores that nobody else wants are for that now
        self._underway.clear()

    def _all_there(self) -> bool:
        with self._lock:
            return self.mpi.Request.Testall(self._underway)

    def _go_on(self) -> None:
        while True:
            self._begun.wait()
            if self._all_there():
                self._begun.clear()
            time.sleep(POLL_SECONDS)

    # Small things

    def sum(self, x: np.ndarray) -> np.ndarray:
        """Return the sum of every rank's host array, on all of them."""
        total = np.array(x)
        request = self.comm.Iallreduce(self.mpi.IN_PLACE, total, op=self.mpi.SUM)
        _sleep_until(request.Test)
        return total

    def gather(self, value: T) -> list[T]:
        """Return every rank's object, on all of them, by rank."""
        self._meet()
        return self.comm.allgather(value)

    def broadcast(self, value: T) -> T:
        """Return rank 0's object on all ranks."""
        self._meet()
        return self.comm.bcast(value)

    def broadcast_into(self, x: Array) -> None:
        """Replace an array of numbers by rank 0's."""
        self._meet()
        self.comm.Bcast(x)

    def on_writer(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0 and return its result on all ranks, or raise there what it raised.

        On the other ranks that is ``Elsewhere``.
        """
        result: Any = None
        failed: BaseException | None = None
        if self.rank == 0:
            try:
                result = function()
            except (Exception, KeyboardInterrupt) as error:
                failed = error
        result, why = self.broadcast((result, failed and f"{type(failed).__name__}: {failed}"))
        if why:
            raise self.met(failed or Elsewhere(f"rank 0: {why}"))
        return result

    def _meet(self) -> None:
        """Wait for all other ranks, asleep."""
        _sleep_until(self.comm.Ibarrier().Test)

    # Together to the end

    def met(self, error: E) -> E:
        """Mark an error that all ranks raise at once: each ends by itself, and one of them says why."""
        error.met_by_all = True  # type: ignore[attr-defined]
        return error

    def divide_cores(self) -> None:
        """Set ``SCRATCHNET_THREADS``, where it is not set, to this rank's part of the host's cores."""
        if os.environ.get("SCRATCHNET_THREADS"):
            return
        local = self.comm.Split_type(self.mpi.COMM_TYPE_SHARED)
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        sharing = local.allgather(sorted(cores)).count(sorted(cores))  # launchers may have bound them
        local.Free()
        os.environ["SCRATCHNET_THREADS"] = str(max(1, workers.size() // sharing))

    def abort(self, status: int) -> None:
        """End all ranks, now."""
        sys.stdout.flush()
        sys.stderr.flush()
        self.comm.Abort(status)

    def __enter__(self) -> Communicator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, SystemExit) or getattr(error, "met_by_all", False):
            return
        if self.size > 1:
            traceback.print_exception(kind, error, trace)
            self.abort(130 if isinstance(error, KeyboardInterrupt) else 1)


def _sleep_until(ready: Callable[[], bool]) -> None:
    """Return when ``ready`` says so: asked often at first, then every half millisecond, asleep in between."""
    for _ in range(50):
        if ready():
            return
    pause = 2e-5
    while not ready():
        time.sleep(pause)
        pause = min(2 * pause, 5e-4)
