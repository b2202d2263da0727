"""What a trainer does together with other processes: its batches are divided, its gradients added up.

Of a batch of N images rank r has n_r. The batch's loss is a mean, so its gradient is the sum of the ranks'
gradients, each multiplied by n_r / N (with class weights: by its share of their sum)::

    dL/dw = d/dw (1/N sum_i l_i) = sum_r n_r/N * d/dw (1/n_r sum_{i of rank r} l_i)

The factor goes into the gradient of the logits, where it costs next to nothing, and all the rest of backward
is linear in that. A rank that has none of a last, short batch adds zeros.

Masks of dropout are drawn for the whole batch on every rank, which takes its rows; images are augmented as
in the whole batch (``data.Loader.shard``). So one process and many compute the same losses, to rounding,
unless batch normalisation uses each rank's own statistics: ``sync_batch_norm`` adds up theirs, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from signal import NSIG
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from scratchnet.backend import Array, to_numpy
from scratchnet.data import Loader
from scratchnet.data.loader import Rows
from scratchnet.distributed.agreement import facts_of, require_agreement
from scratchnet.distributed.communicator import Communicator
from scratchnet.distributed.reduction import Reduction
from scratchnet.functional import Across
from scratchnet.layers import Dropout, Layer
from scratchnet.layers.norm import BatchNorm
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.training import snapshot
from scratchnet.training.alone import Alone, BatchResult
from scratchnet.training.engine import Layers, Plans

if TYPE_CHECKING:
    from scratchnet.training.trainer import Trainer

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


class DataParallel(Alone):
    """Divides a training among ranks: ``Trainer(..., parallel=DataParallel(ranks))`` on each of them.

    The loaders are those of the whole batch. Rank 0 has the run directory and the observers.

    Parameters
    ----------
    ranks : Communicator
        What ``join`` returns.
    sync_batch_norm : bool
        Whether batch normalisation uses the statistics of the whole batch; by default those of each rank's
        rows, which takes no time. Running statistics are averaged before each evaluation.

    Attributes
    ----------
    rank : int
    waited, steps : float, int
        For how many seconds sums of gradients have held up this rank, in how many steps.

    Examples
    --------
    >>> from scratchnet.distributed import join
    >>> with join() as ranks:  # doctest: +SKIP
    ...     Trainer(net, optimizer, rate, train, validation, parallel=DataParallel(ranks)).fit(15)
    """

    def __init__(self, ranks: Communicator, sync_batch_norm: bool = False):
        self.ranks, self.rank, self.sync_batch_norm = ranks, ranks.rank, sync_batch_norm
        self.rows = Rows(0, 1, 1)
        self.waited, self.steps = 0.0, 0
        self._share = 1.0  # of this rank's rows in the batch's mean loss
        self._finite = True

    # A training

    def join(self, trainer: Trainer) -> None:  # noqa: D102  (these are Alone's)
        net = trainer.net
        if self.sync_batch_norm and net.backend.name == "cupy" and isinstance(trainer.engine, Plans):
            raise ValueError(
                "sync_batch_norm: plans on a GPU normalise each rank's rows: take engine='layers'"
            )
        trainer.train = self.shard(trainer.train)
        if self.ranks.rank:
            trainer.run, trainer.observers = None, ()
        layers = [layer for _, layer in net.walk()]
        self._dropouts = [layer for layer in layers if isinstance(layer, Dropout)]
        self._norms = [layer for layer in layers if isinstance(layer, BatchNorm)]
        self._net, self._buffer = net, next(iter(net.parameters().values())).buffer
        self._reduction = Reduction(self._buffer, self.ranks)

    def begin(self, trainer: Trainer) -> None:  # noqa: D102
        require_agreement(self.ranks, facts_of(trainer) | {"--sync-batch-norm": self.sync_batch_norm})
        self._take_state_of_rank_0(trainer)

    def _take_state_of_rank_0(self, trainer: Trainer) -> None:
        ranks = self.ranks
        taken = snapshot.take(trainer) if not ranks.rank else None
        kinds = {name: (a.shape, a.dtype) for name, a in taken.tensors.items()} if taken else {}
        header, kinds = ranks.broadcast((taken.header if taken else {}, kinds))
        tensors = taken.tensors if taken else {name: np.empty(*kind) for name, kind in kinds.items()}
        for array in tensors.values():
            ranks.broadcast_into(array)
        if not taken:
            snapshot.put(snapshot.Snapshot(tensors, header), trainer)

    def share_weights(self, net: Layer) -> None:  # noqa: D102
        buffer = next(iter(net.parameters().values())).buffer
        buffer.fill()
        for array in [buffer.allocate(), *net.buffers().values()]:
            self.ranks.broadcast_into(array)
        buffer.version += 1

    def _take_generators_of_rank_0(self) -> None:
        generators = self._net.generators()
        states = self.ranks.broadcast({path: rng.bit_generator.state for path, rng in generators.items()})
        for path, rng in generators.items():
            rng.bit_generator.state = states[path]

    # A step

    @contextmanager
    def _as_rows_of_a_batch(self) -> Iterator[None]:
        """Let layers know of the whole batch in here; rank 0 alone also computes, as its observers do."""
        for norm in self._norms:
            norm.across = _Everybody(self) if self.sync_batch_norm else None
        for dropout in self._dropouts:
            dropout.rows = self.rows.start, self.rows.total
        try:
            yield
        finally:
            for norm in self._norms:
                norm.across = None
            for dropout in self._dropouts:
                dropout.rows = None

    def shard(self, loader: Loader) -> Loader:  # noqa: D102
        return loader.shard(self.ranks.rank, self.ranks.size)

    def forward(  # noqa: D102
        self, engine: Layers | Plans, loss: SoftmaxCrossEntropy, x: Array, labels: np.ndarray, rows: Rows
    ) -> BatchResult:
        self.rows = rows
        value, correct = 0.0, 0
        with self._as_rows_of_a_batch():
            if len(labels):
                value, correct, _ = super().forward(engine, loss, x, labels, rows)
            else:
                self._stand_in_for_norms(self._norms, 2, ())
        weight = loss.weight_of(labels)
        self._finite = isfinite(value)
        total, weights, right = self.ranks.sum(np.array([value * weight, weight, correct], np.float64))
        if rows.total < self.ranks.size:  # some rank has drawn no masks
            self._take_generators_of_rank_0()
        self._share = float(weight / weights)
        return BatchResult(float(total / weights), int(right), rows.total)

    def backward(self, engine: Layers | Plans, loss: SoftmaxCrossEntropy) -> None:  # noqa: D102
        with self._as_rows_of_a_batch(), self._reduction.while_backward():
            if self.rows.stop > self.rows.start:
                engine.backward(loss.backward() * self._share)
            else:
                self._stand_in_for_norms(self._norms[::-1], 1, (2,))
                self._buffer.allocate_grad().fill(0)
                for p in self._buffer.parameters:
                    p.has_grad = p.trainable
        self.waited += self._reduction.timing.waiting
        self.steps += 1

    def _stand_in_for_norms(self, norms: list[BatchNorm], times: int, shape: tuple[int, ...]) -> None:
        """Add zeros to the sums of batch normalisations, where this rank has no rows."""
        for norm in norms if self.sync_batch_norm else ():
            for _ in range(0 if norm.frozen else times):
                self.ranks.sum(np.zeros((*shape, norm.num_features)))

    def agree(self, signal: int, save: bool) -> tuple[int, bool]:  # noqa: D102
        asked = np.zeros(NSIG + 1)
        asked[signal] = signal > 0
        asked[NSIG] = save and self.rank == 0  # whose clock counts
        asked = self.ranks.sum(asked)
        return int(asked[:NSIG].argmax()), bool(asked[NSIG])

    def met(self, error: E) -> E:  # noqa: D102
        return self.ranks.met(error)

    def explain(self, why: str) -> str:  # noqa: D102
        for rank, (finite, clause) in enumerate(self.ranks.gather((self._finite, why))):
            if not finite:
                return f"on rank {rank} of {self.ranks.size}, {clause}"
        return why

    # An epoch

    def on_writer(self, function: Callable[[], T]) -> T:  # noqa: D102
        return self.ranks.on_writer(function)

    def gather(self, batches: list[Any]) -> list[Any]:  # noqa: D102
        return [np.concatenate(parts) for parts in zip(*self.ranks.gather(batches), strict=True)]

    def average_statistics(self) -> None:  # noqa: D102
        for norm in self._norms:
            for array in (norm.running_mean, norm.running_var):
                if self.sync_batch_norm:
                    self.ranks.broadcast_into(array)
                else:
                    mean = self.ranks.sum(to_numpy(array).astype(np.float64)) / self.ranks.size
                    array[...] = self._net.backend.asarray(mean.astype(array.dtype))
            norm.weight.buffer.version += 1


class _Everybody(Across):
    """The whole batch, for its batch normalisations."""

    def __init__(self, parallel: DataParallel):
        self.parallel = parallel

    def sum(self, x: Array) -> Any:
        total = self.parallel.ranks.sum(to_numpy(x).astype(np.float64))
        return self.parallel._net.backend.asarray(total.astype(x.dtype))

    def count(self, M: int) -> int:
        start, stop, total = self.parallel.rows
        return M // (stop - start) * total
