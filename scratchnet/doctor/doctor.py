"""Diagnosis: one batch, once or every few hundred steps of a training.

``diagnose`` sends a batch forward and back, as in training but with nothing dropped, observes every layer,
and puts everything back as it was. What it measures:

**Signal.** Of what a layer puts out only that counts which differs from image to image; the rest is the same
for a cat and a ship. ``signal`` is its standard deviation over the batch, ``std`` that of everything. With
He's weights each layer keeps the signal's size (``initialise.py`` derives it), so it is of the order of the
input's from first layer to last.

**Loss.** With K outputs that are all alike softmax says 1/K, and the loss is ln K whatever the labels are.

**Gradient over weight.** How far the network may get: counted next to the error |p - t| at the output, as a
network that has learned everything has no gradient either.

**Update over weight.** The step, lr |v| / |w| with momentum v, is by how much of themselves weights change.
Until there is a momentum, v is what equal gradients add up to, g / (1 - momentum).

``rules.py`` has what these numbers mean, and where each limit comes from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scratchnet.backend import Array, to_numpy
from scratchnet.data import Loader
from scratchnet.doctor.context import Context
from scratchnet.doctor.diagnosis import Diagnosis, Verdict, read
from scratchnet.doctor.rules import RULE_TIERS
from scratchnet.layers import Layer
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import Optimizer
from scratchnet.state import preserved
from scratchnet.training.console import say
from scratchnet.training.observers import Observer
from scratchnet.training.rundir import RunDirectory
from scratchnet.training.trainer import Trainer

EVERY = 500  # steps between two examinations of a network in training


def diagnose(
    net: Layer,
    images: Array,
    labels: ArrayLike,
    *,
    optimizer: Optimizer | None = None,
    lr: float | None = None,
    highest_lr: float | None = None,
    loss: SoftmaxCrossEntropy | None = None,
    step: int = 0,
    losses: Sequence[float] = (),
    epochs: Sequence[Mapping[str, float]] = (),
) -> Diagnosis:
    """Examine a network with one batch, and say what is wrong with it. Not a bit of it changes.

    What cannot be seen in a network and a batch is only judged where it is given: the step needs the
    optimizer or ``lr``, the course of training ``losses`` and ``epochs``.

    Parameters
    ----------
    net : Layer
        In either mode, at any stage of training.
    images : array (N, ...)
        A batch as the network is trained with, normalised; two images are the least, 64 will do, and with
        256 or more (for ten classes) labels that have nothing to do with the images can be told.
    labels : integer array (N,)
    optimizer : Optimizer, optional
        What trains the network: it tells the step, the learning rate and the weight decay.
    lr : float, optional
        The learning rate, where it is not the optimizer's.
    highest_lr : float, optional
        The highest rate of the schedule, so that neither its warm-up nor its end counts as too low; by
        default the rate itself.
    loss : SoftmaxCrossEntropy, optional
        What is trained with; by default without label smoothing.
    step : int
        How many steps the network has been trained.
    losses : sequence of float, optional
        The training loss of each of these steps, or of the last of them.
    epochs : sequence of mapping, optional
        For each epoch that is done ``train_loss``, ``train_accuracy``, ``val_loss`` and ``val_accuracy``, as
        in ``Trainer.log``.

    Returns
    -------
    Diagnosis

    Raises
    ------
    ValueError
        If images and labels do not fit together, or to the network.

    Examples
    --------
    >>> from scratchnet import data
    >>> from scratchnet.models import vgg16
    >>> shapes = data.shapes10(n_train=64, n_test=10)
    >>> images = data.Normalisation.of(shapes.train_images).apply(shapes.train_images)
    >>> small = {"num_classes": 10, "image_size": 32, "width": 0.125, "classifier_width": 32}
    >>> diagnose(vgg16(**small), images, shapes.train_labels).healthy
    True
    >>> diagnosis = diagnose(vgg16(**small, init="normal"), images, shapes.train_labels)
    >>> [verdict.name for verdict in diagnosis.verdicts]
    ['vanishing']
    """
    parameters = net.parameters()
    if not parameters:
        raise ValueError("diagnose: the network has no parameters, so there is nothing to learn")
    dtype = next(iter(parameters.values())).dtype
    images = images if hasattr(images, "dtype") else np.asarray(images)
    if len(images) < 2:
        raise ValueError("diagnose needs at least two images: what one has alone says nothing")
    x = net.backend.asarray(images.astype(dtype, copy=False))
    y = np.asarray(to_numpy(labels))
    criterion = loss or SoftmaxCrossEntropy()
    context = Context(net, x, y, optimizer, lr, highest_lr, criterion, step, losses, epochs)
    context.check_weights()
    with np.errstate(all="ignore"), preserved(net), net.recording():
        context.measure()
        verdicts: list[Verdict] = []
        for tier in RULE_TIERS:
            verdicts = [verdict for rule in tier for verdict in rule(context)]
            if verdicts:
                break
        measured = context.loss, context.accuracy, len(y), context.classes, context.rows()
        return Diagnosis(step, *measured, verdicts)


class Doctor(Observer):
    """Examines a network in training every so many steps, prints what it finds, and keeps it with the run.

    It draws its own images, without augmentation: the first time twice a batch, up to 256, so that it can
    judge the labels, later 64 at most. It changes no bit of the run. On a GPU it examines before every epoch.

    Parameters
    ----------
    every : int
        Steps between two examinations.

    Attributes
    ----------
    diagnoses : list of Diagnosis
        Of this run, those before a resume included.

    Examples
    --------
    >>> from scratchnet import data, optim
    >>> from scratchnet.models import vgg11
    >>> shapes = data.shapes10(n_train=64, n_test=10)
    >>> how = {"normalisation": data.Normalisation.of(shapes.train_images)}
    >>> train = data.Loader(shapes.train_images, shapes.train_labels, 32, shuffle=True, **how)
    >>> net = vgg11(num_classes=10, image_size=32, width=0.125, classifier_width=16)
    >>> optimizer, doctor = optim.SGD(net.parameters(), lr=0.01), Doctor()
    >>> trainer = Trainer(net, optimizer, optim.Constant(0.01), train, train, observers=[doctor])
    >>> doctor.examine(trainer, step=0)  # doctest: +ELLIPSIS
    Diagnosis at step 0: loss ..., 9.4 % of 64 images right
    ...
    Healthy: nothing stands out.
    >>> len(doctor.diagnoses)
    1
    """

    def __init__(self, every: int = EVERY):
        self.every = every
        self.diagnoses: list[Diagnosis] = []
        self._losses: list[float] = []
        self._highest_lr: float | None = None
        self._batch: tuple[np.ndarray, np.ndarray] | None = None

    def on_begin(self, trainer: Trainer, epochs: int) -> None:
        """Find the highest rate of the schedule."""
        self._highest_lr = max(map(trainer.schedule, range(epochs * len(trainer.train))), default=None)

    def on_resume(self, trainer: Trainer) -> None:
        """Keep what was found until then, and forget what was found later."""
        if isinstance(trainer.run, RunDirectory):
            step = len(trainer.log) * len(trainer.train) + trainer.batch
            self.diagnoses = [found for found in read(trainer.run.path) if found.step <= step]

    def on_epoch_begin(self, trainer: Trainer, epoch: int) -> None:
        """Examine, where no loss will be told at every step."""
        if trainer.device_epochs is not None:
            self.examine(trainer, epoch * len(trainer.train))

    def on_loss(self, trainer: Trainer, step: int, loss: float) -> None:
        """Examine where it is time to or the loss is not finite; keep the loss."""
        if step % self.every == 0 or not isfinite(loss):
            self.examine(trainer, step)
        self._losses.append(loss)

    def on_end(self, trainer: Trainer) -> None:
        """Examine what has become of it."""
        self.examine(trainer, len(trainer.log) * len(trainer.train))

    def examine(self, trainer: Trainer, step: int) -> None:
        """Diagnose the network, print what was found, and add it to the run's file, once for each step.

        ``step`` is how many have been made.
        """
        if self.diagnoses and self.diagnoses[-1].step == step:
            return
        # The loss is a new one, as training's own waits for its backward.
        loss = SoftmaxCrossEntropy(trainer.loss.label_smoothing, trainer.loss.class_weights)
        how: dict[str, Any] = {"loss": loss, "step": step}
        how |= {"optimizer": trainer.optimizer, "highest_lr": self._highest_lr}
        batch = self._images(trainer.train)
        found = diagnose(trainer.net, *batch, losses=self._losses, epochs=trainer.log, **how)
        self.diagnoses.append(found)
        say(str(found))
        if trainer.run is not None:
            trainer.run.write_diagnoses([diagnosis.as_dict() for diagnosis in self.diagnoses])

    def _images(self, train: Loader) -> tuple[np.ndarray, np.ndarray]:
        """Return images and labels to examine with."""
        if self._batch is None:
            size = min(256, 2 * train.batch_size, train.n_samples)
            chosen = np.random.default_rng(train.seed).choice(train.indices, size, replace=False)
            how = {name: getattr(train, name) for name in ("normalisation", "dtype", "image_size")}
            batch = Loader(train.images, train.labels, size, shuffle=False, indices=chosen, **how)
            self._batch = next(batch.epoch(0))
        number = slice(min(64, train.batch_size) if self.diagnoses else None)
        images, labels = self._batch
        return images[number], labels[number]
