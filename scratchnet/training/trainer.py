"""The trainer: forward, loss, backward, step, epoch after epoch, and what is left on disk after each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import isfinite
from typing import Any

from scratchnet.data import Loader
from scratchnet.layers import Layer
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import SGD
from scratchnet.training.alone import Alone
from scratchnet.training.console import Console
from scratchnet.training.device import DeviceEpochs
from scratchnet.training.engine import Layers, Plans, make_engine
from scratchnet.training.evaluation import evaluate
from scratchnet.training.finite import NotFinite, why_not_finite, why_not_finite_on
from scratchnet.training.observers import EpochTotals, Observer
from scratchnet.training.rundir import COLUMNS, RunDirectory, RunError


class Trainer:
    """Trains a network, and keeps the weights with the best validation accuracy.

    Parameters
    ----------
    net : Layer
        On the backend on which it is to train.
    optimizer : SGD
    schedule : callable
        From the step, counted from 0 over the whole run, to its learning rate.
    train, validation : Loader
    run : RunDirectory or path, optional
        Where to leave weights, log and state after every epoch; by default nowhere.
    loss : SoftmaxCrossEntropy, optional
    engine : {"plan", "layers"} or an engine, optional
        What computes, see ``make_engine``. A plan on a GPU does whole epochs there, see ``device.py``.
    observers : sequence of Observer, optional
        What is told how it goes; by default a ``Console``, which prints.
    parallel : Alone, optional
        ``distributed.DataParallel`` divides each batch among processes; by default there is one.

    Attributes
    ----------
    log : list of dict
        A row for each epoch that is done.
    best_accuracy : float
        On the validation images, over the epochs that are done.
    totals : EpochTotals
        Of the epoch so far.

    Examples
    --------
    >>> from scratchnet import data, models, optim
    >>> shapes = data.shapes10(n_train=64, n_test=32)
    >>> train = data.Loader(shapes.train_images, shapes.train_labels, 32, shuffle=True)
    >>> net = models.vgg11(num_classes=10, image_size=32, width=0.125, classifier_width=16)
    >>> optimizer = SGD(net.parameters(), lr=0.01, momentum=0.9)
    >>> Trainer(net, optimizer, optim.Constant(0.01), train, train).fit(1)  # doctest: +ELLIPSIS
    Epoch 1/1
    -----
    train Loss: ... Acc: ...
    val Loss: ... Acc: ...
    Training complete in 0m ...s
    Best val Acc: ...
    """

    def __init__(
        self,
        net: Layer,
        optimizer: SGD,
        schedule: Callable[[int], float],
        train: Loader,
        validation: Loader,
        run: RunDirectory | str | os.PathLike[str] | None = None,
        loss: SoftmaxCrossEntropy | None = None,
        engine: str | Layers | Plans | None = None,
        observers: Sequence[Observer] | None = None,
        parallel: Alone | None = None,
    ):
        self.net, self.optimizer, self.schedule = net, optimizer, schedule
        self.train, self.validation, self.loss = train, validation, loss or SoftmaxCrossEntropy()
        self.run = run if run is None or isinstance(run, RunDirectory) else RunDirectory(run)
        self.engine = make_engine(net, engine) if engine is None or isinstance(engine, str) else engine
        self.observers = (Console(),) if observers is None else tuple(observers)
        self.device_epochs: DeviceEpochs | None = None
        on_gpu = net.backend.name == "cupy" and net.dtype == "float32"
        on_gpu = on_gpu and self.loss.class_weights is None  # which the kernel of the loss does not know
        if isinstance(self.engine, Plans) and on_gpu:
            self.device_epochs = DeviceEpochs(net, optimizer, self.loss, train, self.engine.precision)
        self.log: list[dict[str, float]] = []
        self.best_accuracy = -1.0
        self.totals = EpochTotals()
        self.parallel = parallel or Alone()
        self.parallel.join(self)

    def resume(self, epochs: int | None = None) -> None:
        """Go back to where the run in the run directory stopped, bit for bit; it is to have so many epochs.

        RunError is raised if there is nothing there that fits, or more epochs are done already;
        FileNotFoundError or FormatError, if the best weights so far are missing or damaged.
        """
        progress = self.parallel.on_writer(partial(self._read_state, epochs))
        self.log, self.best_accuracy = progress["log"], progress["best_accuracy"]
        self._tell("on_resume")

    def _read_state(self, epochs: int | None) -> dict[str, Any]:
        if self.run is None:
            raise RunError("this trainer has no run directory to resume from: give it one as run")
        progress = self.run.read_state(self.net, self.optimizer)
        if epochs is not None and (done := len(progress["log"])) > epochs:
            raise RunError(f"{self.run.path} has done {done} epochs already, more than {epochs}")
        return progress

    def fit(self, epochs: int) -> None:
        """Train until so many epochs are done, those before a resume included.

        NotFinite is raised if the loss becomes NaN or infinite; the weights of earlier epochs are on disk.
        """
        with self.running(epochs) as remaining:
            for epoch in remaining:
                self.train_epoch(epoch)
                self.finish_epoch(epoch)

    @contextmanager
    def running(self, epochs: int) -> Iterator[range]:
        """Yield the epochs that remain of so many. Ctrl-C becomes one that says what is on disk."""
        try:
            self.parallel.begin(self)
            self._tell("on_begin", epochs)
            yield range(len(self.log), epochs)
        except BaseException as error:
            self._tell("on_error", error)
            if not isinstance(error, KeyboardInterrupt):
                raise
            done = f"after {len(self.log)} of {epochs} epochs"
            if self.run is not None and self.run.has_state:
                done += f"; --resume --run-dir {self.run.path} goes on from there"
            raise KeyboardInterrupt(done) from None
        finally:
            self.parallel.end(self)
        self._tell("on_end")

    def train_epoch(self, epoch: int) -> tuple[float, float]:
        """Go once through the training images; return mean loss and accuracy, as they were met on the way.

        Without what is counted and told on the way it is this loop, which anybody may write instead::

            for batch, (images, labels) in enumerate(train.epoch(epoch)):
                optimizer.lr = schedule(epoch * len(train) + batch)
                logits = net.forward(images)
                loss.forward(logits, labels)
                net.backward(loss.backward())
                optimizer.step()

        ``epoch`` counts from 0: it decides the order of the images, their augmentation and the learning rate.
        """
        self._began = time.perf_counter()
        self.net.train()
        self._tell("on_epoch_begin", epoch)
        for step, totals in self._steps(epoch):
            self.totals = totals
            self._tell("on_step", step)
        self._trained = time.perf_counter()
        return self.totals.means

    def _steps(self, epoch: int) -> Iterator[tuple[int, EpochTotals]]:
        """Make the steps of an epoch; yield each, and what has been added up; on a GPU once in a while."""
        if self.device_epochs is not None:
            yield from self.device_epochs.run(epoch, self.schedule)
            return
        totals, asarray = EpochTotals(), self.net.backend.asarray
        for batch, (images, labels) in enumerate(self.train.epoch(epoch)):
            step = epoch * len(self.train) + batch
            self.optimizer.lr = self.schedule(step)
            x, rows = asarray(images), self.train.rows(batch)
            result = self.parallel.forward(self.engine, self.loss, x, labels, rows)
            self._tell("on_loss", step, result.loss)
            if not isfinite(result.loss):
                why = self.parallel.explain(why_not_finite(self.net, x))
                where = f"epoch {epoch + 1}, batch {batch + 1}"
                raise NotFinite(f"the loss became {result.loss} in {where}: {why}")
            self.parallel.backward(self.engine, self.loss)
            self.optimizer.step()

            totals = totals.plus(*result)
            yield step, totals

    def finish_epoch(self, epoch: int) -> None:
        """Look at the validation images after ``train_epoch``; log the epoch and write what it leaves."""
        self._tell("on_validation_begin", epoch)
        heard = partial(self._tell, "on_validation_step")
        self.parallel.average_statistics()
        result = evaluate(self.net, self.validation, self.engine, progress=heard, parallel=self.parallel)
        if not isfinite(result.loss):
            why = self.parallel.explain(why_not_finite_on(self.net, self.validation))
            where = f"after epoch {epoch + 1}"
            raise NotFinite(f"the loss is not finite on the validation images {where}: {why}")
        seconds = round(time.perf_counter() - self._began, 3)
        speed = round(self.train.n_samples / (self._trained - self._began), 1)
        measured = *self.totals.means, result.loss, result.accuracy, self.optimizer.lr, seconds, speed
        row = dict(zip(COLUMNS, (epoch + 1, *measured), strict=True))
        self.log.append(row)
        is_best = result.accuracy > self.best_accuracy
        self.best_accuracy = max(result.accuracy, self.best_accuracy)
        self.parallel.on_writer(partial(self._write, is_best))
        self._tell("on_epoch_end", epoch, row)

    def _write(self, is_best: bool) -> None:
        if self.run is not None:
            self.run.write_epoch(self.net, self.optimizer, self.log, self.best_accuracy, is_best)

    def _tell(self, event: str, *arguments: Any) -> None:
        for observer in self.observers:
            getattr(observer, event)(self, *arguments)
