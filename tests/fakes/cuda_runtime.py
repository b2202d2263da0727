"""CUDA's streams, graphs and events for the stand-in for CuPy, and the count of what goes on."""

from __future__ import annotations

from contextlib import contextmanager
from time import perf_counter
from types import SimpleNamespace

traffic = SimpleNamespace(reads=0, uploads=0, launches=0, replays=0)


class CUDARuntimeError(RuntimeError):
    """What CuPy raises when CUDA reports an error."""

    __module__ = "cupy_backends.cuda.api.runtime"


class Stream:
    """A stream: everything is done at once, unless it records."""

    def __init__(self, null=False, non_blocking=False):
        self.ptr = 0 if null else id(self)
        self.recorded = None  # a list while it records
        self.waited_for = []  # the streams whose events it has waited for

    def __enter__(self):
        streams.append(self)
        return self

    def __exit__(self, *exception):
        streams.pop()

    def synchronize(self):
        refuse_while_recording("waits")

    def wait_event(self, event):
        self.waited_for.append(event.stream)

    def begin_capture(self, mode=None):
        if not self.ptr:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: the null stream cannot be captured")
        self.recorded = []

    def end_capture(self):
        recorded, self.recorded = self.recorded, None
        return Graph(recorded)


class Graph:
    """Launches that were recorded."""

    def __init__(self, launches):
        self.launches = launches

    def launch(self, stream=None):
        refuse_while_recording("replays")
        traffic.replays += 1
        for do in self.launches:
            do()


class Event:
    """A point in time."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.stream = None

    def record(self, stream=None):
        self.time, self.stream = perf_counter(), stream or streams[-1]

    def synchronize(self):
        refuse_while_recording("waits")


class Device:
    """The only one."""

    compute_capability = "90"

    def __init__(self, device=None):
        pass

    def use(self):
        """Make it the current one, which it is."""


streams = [Stream(null=True)]  # the last one is the current one


def launch(do):
    """Call ``do``, or keep it if the current stream records."""
    traffic.launches += 1
    recorded = streams[-1].recorded
    do() if recorded is None else recorded.append(do)


def refuse_while_recording(what):
    """Raise if the current stream records: what allocates, copies or waits has no place in a graph."""
    if streams[-1].recorded is not None:
        raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: this {what} while a stream is captured")


@contextmanager
def counted():
    """Count within this context: yields an object with what ``traffic`` has."""
    start, count = vars(traffic).copy(), SimpleNamespace(**dict.fromkeys(vars(traffic), 0))
    yield count
    for name, value in vars(traffic).items():
        setattr(count, name, value - start[name])
