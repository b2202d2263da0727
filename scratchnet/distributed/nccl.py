"""The sums of gradients on GPUs, by NCCL: they never leave the GPUs. MPI tells the ranks of each other.

NCCL computes on a stream of its own beside the one that computes gradients::

    compute   backward of the last layers | event | backward of earlier layers ...  | wait | step
    sums                                  | wait  | allReduce of their slice ...    | event|

The host waits for neither. (Not yet measured: it has run on a stand-in that checks calls, sizes and streams.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchnet.backend import Array
from scratchnet.distributed.communicator import Communicator, DistributedError


class NcclCommunicator(Communicator):
    """Ranks with a GPU each: sums and broadcasts of device arrays by NCCL, everything else by MPI.

    Parameters
    ----------
    comm, mpi
        As of ``Communicator``.
    xp : module
        CuPy; each rank has chosen its device.

    Raises
    ------
    DistributedError
        If CuPy was built without NCCL.

    Examples
    --------
    >>> NcclCommunicator(comm, MPI, cupy).begin_sum(gradients)  # doctest: +SKIP
    """

    def __init__(self, comm: Any, mpi: Any, xp: Any):
        super().__init__(comm, mpi)
        self.xp = xp
        try:
            from cupy.cuda import nccl
        except ImportError as error:
            raise DistributedError(f"this CuPy has no NCCL ({error}): conda install nccl, or pip's") from None
        self.nccl = nccl
        self._kinds = {"float32": nccl.NCCL_FLOAT32, "float64": nccl.NCCL_FLOAT64}
        number = self.broadcast(nccl.get_unique_id() if self.rank == 0 else None)
        self._gpus = nccl.NcclCommunicator(self.size, number, self.rank)
        self._stream = xp.cuda.Stream(non_blocking=True)

    def begin_sum(self, x: Array) -> None:  # noqa: D102
        self._after(self.xp.cuda.get_current_stream(), self._stream)
        place, kind = self._place_of(x), self._kinds[x.dtype.name]
        self._gpus.allReduce(place, place, x.size, kind, self.nccl.NCCL_SUM, self._stream.ptr)

    def finish_sums(self) -> None:  # noqa: D102
        self._after(self._stream, self.xp.cuda.get_current_stream())

    def broadcast_into(self, x: Array) -> None:  # noqa: D102
        if isinstance(x, np.ndarray):
            super().broadcast_into(x)
            return
        place, stream = self._place_of(x), self.xp.cuda.get_current_stream()
        self._gpus.broadcast(place, place, x.size, self._kinds[x.dtype.name], 0, stream.ptr)

    def _after(self, first: Any, then: Any) -> None:
        """Let one stream wait for what another has been given so far."""
        event = self.xp.cuda.Event(disable_timing=True)
        event.record(first)
        then.wait_event(event)

    def _place_of(self, x: Array) -> int:
        device: Any = x
        if not device.flags.c_contiguous:
            raise ValueError("NCCL adds up contiguous arrays only")
        return device.data.ptr


def with_gpus(ranks: Communicator, xp: Any) -> NcclCommunicator:
    """Return a communicator for device arrays of the same ranks; each host's take its GPUs in turn."""
    local = ranks.comm.Split_type(ranks.mpi.COMM_TYPE_SHARED)
    xp.cuda.Device(local.Get_rank() % xp.cuda.runtime.getDeviceCount()).use()
    local.Free()
    return NcclCommunicator(ranks.comm, ranks.mpi, xp)
