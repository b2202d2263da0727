"""The trainer: forward, loss, backward, step, epoch after epoch, and what is left on disk after each."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import isfinite
from typing import Any

from scratchnet import checkpoint, tensorfile
from scratchnet.data import Loader
from scratchnet.layers import Layer
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import SGD
from scratchnet.training.device import DeviceEpochs
from scratchnet.training.doctor import Doctor
from scratchnet.training.engine import Plans, make_engine
from scratchnet.training.evaluation import evaluate
from scratchnet.training.examination import is_finite, why_not_finite
from scratchnet.training.log import Progress, duration, say
from scratchnet.training.rundir import RunDirectory, RunError


class NotFinite(ArithmeticError):
    """The loss is NaN or infinite. The message says in which layer that first appeared."""


class Trainer:
    """Trains a network on one data set and keeps the best weights by validation accuracy.

    Parameters
    ----------
    net : Layer
        On the backend on which it shall train.
    optimizer : SGD
    schedule : callable
        From the step, counted from 0 over the whole run, to its learning rate.
    train, validation : Loader
    run : RunDirectory, optional
        Where to leave weights, log and state after every epoch; by default nowhere.
    loss : SoftmaxCrossEntropy, optional
    header : dict, optional
        What to save beside the weights: ``class_names``, ``mean``, ``std``, ``data``.

    engine : {"plan", "layers"}, optional
        What computes, see ``make_engine``. A plan on a GPU does whole epochs there, see ``device.py``.
    precision : {"fp32", "tf32", "bf16"}
        Of a plan on a GPU.
    diagnose : bool
        Let the doctor look before the first step, every few hundred and after the last, see ``doctor.py``.

    Attributes
    ----------
    log : list of dict
        A row for each epoch that is done.
    best_accuracy : float
        On the validation images, over the epochs that are done.

    Examples
    --------
    >>> from scratchnet import data, models, optim
    >>> pictures = data.shapes10(n_train=64, n_test=32)
    >>> train = data.Loader(pictures.train_images, pictures.train_labels, 32, shuffle=True)
    >>> validation = data.Loader(pictures.test_images, pictures.test_labels, 32, shuffle=False)
    >>> net = models.vgg11(num_classes=10, image_size=32, width=0.125, classifier_width=16)
    >>> optimizer = SGD(net.parameters(), lr=0.01, momentum=0.9)
    >>> trainer = Trainer(net, optimizer, optim.Constant(0.01), train, validation)
    >>> trainer.fit(epochs=1)  # doctest: +ELLIPSIS
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
        run: RunDirectory | None = None,
        loss: SoftmaxCrossEntropy | None = None,
        header: dict[str, Any] | None = None,
        engine: str | None = None,
        precision: str = "fp32",
        diagnose: bool = False,
    ):
        self.net, self.optimizer, self.schedule = net, optimizer, schedule
        self.train, self.validation = train, validation
        self.run, self.loss, self.header = run, loss or SoftmaxCrossEntropy(), header or {}
        self.engine = make_engine(net, engine, precision)
        self._epochs: DeviceEpochs | None = None
        if isinstance(self.engine, Plans) and net.backend.name == "cupy" and net.dtype == "float32":
            self._epochs = DeviceEpochs(net, optimizer, self.loss, train, precision)
        self.log: list[dict[str, float]] = []
        self.best_accuracy = -1.0
        self.doctor = Doctor(net, optimizer, train, self.loss, run) if diagnose else None

    def resume(self, epochs: int | None = None) -> None:
        """Go back to where the run in the run directory stopped, bit for bit.

        Parameters
        ----------
        epochs : int, optional
            How many it shall have in the end.

        Raises
        ------
        RunError
            If there is nothing there that fits, or more epochs are done already.
        FileNotFoundError, FormatError
            If the best weights so far are missing or damaged, which the run will need in the end.
        """
        progress = self.run.read_state(self.net, self.optimizer)
        with tensorfile.open_tensors(self.run.best):
            pass
        self.log, self.best_accuracy = progress["log"], progress["best_accuracy"]
        if epochs is not None and len(self.log) > epochs:
            raise RunError(f"{self.run.path} has done {len(self.log)} epochs already, more than {epochs}")
        if self.doctor is not None:
            self.doctor.resume(len(self.log) * len(self.train))

    def fit(self, epochs: int) -> None:
        """Train until so many epochs are done, those before a resume included.

        Raises
        ------
        NotFinite
            If the loss becomes NaN or infinite. The weights of earlier epochs are on disk.
        KeyboardInterrupt
            After a Ctrl-C. The message says what is on disk.
        """
        try:
            self._fit(epochs)
        except KeyboardInterrupt:
            done = f"after {len(self.log)} of {epochs} epochs"
            if self.run is not None and self.run.has_state:
                done += f"; --resume --run-dir {self.run.path} goes on from there"
            raise KeyboardInterrupt(done) from None

    def _fit(self, epochs: int) -> None:
        steps = epochs * len(self.train)
        if self.doctor is not None:
            self.doctor.highest_lr = max(map(self.schedule, range(steps)))
        for epoch in range(len(self.log), epochs):
            say(f"Epoch {epoch + 1}/{epochs}")
            say("-----")
            start = time.perf_counter()
            train_loss, train_accuracy = self.train_epoch(epoch, f"epoch {epoch + 1}/{epochs}")
            training_seconds = time.perf_counter() - start
            say(f"train Loss: {train_loss:.4f} Acc: {train_accuracy:.4f}")
            result = evaluate(self.net, self.validation, "validating", self.engine)
            say(f"val Loss: {result.loss:.4f} Acc: {result.accuracy:.4f}")
            if not isfinite(result.loss):
                self._explain_validation(epoch)
            self.log.append(
                {
                    "epoch": epoch + 1,
                    "train_loss": train_loss,
                    "train_accuracy": train_accuracy,
                    "val_loss": result.loss,
                    "val_accuracy": result.accuracy,
                    "lr": self.optimizer.lr,
                    "seconds": round(time.perf_counter() - start, 3),
                    "images_per_second": round(self.train.n_samples / training_seconds, 1),
                }
            )
            self._save(result.accuracy)
        if self.doctor is not None:
            self.doctor.look(steps, self.log)
        say(f"Training complete in {duration(sum(row['seconds'] for row in self.log))}")
        say(f"Best val Acc: {self.best_accuracy:.6f}")

    def train_epoch(self, epoch: int, title: str = "training") -> tuple[float, float]:
        """Go once through the training images; return mean loss and accuracy, as they were met on the way.

        Parameters
        ----------
        epoch : int
            From 0: it decides the order of the images, their augmentation and the learning rate.
        title : str
            For the progress bar.
        """
        self.net.train()
        if self._epochs is not None:
            return self._train_epoch_on_device(epoch, title)
        backend, engine = self.net.backend, self.engine
        total_loss, correct, seen = 0.0, 0, 0
        with Progress(title, self.train.n_samples) as progress:
            for batch, (images, labels) in enumerate(self.train.epoch(epoch)):
                step = epoch * len(self.train) + batch
                self.optimizer.lr = self.schedule(step)
                x, y = backend.asarray(images), backend.asarray(labels)
                logits = engine.forward(x)
                loss = float(self.loss.forward(logits, labels))
                if self.doctor is not None:
                    self.doctor.hear(step, loss, self.log)
                if not isfinite(loss):
                    where = f"epoch {epoch + 1}, batch {batch + 1}"
                    raise NotFinite(f"the loss became {loss} in {where}: {why_not_finite(self.net, x)}")
                engine.backward(self.loss.backward())
                self.optimizer.step()

                seen += len(labels)
                total_loss += loss * len(labels)
                correct += int((logits.argmax(axis=1) == y).sum())
                progress.update(len(labels), total_loss / seen)
        return total_loss / seen, correct / seen

    def _train_epoch_on_device(self, epoch: int, title: str) -> tuple[float, float]:
        """Do the same, with losses that are looked at once in a while."""
        if self.doctor is not None:
            self.doctor.look(epoch * len(self.train), self.log)
        seen = 0
        with Progress(title, self.train.n_samples) as progress:
            for totals in self._epochs.run(epoch, self.schedule):
                if not isfinite(totals.loss):
                    raise NotFinite(
                        f"the loss became {totals.loss} in epoch {epoch + 1}, between image {seen + 1} and "
                        f"{totals.images}: lower the learning rate, or warm it up; --engine layers finds the "
                        "layer where it first appears"
                    )
                progress.update(totals.images - seen, totals.loss / totals.images)
                seen = totals.images
        self.optimizer.lr = self.schedule((epoch + 1) * len(self.train) - 1)  # as the last step was made with
        return totals.loss / seen, totals.correct / seen

    def _explain_validation(self, epoch: int) -> None:
        """Raise NotFinite: the last steps of this epoch spoilt the network, which is not saved then."""
        self.net.eval()
        for images, _ in self.validation.epoch(0):
            x = self.net.backend.asarray(images)
            if not is_finite(self.net.forward(x)):
                break
        where = f"on the validation images after epoch {epoch + 1}"
        raise NotFinite(f"the loss is not finite {where}: {why_not_finite(self.net, x)}")

    def _save(self, accuracy: float) -> None:
        """Write what an epoch leaves; the state last, as it is what resuming begins from."""
        better = accuracy > self.best_accuracy
        self.best_accuracy = max(accuracy, self.best_accuracy)
        if self.run is None:
            return
        info = {**self.header, "epoch": len(self.log), "val_accuracy": accuracy}
        if better:
            checkpoint.save(self.run.best, self.net, **info)
        checkpoint.save(self.run.last, self.net, **info)
        self.run.write_log(self.log)
        self.run.write_state(self.net, self.optimizer, {"log": self.log, "best_accuracy": self.best_accuracy})
