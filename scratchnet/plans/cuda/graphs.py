"""CUDA graphs: a sequence of launches that is recorded once, and replayed by a single call.

A launch from Python costs 10 to 20 microseconds, a training step of VGG16 has well over a hundred, and a GPU
would spend most of its time waiting for them (estimated, not yet measured). A graph holds the same launches
with the same arguments::

    first call     the launches are made as they are; so every kernel is compiled and loaded
    second call    they are recorded, on a stream on which nothing runs meanwhile, and then replayed
    from then on   replayed

What differs from one replay to the next (the learning rate, which images, which numbers are dropped)
therefore has to lie in device memory, at an address that does not change. What is an argument of
a launch is part of the graph: when it changes, everything begins again with the first call.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any


class Replayed:
    """Launches that are recorded as a CUDA graph.

    ``launch`` makes them, on the current stream; it allocates nothing, reads nothing and waits for nothing.
    ``constants`` returns everything that they get as arguments and that may change from one call to the next.
    Without ``graphs`` they are made one by one each time, as in the first call.
    """

    def __init__(
        self, xp: ModuleType, launch: Callable[[], None], constants: Callable[[], Any], graphs: bool = True
    ):
        self.xp, self.launch, self.constants, self.graphs = xp, launch, constants, graphs
        self._graph: Any = None
        self._constants: Any = None

    @property
    def recorded(self) -> bool:
        """Whether there is a graph, so that the next call replays it unless a constant changes."""
        return self._graph is not None

    def __call__(self) -> None:
        """Make the launches, or replay them, on the current stream."""
        constants = self.constants()
        if not self.graphs or self._constants is None or constants != self._constants:
            self._graph = self._constants = None
            self.launch()
            self._constants = constants
            return
        if self._graph is None:
            self._graph = self._record()
        self._graph.launch()

    def _record(self) -> Any:
        with self.xp.cuda.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            try:
                self.launch()
            except BaseException:
                with suppress(Exception):  # a recording that failed cannot be ended without an error, either
                    stream.end_capture()
                raise
            return stream.end_capture()
