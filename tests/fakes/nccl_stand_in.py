"""An NCCL for machines without GPUs: checks calls, sizes and streams; a thread per rank adds up."""

from __future__ import annotations

import ctypes
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import numpy as np

from tests.fakes import cuda_runtime

FLOATS = {7: np.float32, 8: np.float64}


class World:
    """The ranks that share an identifier."""

    def __init__(self, meeting):
        self.meeting, self.streams, self.calls = meeting, {0: cuda_runtime.streams[0]}, []


class NcclCommunicator:
    """One rank's."""

    world: World

    def __init__(self, ndev, commId, rank):  # noqa: N803  (CuPy's names)
        assert commId == ("the id of this world",), "all ranks need the identifier that rank 0 made"
        assert ndev == self.world.meeting.ranks and 0 <= rank < ndev
        self.rank = rank

    def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):  # noqa: N802
        here, stream = self._array(recvbuf, count, datatype), self._stream(stream)
        assert sendbuf == recvbuf and op == 0, "sums in place"
        assert stream.ptr, "sums have a stream of their own"
        assert stream.waited_for and not stream.waited_for.pop().ptr, (
            "what is added up must have been computed"
        )
        self.world.calls.append((self.rank, "allReduce", count))
        here[...] = self.world.meeting.sum(self.rank, here)

    def broadcast(self, sendbuf, recvbuf, count, datatype, root, stream):
        here = self._array(recvbuf, count, datatype)
        self._stream(stream)
        assert sendbuf == recvbuf and root == 0
        here[...] = self.world.meeting.sum(self.rank, here if self.rank == root else np.zeros_like(here))

    def _array(self, place, count, datatype):
        assert isinstance(place, int) and place and isinstance(count, int)
        kind = np.dtype(FLOATS[datatype])
        memory = (ctypes.c_char * (count * kind.itemsize)).from_address(place)
        return np.frombuffer(memory, kind)

    def _stream(self, ptr):
        return self.world.streams[ptr]


@contextmanager
def installed(meeting):
    """Put it where CuPy has it, for the ranks of a meeting; yields the world."""
    world = World(meeting)
    kind = type("NcclCommunicator", (NcclCommunicator,), {"world": world})
    module = ModuleType("cupy.cuda.nccl")
    vars(module).update(
        NCCL_FLOAT32=7, NCCL_FLOAT64=8, NCCL_SUM=0, NcclCommunicator=kind,
        get_unique_id=lambda: ("the id of this world",),
    )  # fmt: skip
    made = cuda_runtime.Stream.__init__

    def remembered(self, *arguments, **settings):
        made(self, *arguments, **settings)
        world.streams[self.ptr] = self

    names = {"cupy.cuda": SimpleNamespace(nccl=module), "cupy.cuda.nccl": module}
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    cuda_runtime.Stream.__init__ = remembered
    try:
        yield world
    finally:
        cuda_runtime.Stream.__init__ = made
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
