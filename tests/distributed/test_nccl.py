"""NCCL, on a stand-in that checks calls, sizes and streams."""

from types import SimpleNamespace

import numpy as np
import pytest

from scratchnet import backend
from scratchnet.distributed.nccl import NcclCommunicator
from tests.fakes import cupy_stand_in, nccl_stand_in
from tests.fakes.processes import Meeting


class Comm:
    """As much of an mpi4py communicator as the rendezvous needs."""

    def __init__(self, meeting, rank, box):
        self.meeting, self.rank, self.box = meeting, rank, box

    def Get_rank(self):  # noqa: N802
        return self.rank

    def Get_size(self):  # noqa: N802
        return self.meeting.ranks

    def Dup(self):  # noqa: N802
        return self

    def Ibarrier(self):  # noqa: N802
        return SimpleNamespace(Test=lambda: True)

    def bcast(self, value):
        if self.rank == 0:
            self.box.append(value)
        self.meeting.barrier.wait(timeout=10)
        return self.box[-1]


MPI = SimpleNamespace(Query_thread=lambda: 0, THREAD_MULTIPLE=3)


@pytest.fixture
def cupy():
    with cupy_stand_in.installed():
        yield backend.get("cupy").xp


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_are_of_all_ranks_and_on_a_stream_that_waits_for_what_was_computed(cupy, ranks, dtype):
    meeting, box = Meeting(ranks), []

    def rank(r):
        here = NcclCommunicator(Comm(meeting, r, box), MPI, cupy)
        gradients = cupy.asarray(np.arange(6, dtype=dtype) + 10 * r)
        here.begin_sum(gradients[4:])
        here.begin_sum(gradients[:4])
        here.finish_sums()
        return gradients.get(), here._stream

    with nccl_stand_in.installed(meeting) as world:
        results = meeting.run(rank)
    for total, stream in results:
        np.testing.assert_array_equal(total, ranks * np.arange(6) + 10 * sum(range(ranks)))
        assert stream in cupy.cuda.get_current_stream().waited_for  # the step comes after the sums
    for r in range(ranks):
        assert [call[1:] for call in world.calls if call[0] == r] == [("allReduce", 2), ("allReduce", 4)]


def test_weights_are_those_of_rank_0_on_the_host_never(cupy):
    meeting, box = Meeting(2), []

    def rank(r):
        here = NcclCommunicator(Comm(meeting, r, box), MPI, cupy)
        weights = cupy.asarray(np.full(3, r + 1.0, "float32"))
        here.broadcast_into(weights)
        return weights.get()

    with nccl_stand_in.installed(meeting):
        for weights in meeting.run(rank):
            np.testing.assert_array_equal(weights, [1, 1, 1])


def test_what_does_not_lie_together_is_refused(cupy):
    meeting = Meeting(1)
    with nccl_stand_in.installed(meeting):
        here = NcclCommunicator(Comm(meeting, 0, []), MPI, cupy)
        with pytest.raises(ValueError, match="contiguous"):
            here.begin_sum(cupy.asarray(np.zeros((4, 4), "float32"))[:, :2])
