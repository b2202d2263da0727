"""What a training does by itself, in one process; many do it together, see ``scratchnet.distributed``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from scratchnet.backend import Array
from scratchnet.data import Loader
from scratchnet.data.loader import Rows
from scratchnet.layers import Layer
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.training.engine import Layers, Plans

if TYPE_CHECKING:
    from scratchnet.training.trainer import Trainer

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


class BatchResult(NamedTuple):
    """How a batch went.

    Attributes
    ----------
    loss : float
        The mean over its images.
    correct, images : int
        How many were named correctly, of how many.
    """

    loss: float
    correct: int
    images: int


class Alone:
    """One process, which has the whole of each batch, writes the files and tells the observers.

    The base class of what divides a training among processes: ``Trainer`` and ``evaluate`` call these methods
    in the same order in all of them.

    Examples
    --------
    >>> Alone().on_writer(lambda: "written")
    'written'
    """

    rank = 0  # of the process that reads and writes the run's files, and speaks

    def join(self, trainer: Trainer) -> None:
        """Take a trainer that has just been made: divide its loaders, take what only one process has."""

    def begin(self, trainer: Trainer) -> None:
        """Begin to train, or go on: all processes are to have one state."""

    def end(self, trainer: Trainer) -> None:
        """Training has ended, however it did."""

    def agree(self, signal: int, save: bool) -> tuple[int, bool]:
        """Return the signal by which any process was asked to stop, 0 if none, and whether one is to save."""
        return signal, save

    def met(self, error: E) -> E:
        """Return an error, marked as one that all processes raise here."""
        return error

    def shard(self, loader: Loader) -> Loader:
        """Return what this process hands out of each batch."""
        return loader

    def forward(
        self, engine: Layers | Plans, loss: SoftmaxCrossEntropy, x: Array, labels: np.ndarray, rows: Rows
    ) -> BatchResult:
        """Compute the logits and the loss of these rows of a batch; return how the whole batch went."""
        logits = engine.forward(x)
        value = float(loss.forward(logits, labels))
        right = logits.argmax(axis=1) == engine.net.backend.asarray(labels)
        return BatchResult(value, int(right.sum()), len(labels))

    def backward(self, engine: Layers | Plans, loss: SoftmaxCrossEntropy) -> None:
        """Set the gradients of the whole batch's mean loss."""
        engine.backward(loss.backward())

    def explain(self, why: str) -> str:
        """Return why a loss is not finite: the clause of a process in which it is not."""
        return why

    def on_writer(self, function: Callable[[], T]) -> T:
        """Call this in the one process that reads and writes the run's files; return the result to all."""
        return function()

    def gather(self, batches: list[Any]) -> list[Any]:
        """Return an array for each batch out of those for the rows of each process."""
        return batches

    def share_weights(self, net: Layer) -> None:
        """Give all processes the weights and statistics of the one that reads and writes files."""

    def average_statistics(self) -> None:
        """Give all processes the same running statistics, before they evaluate and one of them writes."""
