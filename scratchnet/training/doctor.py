"""The doctor: a network's own numbers, and what they say about why it does not learn.

``diagnose`` sends one batch forward and back, as in training but with nothing forgotten (dropout passes
everything), listens at every layer, and puts everything back as it was. What it
measures, and what that means:

**Signal.** Of what a layer puts out only that counts which differs from image to image; the rest is the same
for a cat and a ship. ``signal`` is its standard deviation over the batch, ``std`` that of everything. With
He's weights each layer keeps the signal's size (``initialise.py`` derives it), so it is of the order of the
input's from first layer to last. A layer that multiplies it by q each time leaves q^16 of it after sixteen:
*vanishing* for q < 1, *exploding* for q > 1.

**Loss.** With K outputs that are all alike softmax says 1/K, and the loss is ln K whatever the labels are.
Logits of size s move it by 2 s at most, so a signal of 0.001 at the output means that the loss is ln K to
three digits. Logits beyond some ten make softmax say 0 or 1, and where that is wrong the loss is their size:
far above ln K is worse than knowing nothing (*exploding*, or *saturated* where one layer alone does it).

**Gradient over weight.** A ReLU network without biases is homogeneous in the weights w of each layer: twice w
is twice the logits z. Euler's theorem says then <w, dL/dw> = <z, dL/dz>, for every layer the same. So where
the signal vanishes layer by layer every gradient does, and since even a learning rate of 1 over 10,000 steps
moves w by 10,000 times its gradient at most, nothing can be learned from |g| / |w| below 1e-5 (*vanishing*).
Where the last layer alone makes logits small its own gradient stays, and it learns. A gradient is counted
next to the error |p - t| at the output, as a network that has learned everything has no gradient either. A
gradient of exactly zero, where signal and error are not, is a mistake in the code (*frozen*).

**Dead units.** A ReLU that is zero for every image and pixel passes no gradient, so it never comes back. If
weights are symmetric around zero, each unit is off for an image with probability 1/2; at worst, where deep
layers make all images look alike, half of the units are dead at the start. Three quarters are therefore no
chance. When all are, what follows sees nothing: logits are constants, loss ln K. A step that was too large
does that, by moving the biases and weights below zero for every input; the loss before it tells: it leapt up.

**Update over weight.** The step, lr |v| / |w| with momentum v, is by how much of themselves weights change.
Until there is a momentum, v is what equal gradients add up to, g / (1 - momentum). Near 0.001 is usual. At
0.2 five steps make a new network, faster than the other layers can follow (measured on plain VGG11 and VGG16
of several widths: those above 0.2 in the median layer did not learn, nor those in which one step tripled the
loss). Weights before a batch normalisation bear more, up to 1: it takes their scale away, and a step at right
angles to w lengthens w, which makes the next smaller. Below 1e-5 weights need 100,000 steps to become others.

**The slope.** The gradient foretells by how much the loss falls along a direction d: by <g, d>. Taking for
each layer d = g / |g|^2 foretells one unit for each, so that every layer counts alike, and the central
difference of the loss along all of them has to be the number of layers. A backward pass with a wrong sign in
one layer loses two units, one that is not derived from the forward pass most of one (*wrong gradient*).

**Weight decay.** Each step multiplies weights by 1 - lr * decay / (1 - momentum), so decay alone has them at
1/e after 1 / (lr * decay / (1 - momentum)) steps. Less than 100 steps is less than learning takes.

**Dropout.** What is kept is scaled by 1 / (1 - p), so that the noise has p / (1 - p) of the signal's second
moment: as much for p = 0.5, four times as much for 0.8.

**Labels.** Images of one class are more alike than images of two, in their pixels or in what even random
layers make of them. The alike pairs with one label are counted against what they are after shuffling the
labels. With enough pairs (256 images of ten classes) the difference is many standard deviations; if it is
none, the labels have nothing to do with the images. Training shows it too: a network in which signal,
gradient and step are sound but whose loss stays at ln K has nothing to find; one that learns its training
images by heart has a validation accuracy of 1/K (*labels shuffled*).

What comes first can cause what comes later: unnormalised pixels explode, zero weights vanish. So the rules
stand on floors, data, weights, signal, gradient, step, course of training, and the first floor on which
something is wrong has the word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

from scratchnet.backend import to_numpy
from scratchnet.data import Loader
from scratchnet.layers import Layer
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import SGD
from scratchnet.training.diagnosis import Diagnosis, Row, Verdict, read
from scratchnet.training.examination import Case, undisturbed
from scratchnet.training.log import say
from scratchnet.training.rules import FLOORS
from scratchnet.training.rundir import DIAGNOSES as FILE
from scratchnet.training.rundir import RunDirectory

__all__ = ["FILE", "Diagnosis", "Doctor", "Row", "Verdict", "diagnose", "read"]

EVERY = 500  # steps between two looks at a network in training


def diagnose(
    net: Layer,
    images: Any,
    labels: Any,
    *,
    optimizer: SGD | None = None,
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
    optimizer : SGD, optional
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
    >>> pictures = data.shapes10(n_train=64, n_test=10)
    >>> images = data.Normalisation.of(pictures.train_images).apply(pictures.train_images)
    >>> small = {"num_classes": 10, "image_size": 32, "width": 0.125, "classifier_width": 32}
    >>> diagnose(vgg16(**small), images, pictures.train_labels).healthy
    True
    >>> diagnosis = diagnose(vgg16(**small, init="normal"), images, pictures.train_labels)
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
    case = Case(net, x, y, optimizer, lr, highest_lr, loss or SoftmaxCrossEntropy(), step, losses, epochs)
    with np.errstate(all="ignore"), undisturbed(net):
        case.measure()
        verdicts: list[Verdict] = []
        for floor in FLOORS:
            verdicts = [verdict for rule in floor for verdict in rule(case)]
            if verdicts:
                break
        return Diagnosis(step, case.loss, case.accuracy, len(y), case.classes, case.rows(), verdicts)


class Doctor:
    """Looks at a network in training every so many steps, says what it finds, and keeps it with the run.

    It draws its own images, without augmentation: at its first look twice a batch, up to 256, so that it can
    judge the labels, later 64 at most.

    Parameters
    ----------
    net : Layer
    optimizer : SGD
    train : Loader
        The training images.
    loss : SoftmaxCrossEntropy
    run : RunDirectory, optional
        Where to leave ``diagnosis.json``.
    every : int
        Steps between two looks.

    Attributes
    ----------
    diagnoses : list of Diagnosis
        Of this run, those before a resume included.
    highest_lr : float or None
        Of the schedule, where it is known.

    Examples
    --------
    >>> from scratchnet import data
    >>> from scratchnet.models import vgg11
    >>> pictures = data.shapes10(n_train=64, n_test=10)
    >>> normalisation = data.Normalisation.of(pictures.train_images)
    >>> train = data.Loader(
    ...     pictures.train_images, pictures.train_labels, 32, shuffle=True, normalisation=normalisation
    ... )
    >>> net = vgg11(num_classes=10, image_size=32, width=0.125, classifier_width=16)
    >>> doctor = Doctor(net, SGD(net.parameters(), lr=0.01), train, SoftmaxCrossEntropy())
    >>> doctor.look(step=0, epochs=[])  # doctest: +ELLIPSIS
    Diagnosis at step 0: loss ..., 9.4 % of 64 images right
    ...
    Healthy: nothing stands out.
    >>> len(doctor.diagnoses)
    1
    """

    def __init__(
        self,
        net: Layer,
        optimizer: SGD,
        train: Loader,
        loss: SoftmaxCrossEntropy,
        run: RunDirectory | None = None,
        every: int = EVERY,
    ):
        self.net, self.optimizer, self.run, self.every = net, optimizer, run, every
        self.loss = SoftmaxCrossEntropy(loss.label_smoothing)  # training's own waits for its backward
        self.diagnoses: list[Diagnosis] = []
        self.losses: list[float] = []
        self.highest_lr: float | None = None
        size = min(256, 2 * train.batch_size, train.n_samples)
        chosen = np.random.default_rng(train.seed).choice(train.indices, size, replace=False)
        how = {"normalisation": train.normalisation, "dtype": train.dtype, "image_size": train.image_size}
        batch = Loader(train.images, train.labels, size, shuffle=False, indices=chosen, **how)
        self.images, self.labels = next(batch.epoch(0))
        self.few = min(64, train.batch_size)

    def hear(self, step: int, loss: float, epochs: Sequence[Mapping[str, float]]) -> None:
        """Before the backward of a step look where it is time to or its loss is not finite; keep the loss."""
        if step % self.every == 0 or not isfinite(loss):
            self.look(step, epochs)
        self.losses.append(loss)

    def look(self, step: int, epochs: Sequence[Mapping[str, float]]) -> None:
        """Examine the network, say what was found, and write it down, once for each step.

        Parameters
        ----------
        step : int
            How many have been made.
        epochs : sequence of mapping
            As in ``Trainer.log``.
        """
        if self.diagnoses and self.diagnoses[-1].step == step:
            return
        images = slice(self.few if self.diagnoses else None)
        found = diagnose(
            self.net,
            self.images[images],
            self.labels[images],
            optimizer=self.optimizer,
            highest_lr=self.highest_lr,
            loss=self.loss,
            step=step,
            losses=self.losses,
            epochs=epochs,
        )
        self.diagnoses.append(found)
        say(str(found))
        if self.run is not None:
            self.run.write_diagnoses([diagnosis.as_dict() for diagnosis in self.diagnoses])

    def resume(self, step: int) -> None:
        """Go on from a step: what was found until then is kept, and what was found later forgotten."""
        self.diagnoses = [found for found in read(self.run.path) if found.step <= step]
