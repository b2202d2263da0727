"""The sum of all ranks' gradients, slice by slice, while backward goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from scratchnet.distributed.communicator import Communicator
from scratchnet.parameters import FlatBuffer, Parameter

SLICE_BYTES = 4 << 20


class Timing(NamedTuple):
    """How long the sums of a step took.

    Attributes
    ----------
    sending : float
        Seconds from the first slice to the last sum.
    waiting : float
        Those of them after backward had ended: what the sums cost.
    """

    sending: float
    waiting: float


class Reduction:
    """Adds up the gradients of a network's parameters over all ranks, in slices of its buffer.

    The slices are cut from the end of the buffer to its beginning, the same ones on all ranks, and sent in
    this order, each as soon as the gradients of all its parameters are final. Frozen parameters lie in none.

    Parameters
    ----------
    buffer : FlatBuffer
    ranks : Communicator
    slice_bytes : int

    Attributes
    ----------
    slices : list of slice
        Of ``buffer.grad``, in the order in which they are sent.
    timing : Timing
        Of the latest step.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from scratchnet.layers import Linear, Sequential
    >>> net = Sequential(Linear(8, 8), Linear(8, 8, bias=False))
    >>> buffer = net[0].weight.buffer
    >>> Reduction(buffer, SimpleNamespace(), slice_bytes=4 * 50).slices
    [slice(86, 136, None), slice(36, 86, None), slice(0, 36, None)]
    """

    def __init__(self, buffer: FlatBuffer, ranks: Communicator, slice_bytes: int = SLICE_BYTES):
        self.buffer, self.ranks, self.slice_bytes = buffer, ranks, slice_bytes
        self.timing = Timing(0.0, 0.0)
        self._cut()

    def _cut(self) -> None:
        self._trainable = [p.trainable for p in self.buffer.parameters]
        self.slices: list[slice] = []
        longest = max(1, self.slice_bytes // self.buffer.dtype.itemsize)
        for p in reversed(self.buffer.parameters):
            stop = p.span.stop
            while p.trainable and stop > p.span.start:
                last = self.slices[-1] if self.slices else slice(-1, -1)
                if last.start == stop and last.stop - last.start < longest:  # there is room in the latest
                    start = max(p.span.start, last.stop - longest)
                    self.slices[-1] = slice(start, last.stop)
                else:
                    start = max(p.span.start, stop - longest)
                    self.slices.append(slice(start, stop))
                stop = start

    @contextmanager
    def while_backward(self) -> Iterator[None]:
        """Send each slice while what is within this context sets the gradients; then wait for all sums."""
        if self._trainable != [p.trainable for p in self.buffer.parameters]:  # frozen or unfrozen since
            self._cut()
        self.buffer.allocate_grad()
        self._missing = [part.stop - part.start for part in self.slices]
        self._told: set[int] = set()
        self._sent = 0
        self._began = 0.0
        self.buffer.observer = self._final
        try:
            yield
        finally:
            self.buffer.observer = None
        ended = time.perf_counter()
        while self._sent < len(self.slices):
            self._send()
        self.ranks.finish_sums()
        now = time.perf_counter()
        self.timing = Timing(now - (self._began or now), now - ended)

    def _final(self, parameter: Parameter) -> None:
        """Take note that a gradient is final, and send the slices that are so wholly."""
        if id(parameter) in self._told:
            return
        self._told.add(id(parameter))
        span = parameter.span
        for k, part in enumerate(self.slices):
            self._missing[k] -= max(0, min(part.stop, span.stop) - max(part.start, span.start))
        while self._sent < len(self.slices) and not self._missing[self._sent]:
            self._send()

    def _send(self) -> None:
        self._began = self._began or time.perf_counter()
        part = self.slices[self._sent]
        self._sent += 1
        self.ranks.begin_sum(self.buffer.allocate_grad()[part])
