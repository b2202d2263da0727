"""The trainer: forward, loss, backward, step, epoch after epoch, and what is left on disk after each."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from math import isfinite
from typing import Any

from scratchnet import checks
from scratchnet.clipping import clip_norm
from scratchnet.data import Loader
from scratchnet.layers import Layer
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import SGD, Optimizer
from scratchnet.training import arguments, snapshot
from scratchnet.training.alone import Alone
from scratchnet.training.console import Console
from scratchnet.training.device import DeviceEpochs
from scratchnet.training.engine import Layers, Plans, make_engine
from scratchnet.training.evaluation import evaluate
from scratchnet.training.finite import NotFinite, why_not_finite, why_not_finite_on
from scratchnet.training.observers import EpochTotals, Observer
from scratchnet.training.rundir import COLUMNS, RunDirectory
from scratchnet.training.saving import Saving
from scratchnet.training.stopping import Stopped


class Trainer:
    """Trains a network, and keeps the weights with the best validation accuracy.

    Parameters
    ----------
    net : Layer
        On the backend on which it is to train.
    optimizer : Optimizer
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
    save_minutes : float
        How often the state is saved within an epoch.
    on_nan : {"stop", "rollback"}
        What to do where the loss becomes NaN or infinite: stop, or go back to the last good state and on from
        there with half the learning rate, at most three times.
    clip_norm : float, optional
        Of all gradients together, at most; see ``scratchnet.clipping``.

    Attributes
    ----------
    log : list of dict
        A row for each epoch that is done.
    best_accuracy : float
        On the validation images, over the epochs that are done.
    batch, totals : int, EpochTotals
        Of the epoch so far: how many batches are done, and what they added up to.

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
        optimizer: Optimizer,
        schedule: Callable[[int], float],
        train: Loader,
        validation: Loader,
        run: RunDirectory | str | os.PathLike[str] | None = None,
        loss: SoftmaxCrossEntropy | None = None,
        engine: str | Layers | Plans | None = None,
        observers: Sequence[Observer] | None = None,
        parallel: Alone | None = None,
        save_minutes: float = 10.0,
        on_nan: str = "stop",
        clip_norm: float | None = None,
    ):
        loaders = {"train": train, "validation": validation}
        arguments.check(net, optimizer, schedule, loaders, run, loss, engine, observers)
        arguments.check_options(save_minutes, on_nan, clip_norm)
        self.net, self.optimizer, self.schedule = net, optimizer, schedule
        self.train, self.validation, self.loss = train, validation, loss or SoftmaxCrossEntropy()
        self.run = run if run is None or isinstance(run, RunDirectory) else RunDirectory(run)
        self.engine = make_engine(net, engine) if engine is None or isinstance(engine, str) else engine
        self.observers = (Console(),) if observers is None else tuple(observers)
        self.device_epochs: DeviceEpochs | None = None
        on_gpu = net.backend.name == "cupy" and net.dtype == "float32"
        on_gpu = on_gpu and self.loss.class_weights is None  # which the kernel of the loss does not know
        # The steps of SGD are kernels of one graph; those of others are made one by one, and so are those of
        # many processes.
        self.parallel = parallel or Alone()
        on_gpu = on_gpu and clip_norm is None and type(self.parallel) is Alone
        if isinstance(self.engine, Plans) and isinstance(optimizer, SGD) and on_gpu:
            self.device_epochs = DeviceEpochs(net, optimizer, self.loss, train, self.engine.precision)
        self.log: list[dict[str, float]] = []
        self.best_accuracy = -1.0
        # Where it is in the epoch after those in the log: batches that are done, what they added up to, and
        # the seconds that they took.
        self.batch, self.totals, self.seconds = 0, EpochTotals(), 0.0
        self.rate_factor, self.rollbacks, self.clip_norm = 1.0, 0, clip_norm
        self.saving = Saving(self, save_minutes, on_nan)
        self.rate_set: float | None = None
        self.parallel.join(self)

    def resume(self, epochs: int | None = None) -> None:
        """Go back to where the run in the run directory stopped, bit for bit; it is to have so many epochs.

        If it stopped before it had saved anything, this is the beginning. RunError is raised if there is
        nothing there that fits, or more epochs are done already; FileNotFoundError or FormatError, if the
        best weights so far are missing or damaged. Nothing has been changed then.
        """
        header, sentences = self.parallel.on_writer(partial(self.saving.resume, epochs))
        if header:
            snapshot.place(header, self)
        for sentence in sentences:
            self.notice(sentence)
        self._tell("on_resume")

    def refresh(self) -> None:
        """Call it after writing into an array that ``.data`` gave before: see ``Plan.refresh``."""
        self.engine.refresh()

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
        """Yield the epochs that remain of so many, and have the run directory meanwhile.

        Ctrl-C, SIGTERM and SIGHUP end it after the step that is being made, and what is done is saved: they
        become a ``Stopped`` (a KeyboardInterrupt) that says what is on disk. ``fit`` goes on from there.
        """
        checks.whole(0, epochs=epochs)
        with self.saving.running(epochs):
            try:
                self.parallel.begin(self)
                self._tell("on_begin", epochs)
                yield range(len(self.log), epochs)
                self.saving.stop_if_asked()
            except BaseException as error:
                self._tell("on_error", error)
                if isinstance(error, NotFinite):
                    self.parallel.met(error)
                if isinstance(error, KeyboardInterrupt) and not isinstance(error, Stopped):
                    raise self.saving.stopped(signal.SIGINT) from None
                raise
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
        An epoch of which some batches are done is taken up after them.
        """
        if epoch != len(self.log):
            self.batch = 0
        if not self.batch:
            self.totals, self.seconds = EpochTotals(), 0.0
        began, before = time.perf_counter(), self.seconds
        self.net.train()
        self._tell("on_epoch_begin", epoch)
        self.saving.stop_if_asked()
        self.saving.remember()
        try:
            for step, totals in self.saving.steps(self._steps(epoch)):
                self.totals, self.batch = totals, step + 1 - epoch * len(self.train)
                self.seconds = before + time.perf_counter() - began
                self._tell("on_step", step)
        except NotFinite as error:
            self.saving.roll_back(error)
            return self.train_epoch(epoch)
        return self.totals.means

    def _steps(self, epoch: int) -> Iterator[tuple[int, EpochTotals]]:
        """Make the steps of an epoch; yield each, and what has been added up; on a GPU once in a while."""
        if self.device_epochs is not None:
            yield from self.device_epochs.run(epoch, self._rate, self.batch, self.totals)
            return
        totals, asarray = self.totals, self.net.backend.asarray
        batches = self.train.epoch(epoch, self.batch) if self.batch else self.train.epoch(epoch)
        for batch, (images, labels) in enumerate(batches, start=self.batch):
            step = epoch * len(self.train) + batch
            self._set_rate(step)
            x, rows = asarray(images), self.train.rows(batch)
            result = self.parallel.forward(self.engine, self.loss, x, labels, rows)
            self._tell("on_loss", step, result.loss)
            if not isfinite(result.loss):
                why = self.parallel.explain(why_not_finite(self.net, x))
                where = f"epoch {epoch + 1}, batch {batch + 1}"
                raise NotFinite(f"the loss became {result.loss} in {where}: {why}")
            self.parallel.backward(self.engine, self.loss)
            if self.clip_norm is not None:
                clip_norm(self.optimizer.parameters, self.clip_norm)
            self.optimizer.step()

            totals = totals.plus(*result)
            yield step, totals

    def _rate(self, step: int) -> float:
        """Return the learning rate of a step: the schedule's, less what NaNs have cost."""
        lr = self.schedule(step)
        checks.real(0.0, lr=lr)
        return lr * self.rate_factor

    def _set_rate(self, step: int) -> None:
        if self.rate_set not in (None, self.optimizer.lr):
            changed = (
                f"optimizer.lr was set to {self.optimizer.lr}, and the schedule's {self._rate(step):.3g}"
            )
            warnings.warn(f"{changed} takes its place: give Trainer another schedule", stacklevel=2)
        self.optimizer.lr = self.rate_set = self._rate(step)

    def finish_epoch(self, epoch: int) -> None:
        """Look at the validation images after ``train_epoch``; log the epoch and write what it leaves."""
        began = time.perf_counter()
        self._tell("on_validation_begin", epoch)
        self.parallel.average_statistics()
        heard, parallel = self._validated, self.parallel
        result = evaluate(self.net, self.validation, self.engine, progress=heard, parallel=parallel)
        if not isfinite(result.loss):
            why = self.parallel.explain(why_not_finite_on(self.net, self.validation))
            where = f"after epoch {epoch + 1}"
            message = f"the loss is not finite on the validation images {where}: {why}"
            self.saving.roll_back(NotFinite(message))
            self.train_epoch(epoch)
            return self.finish_epoch(epoch)
        seconds = round(self.seconds + time.perf_counter() - began, 3)
        speed = round(self.train.n_samples / self.seconds, 1)
        measured = *self.totals.means, result.loss, result.accuracy, self.optimizer.lr, seconds, speed
        row = dict(zip(COLUMNS, (epoch + 1, *measured), strict=True))
        is_best = result.accuracy > self.best_accuracy
        self.log, self.batch = [*self.log, row], 0
        self.best_accuracy = max(result.accuracy, self.best_accuracy)
        self.parallel.on_writer(partial(self.saving.after_epoch, is_best))
        self._tell("on_epoch_end", epoch, row)

    def _validated(self, images: int) -> None:
        self._tell("on_validation_step", images)
        self.saving.stop_if_asked()

    @cached_property
    def identity(self) -> str:
        """The identity of the run, which all of its files have."""
        return snapshot.identity_of(self)

    def notice(self, sentence: str) -> None:
        """Tell the observers what a reader of the log should know."""
        self._tell("on_notice", sentence)

    def _tell(self, event: str, *arguments: Any) -> None:
        for observer in self.observers:
            getattr(observer, event)(self, *arguments)
