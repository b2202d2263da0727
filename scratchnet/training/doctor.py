"""The doctor: a network's own numbers, and what they say about why it does not learn.

``diagnose`` sends one batch forward and back, as in training but with nothing forgotten (dropout passes
everything), listens at every layer, and puts everything back as it was. What it measures, and what that means:

**Signal.** Of what a layer puts out only that counts which differs from image to image; the rest is the same
for a cat and a ship. ``signal`` is its standard deviation over the batch, ``std`` that of everything. With
He's weights each layer keeps the signal's size (``initialise.py`` derives it), so it is of the order of the
input's from first layer to last. A layer that multiplies it by q each time leaves q^16 of it after sixteen:
*vanishing* for q < 1, *exploding* for q > 1.

**Loss.** With K outputs that are all alike softmax says 1/K, and the loss is ln K whatever the labels are.
Logits of size s move it by no more than s, so a signal of 0.001 at the output means that the loss is ln K to
three digits. Logits beyond some ten make softmax say 0 or 1, and where that is wrong the loss is their size:
far above ln K is worse than knowing nothing (*exploding*, or *saturated* where one layer alone does it).

**Gradient over weight.** A ReLU network without biases is homogeneous in the weights w of each layer: twice w
is twice the logits z. Euler's theorem says then <w, dL/dw> = <z, dL/dz>, for every layer the same. So where
the logits vanish every gradient does, and since even a learning rate of 1 over 10,000 steps moves w by 10,000
times its gradient at most, nothing can be learned from |g| / |w| below 1e-5 (*vanishing*). It is counted
next to the error |p - t| at the output, as a network that has learned everything has no gradient either.

**Dead units.** A ReLU that is zero for every image and pixel passes no gradient, so it never comes back. If
weights are symmetric around zero, each unit is off for an image with probability 1/2; at worst, where deep
layers make all images look alike, half of the units are dead at the start. Three quarters are therefore no
chance. When all are, what follows sees nothing: logits are constants, loss ln K. A step that was too large does
that, by moving the biases and weights below zero for every input; the loss before it tells: it leapt up.

**Update over weight.** The step, lr |v| / |w| with momentum v, is by how much of themselves weights change.
Until there is a momentum, v is what equal gradients add up to, g / (1 - momentum). Near 0.001 is usual. At
0.2 five steps make a new network, faster than the other layers can follow (measured here on plain VGG11 and
VGG16 of several widths: those above 0.2 in the median layer did not learn, nor those in which one step tripled
the loss). Weights
before a batch normalisation bear more, up to 1: it takes their scale away, and a step at right angles to w
lengthens w, which makes the next smaller. Below 1e-5 weights need 100,000 steps to become others.

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
none, the labels have nothing to do with the images. Training shows it too: a network in which signal, gradient
and step are sound but whose loss stays at ln K has nothing to find; one that learns its training images by
heart has a validation accuracy of 1/K.

What comes first can cause what comes later: unnormalised pixels explode, zero weights vanish. So the rules
stand on floors, data, weights, signal, gradient, step, course of training, and the first floor on which
something is wrong has the word.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import isfinite, log, prod, sqrt
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from scratchnet import functional as F
from scratchnet.backend import array_module, to_numpy
from scratchnet.data import Loader
from scratchnet.layers import BatchNorm2d, Dropout, Layer, Parameter, ReLU
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import SGD
from scratchnet.training.log import say
from scratchnet.training.rundir import DIAGNOSES as FILE
from scratchnet.training.rundir import RunDirectory, RunError

EVERY = 500  # steps between two looks at a network in training

RATE = "lower the learning rate, or warm it up"
HE = "initialise by He (init='he'), or put batch normalisation after the convolutions"


@dataclass(frozen=True)
class Row:
    """What was measured at one layer with weights, or at a ReLU that follows none.

    Attributes
    ----------
    layer, kind : str
        Its path in the network, as in ``features.0``, and its class.
    std : float
        Standard deviation of all that it puts out, before the ReLU that follows it.
    signal : float
        That of the part which differs from image to image.
    dead : float or None
        Share of the units of the ReLU that follows it which are zero for every image and pixel.
    gradient : float or None
        Norm of the weights' gradient over norm of the weights.
    update : float or None
        Norm of the optimizer's next step over norm of the weights.
    """

    layer: str
    kind: str
    std: float
    signal: float
    dead: float | None = None
    gradient: float | None = None
    update: float | None = None


@dataclass(frozen=True)
class Verdict:
    """One thing that is wrong.

    Attributes
    ----------
    name : str
        Such as ``vanishing``.
    where : str
        Path of the layer; empty where it is the whole network, the data or the step.
    reason : str
        A sentence with the number that shows it.
    advice : str
        A sentence that says what to change.
    """

    name: str
    where: str
    reason: str
    advice: str

    def __str__(self) -> str:
        where = f" at {self.where}" if self.where else ""
        return f"{self.name.upper()}{where}: {self.reason} {self.advice}"


@dataclass(frozen=True)
class Diagnosis:
    """What ``diagnose`` found; ``str()`` writes it as a table.

    Attributes
    ----------
    step : int
        How many steps the network had been trained.
    loss, accuracy : float
        On the batch.
    images, classes : int
        How many images the batch had, and how many outputs the network.
    rows : list of Row
    verdicts : list of Verdict
        Empty for a healthy network.
    """

    step: int
    loss: float
    accuracy: float
    images: int
    classes: int
    rows: list[Row]
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether nothing was found."""
        return not self.verdicts

    @property
    def verdict(self) -> str:
        """All verdicts in words, a line each."""
        return "\n".join(map(str, self.verdicts)) or "Healthy: nothing stands out."

    def as_dict(self) -> dict[str, Any]:
        """Return what ``from_dict`` reads: numbers, text, lists and dicts that JSON can hold."""
        return _for_json(asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Diagnosis:
        """Return the diagnosis that ``as_dict`` wrote."""
        values = _from_json(values)
        rows = [Row(**row) for row in values["rows"]]
        verdicts = [Verdict(**verdict) for verdict in values["verdicts"]]
        return cls(**{**values, "rows": rows, "verdicts": verdicts})

    def __str__(self) -> str:
        return "\n".join([self._title(), *self._table(), self.verdict])

    def _title(self) -> str:
        return (
            f"Diagnosis at step {self.step}: loss {self.loss:.4f} (knowing nothing is ln {self.classes} = "
            f"{log(self.classes):.4f}), {100 * self.accuracy:.1f} % of {self.images} images right"
        )

    def _table(self) -> list[str]:
        titles = ("layer", "std", "signal", "dead", "gradient/weight", "update/weight")
        table = [titles]
        for row in self.rows:
            dead = "" if row.dead is None else f"{100 * row.dead:.1f} %"
            numbers = [row.std, row.signal, row.gradient, row.update]
            std, signal, gradient, update = ("" if n is None else f"{n:.1e}" for n in numbers)
            table.append((f"{row.layer} {row.kind}".strip(), std, signal, dead, gradient, update))
        shown = [i for i in range(len(titles)) if any(row[i] for row in table[1:])]
        widths = {i: max(len(row[i]) for row in table) for i in shown}
        return [
            "   ".join(row[i].rjust(widths[i]) if i else row[i].ljust(widths[i]) for i in shown).rstrip()
            for row in table
        ]


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
    case = _Case(net, x, y, optimizer, lr, highest_lr, loss or SoftmaxCrossEntropy(), step, losses, epochs)
    with np.errstate(all="ignore"), _undisturbed(net):
        return case.diagnosis()


def read(run_path: str | os.PathLike) -> list[Diagnosis]:
    """Return the diagnoses that a run left, in the order of its steps; an empty list where it left none.

    Parameters
    ----------
    run_path : path
        The run directory.

    Raises
    ------
    RunError
        If the file is damaged.

    Examples
    --------
    >>> read("no such run")
    []
    """
    path = Path(run_path, FILE)
    try:
        return [Diagnosis.from_dict(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}") from error


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
        """Take note of the loss of a step, before its backward, and look where it is time to, or not finite."""
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


# Listening


@dataclass
class _Heard:
    """What was heard at one layer: its output on the way forward, the gradients on the way back."""

    path: str
    layer: Layer
    std: float = 0.0
    signal: float = 0.0
    finite: bool = True
    dead: float | None = None  # of a ReLU, or of the ReLU behind a layer with weights
    flat: float | None = None  # share of its units that let nothing of the gradient through
    alike: Any = None  # of a ReLU, how alike its outputs are for each two images (N, N)
    size: float = 0.0  # norm of the weights
    gradient: float | None = None  # norms over that of the weights
    update: float | None = None

    @property
    def name(self) -> str:
        return self.path or type(self.layer).__name__

    @property
    def weights(self) -> list[Parameter]:
        """What the layer is about: its matrices, or, where it has none, all its parameters."""
        own = [value for value in vars(self.layer).values() if isinstance(value, Parameter)]
        return [p for p in own if p.ndim > 1] or own

    @property
    def mixes(self) -> bool:
        """Whether it has a matrix, as convolutions and linear layers have."""
        return any(p.ndim > 1 for p in self.weights)


@contextmanager
def _undisturbed(net: Layer) -> Iterator[None]:
    """Put everything back afterwards: weights, gradients, statistics, generators, mode, what layers keep.

    Weights and gradients are not copied: the network gets other arrays, and afterwards its own again.
    """
    parameters = list(net.parameters().values())
    flats = {id(p.buffer): p.buffer for p in parameters}.values()
    for flat in flats:
        flat.fill()
    arrays = [(flat, flat.data, flat.grad, flat.version) for flat in flats]
    gradients = [(p, p.has_grad) for p in parameters]
    layers = [layer for _, layer in net.walk()]
    modes = [(layer, layer.training, layer._kept) for layer in layers]
    statistics = [(array, array.copy()) for array in net.buffers().values()]
    generators = [
        (value.bit_generator, value.bit_generator.state)
        for layer in layers
        for value in vars(layer).values()
        if isinstance(value, np.random.Generator)
    ]
    try:
        with net.recording():
            yield
    finally:
        for flat, values, grad, version in arrays:
            flat.data, flat.grad, flat.version = values, grad, version
        for p, had in gradients:
            p.has_grad = had
        for layer, training, kept in modes:
            layer.training, layer._kept = training, kept
        for array, before in statistics:
            array[...] = before
        for generator, state in generators:
            generator.state = state


@contextmanager
def _listening(net: Layer, compare: bool) -> Iterator[list[_Heard]]:
    """Yield a list that fills, as the network computes, with what each layer puts out and passes back.

    It works for every network whose layers call each other's ``forward`` and ``backward``, whatever its shape.
    """
    heard: list[_Heard] = []
    layers = []
    for path, layer in net.walk():
        sign = _Heard(path, layer)
        if sign.weights or not list(layer.children()):
            layers.append((layer, {name: vars(layer).get(name) for name in ("forward", "backward")}))
            _listen(sign, heard, compare)
    try:
        yield heard
    finally:
        for layer, before in layers:
            for name, method in before.items():
                del vars(layer)[name]
                if method is not None:
                    setattr(layer, name, method)


def _listen(sign: _Heard, heard: list[_Heard], compare: bool) -> None:
    layer = sign.layer
    forward, backward = layer.forward, layer.backward

    def heard_forward(x: Any) -> Any:
        y = forward(x)
        sign.std, sign.signal = _rms(y - y.mean()), _signal(y)
        sign.finite = bool(array_module(y).isfinite(y).all())
        if isinstance(layer, ReLU):
            sign.dead = float((y.reshape(-1, y.shape[-1]).max(axis=0) <= 0).mean())
            sign.alike = _alike(y) if compare else None
        if sign not in heard:
            heard.append(sign)
        return y

    def heard_backward(dy: Any, *arguments: Any, **keywords: Any) -> Any:
        dx = backward(dy, *arguments, **keywords)
        if dx is not None and dx.shape == dy.shape:
            sign.flat = float((abs(dx) <= 0.01 * abs(dy)).mean())
        return dx

    layer.forward, layer.backward = heard_forward, heard_backward


def _rms(x: Any) -> float:
    """Return the root mean square, of numbers however large or small."""
    largest = float(abs(x).max())
    if largest == 0.0 or not isfinite(largest):
        return largest
    return largest * sqrt(float(((x / largest) ** 2).mean()))


def _norm(x: Any) -> float:
    return _rms(x) * sqrt(x.size)


def _signal(x: Any) -> float:
    """Return the standard deviation over the batch, of all places and channels together."""
    return _rms(x - x.mean(axis=0))


def _alike(x: Any) -> np.ndarray:
    """Return the cosine of the angle between each two images' features, their mean taken off, (N, N)."""
    features = x.reshape(len(x), -1)
    features = features - features.mean(axis=0)
    features /= array_module(x).sqrt((features**2).sum(axis=1, keepdims=True)) + 1e-30
    return to_numpy(features @ features.T)


# The case: what is measured, and then judged


@dataclass
class _Case:
    """A network, a batch, what is known of its training, and what ``diagnosis`` measures."""

    net: Layer
    x: Any
    labels: np.ndarray
    optimizer: SGD | None
    lr: float | None
    highest_lr: float | None
    criterion: SoftmaxCrossEntropy
    step: int
    losses: Sequence[float]
    epochs: Sequence[Mapping[str, float]]

    def diagnosis(self) -> Diagnosis:
        """Measure, then let the floors speak, until one has found something."""
        if self.lr is None and self.optimizer is not None:
            self.lr = self.optimizer.lr
        if self.highest_lr is None:
            self.highest_lr = self.lr
        self._measure()
        verdicts: list[Verdict] = []
        for floor in FLOORS:
            found = [verdict for rule in floor for verdict in rule(self)]
            verdicts += found
            if found:
                break
        return Diagnosis(
            self.step, self.loss, self.accuracy, len(self.labels), self.classes, self._rows(), verdicts
        )

    def _set_mode(self) -> None:
        """Compute as in training, but let dropout pass everything: so the loss is a function of the weights."""
        for _, layer in self.net.walk():
            layer.training = not isinstance(layer, Dropout)

    def _measure(self) -> None:
        net, labels = self.net, self.labels
        parameters = list(net.parameters().values())
        counts = np.bincount(labels[labels >= 0]) if labels.dtype.kind in "iu" else np.zeros(1)
        self.pairs = int((counts * (counts - 1)).sum()) // 2  # of images with one label
        self._set_mode()
        with _listening(net, compare=self.pairs >= ENOUGH_PAIRS) as heard:
            logits = net.forward(self.x)
            self.loss = float(self.criterion.forward(logits, labels))
            spoilt = not all(is_finite(array) for array in (logits, *(p.data for p in parameters)))
            self.not_finite = why_not_finite(net, self.x) if spoilt else ""
            for p in parameters:  # from here on new gradients, in an array of their own
                p.has_grad, p.buffer.grad = False, None
            dlogits = self.criterion.backward()
            if not spoilt:
                net.backward(dlogits, need_input_gradient=False)
        self.error = _norm(dlogits) * sqrt(len(labels))  # of an image, |p - t|
        self.classes = logits.shape[1]
        self.heard = heard
        self.logits = to_numpy(logits).astype("float64")
        self.accuracy = float((self.logits.argmax(axis=1) == labels).mean())
        self.layers = [sign for sign in heard if sign.mixes]
        self.input_std, self.input_signal = _rms(self.x - self.x.mean()), _signal(self.x)
        steps = _steps(self.optimizer, self.lr)
        for before, sign in zip([None, *heard], heard, strict=False):
            if isinstance(sign.layer, ReLU) and before is not None and before.weights:
                before.dead = sign.dead
            if sign.weights:
                sign.size = sqrt(sum(_norm(p.data) ** 2 for p in sign.weights))
                gradient = sqrt(sum(_norm(p.grad) ** 2 for p in sign.weights if p.has_grad))
                sign.gradient = gradient / sign.size if sign.size else gradient
                if steps is not None:
                    update = sqrt(sum(steps(p) ** 2 for p in sign.weights))
                    sign.update = update / sign.size if sign.size else update

    def _rows(self) -> list[Row]:
        rows = []
        for before, sign in zip([None, *self.heard], self.heard, strict=False):
            alone = sign.dead is not None and not (before is not None and before.weights)
            if sign.weights or alone:
                kind = type(sign.layer).__name__
                rows.append(
                    Row(sign.path, kind, sign.std, sign.signal, sign.dead, sign.gradient, sign.update)
                )
        return rows

    # What several rules ask

    @property
    def ignorance(self) -> float:
        """ln K: the loss of who knows nothing."""
        return log(self.classes)

    @property
    def by_chance(self) -> bool:
        """Whether so many right answers are no more than guessing gives, within three standard deviations."""
        chance = 1.0 / self.classes
        return self.accuracy < chance + 3.0 * sqrt(chance * (1.0 - chance) / len(self.labels))

    @property
    def stuck(self) -> bool:
        """Whether the network knows nothing about these images."""
        return self.by_chance and self.loss > 0.95 * self.ignorance

    @property
    def sure(self) -> float:
        """How likely softmax calls its answers, in the mean."""
        return float(F.softmax(self.logits).max(axis=1).mean())

    @property
    def momentum(self) -> float:
        return self.optimizer.momentum if self.optimizer is not None else 0.0

    @property
    def leap(self) -> tuple[int, float] | None:
        """The step and the loss of the highest point of training, where that is far above the first."""
        if len(self.losses) < 2:
            return None
        highest = max(range(len(self.losses)), key=lambda i: self.losses[i])
        value = self.losses[highest]
        if value > 2.0 * max(self.losses[0], self.ignorance):
            return self.step - len(self.losses) + highest, value
        return None

    def loss_at(self, shift: Mapping[int, Any], scale: float) -> float:
        """Return the loss with ``scale`` times an array added to some parameters, given by their ids."""
        flats = {id(p.buffer): p.buffer for p in self.net.parameters().values()}.values()
        before = [(flat, flat.data) for flat in flats]
        try:
            for flat in flats:
                flat.data = flat.data.copy()
            for p in self.net.parameters().values():
                if id(p) in shift:
                    p.view(p.buffer.data)[...] += scale * shift[id(p)]
            return float(self.criterion.forward(self.net.forward(self.x), self.labels))
        finally:
            for flat, values in before:
                flat.data = values


def _steps(optimizer: SGD | None, lr: float | None) -> Callable[[Parameter], float] | None:
    """Return what gives the norm of a parameter's next step; None where no learning rate is known."""
    if lr is None:
        return None
    if optimizer is None:
        return lambda p: lr * _norm(p.grad) if p.has_grad else 0.0
    places, start = {}, 0
    for name, p in optimizer.parameters.items():
        decay = 0.0 if optimizer.no_decay(name, p) else optimizer.weight_decay
        places[id(p)] = (start, decay)
        start += p.size

    def norm(p: Parameter) -> float:
        if id(p) not in places or not p.has_grad:
            return 0.0
        start, decay = places[id(p)]
        g = p.grad + decay * p.data
        if optimizer.momentum_buffer is None:  # what equal gradients will add up to
            return lr * _norm(g) / max(1.0 - optimizer.momentum, 1e-3)
        v = p.buffer.backend.asarray(optimizer.momentum_buffer[start : start + p.size]).reshape(p.shape)
        v = optimizer.momentum * v + g
        return lr * _norm(g + optimizer.momentum * v if optimizer.nesterov else v)

    return norm


# The rules, floor by floor. Each yields what it finds.


def _no_numbers(case: _Case) -> Iterator[Verdict]:
    if case.not_finite:
        leap = f" The loss had risen to {case.leap[1]:.3g} by step {case.leap[0]}." if case.leap else ""
        reason, _, advice = case.not_finite.rpartition(": ")
        yield Verdict(
            "not finite", "", f"NaN or infinity {reason.removeprefix('it ')}.{leap}", _sentence(advice)
        )


def _images_alike(case: _Case) -> Iterator[Verdict]:
    if case.input_signal <= 1e-6 * _rms(case.x):
        yield Verdict(
            "images all alike",
            "",
            f"The images differ by {case.input_signal:.1e} from one another, at values of {_rms(case.x):.1e}.",
            "Look at what the loader hands out.",
        )


def _not_normalised(case: _Case) -> Iterator[Verdict]:
    channels = case.x.reshape(-1, case.x.shape[-1] if case.x.ndim == 4 else 1)
    mean, std = (to_numpy(value).astype("float64") for value in (channels.mean(axis=0), channels.std(axis=0)))
    worst = int(np.argmax(np.maximum(abs(mean) / std, np.maximum(std, 1 / std))))
    if (abs(mean) > std).any() or (std > 10.0).any() or (std < 0.1).any():
        yield Verdict(
            "data not normalised",
            "",
            f"Channel {worst} of the images has mean {mean[worst]:.3g} and standard deviation "
            f"{std[worst]:.3g}, where weights are made for 0 and 1.",
            "Subtract each channel's mean and divide by its standard deviation (data.Normalisation.of).",
        )


def _classes_missing(case: _Case) -> Iterator[Verdict]:
    counts = np.bincount(case.labels, minlength=case.classes)
    missing = [str(k) for k in np.flatnonzero(counts == 0)]
    by_chance = case.classes * (1.0 - 1.0 / case.classes) ** len(case.labels)
    if (missing and counts.mean() > 12.0) or len(missing) > by_chance + 4.0 * sqrt(by_chance) + 1.0:
        yield Verdict(
            "classes missing",
            "",
            f"{len(missing)} of the network's {case.classes} outputs have no image among {len(case.labels)}: "
            f"{', '.join(missing[:10])}{', ...' if len(missing) > 10 else ''}.",
            "Compare num_classes with the labels, and shuffle the images before they are cut into batches.",
        )


def _zero_weights(case: _Case) -> Iterator[Verdict]:
    for sign in case.layers:
        if sign.size == 0.0:
            yield Verdict(
                "zero weights",
                sign.path,
                "All weights are zero, so nothing passes, neither the images on the way forward nor the "
                "gradient on the way back.",
                _sentence(HE),
            )


def _equal_weights(case: _Case) -> Iterator[Verdict]:
    for sign in case.layers:
        w = max(sign.weights, key=lambda p: p.size).data
        largest = float(abs(w).max())
        if w.shape[-1] > 1 and 0.0 < largest and float(abs(w - w[..., :1]).max()) <= 1e-6 * largest:
            yield Verdict(
                "equal weights",
                sign.path,
                f"All {w.shape[-1]} units have the same weights, so they put out the same, get the same gradient "
                "and stay one unit for ever.",
                "Initialise with random numbers, as init='he' does.",
            )


def _squashed(case: _Case) -> Iterator[Verdict]:
    smallest, sums = case.logits.min(), case.logits.sum(axis=1)
    what = ""
    if smallest >= 0.0 and abs(sums - 1.0).max() < 1e-3:
        what = "The outputs are probabilities already, and softmax of them is never far from 1 / K"
    elif isinstance(case.heard[-1].layer, ReLU):
        what = (
            f"The outputs went through a ReLU, so that {100 * (case.logits == 0).mean():.0f} % of them are 0"
        )
    if what:
        yield Verdict(
            "output squashed",
            case.heard[-1].path,
            f"{what}: the loss takes logits, and does its softmax itself.",
            "Remove what follows the last layer with weights.",
        )


def _dead(case: _Case) -> Iterator[Verdict]:
    # What has vanished from the start comes to rest at the biases, which may leave most units dead, too.
    yield from _dying(case, 0.75 if case.leap and case.stuck else 1.0)


def _mostly_dead(case: _Case) -> Iterator[Verdict]:
    if case.stuck:
        yield from _dying(case, 0.75)


def _dying(case: _Case, share: float) -> Iterator[Verdict]:
    relus = [sign for sign in case.heard if sign.dead is not None]
    sign = max(relus, key=lambda sign: sign.dead, default=None)  # the first of those that are worst
    if sign is None or sign.dead < share:
        return
    units = "All" if sign.dead == 1.0 else f"{100 * sign.dead:.0f} % of the"
    reason = f"{units} units are zero for every image, so neither signal nor gradient passes them"
    if case.leap:
        reason += f", after the loss had leapt to {case.leap[1]:.3g} at step {case.leap[0]}"
    advice = f"{_sentence(RATE)[:-1]}, and begin anew: dead units do not come back."
    if not case.step and not case.leap:
        advice = f"Look at its biases and at what comes in. If the network was trained: {RATE}."
    yield Verdict("dead", sign.path, f"{reason}; the loss is {case.loss:.4f}.", advice)


def _exploding(case: _Case) -> Iterator[Verdict]:
    out = case.logits.std()
    if not (out > 30.0 * case.input_std and case.loss > 3.0 * case.ignorance and case.by_chance):
        return
    sizes = [case.input_std, *(sign.std for sign in case.layers)]
    at, alone = _culprit(sizes, lambda size: size > 10.0 * case.input_std)
    if alone and at == len(case.layers) - 1:
        return  # softmax alone is saturated
    growth = (out / case.input_std) ** (1.0 / len(case.layers))
    how = f"by a factor of {growth:.2g} a layer" if not alone else "most of it in this layer"
    reason = f"Activations grow from {case.input_std:.2g} at the images to {out:.2g} at the output, {how}"
    if case.leap:
        reason += f", since the loss leapt to {case.leap[1]:.3g} at step {case.leap[0]}"
    yield Verdict(
        "learning rate too high" if case.leap else "exploding",
        case.layers[at].path,
        f"{reason}; the loss is {case.loss:.3g}.",
        _sentence(RATE if case.leap else HE),
    )


def _vanishing(case: _Case) -> Iterator[Verdict]:
    out = float(np.sqrt(((case.logits - case.logits.mean(axis=0)) ** 2).mean()))
    if out > 1e-3 or case.error < 0.1:
        return
    signals = [case.input_signal, *(sign.signal for sign in case.layers)]
    at, alone = _culprit(signals, lambda signal: signal < 0.01 * case.input_signal)
    fall = (out / case.input_signal) ** (1.0 / len(case.layers))
    how = "most of it in this layer" if alone else f"by a factor of {fall:.2g} a layer"
    reason = (
        f"What differs from image to image falls from {case.input_signal:.2g} at the images to {out:.1e} at the "
        f"output, {how}, so that the loss is {case.loss:.4f}, close to ln {case.classes}, and the smallest gradient "
        f"{min(sign.gradient for sign in case.layers):.0e} of its weights: no learning rate helps."
    )
    decay = case.optimizer.weight_decay if case.optimizer is not None else 0.0
    if case.leap:
        reason += f" The loss had leapt to {case.leap[1]:.3g} at step {case.leap[0]}."
        yield Verdict("dead", case.layers[at].path, reason, f"{_sentence(RATE)[:-1]}, and begin anew.")
    elif case.step and decay and median(_next_to_he(sign) for sign in case.layers) < 0.3:
        yield _too_strong(case, f"Weights have shrunk to nothing: {reason[0].lower()}{reason[1:]}")
    else:
        yield Verdict("vanishing", case.layers[at].path, reason, _sentence(HE))


def _saturated_softmax(case: _Case) -> Iterator[Verdict]:
    sure = case.sure
    if not (case.loss > 4.0 * case.ignorance and sure > 0.9 and case.by_chance):
        return
    sign = max(case.layers, key=_next_to_he)
    if _next_to_he(sign) < 3.0:
        sign = case.layers[-1]
    yield Verdict(
        "saturated",
        sign.path,
        f"Softmax is {100 * sure:.0f} % sure of its answers and wrong, with logits of {_rms(case.logits):.3g}: "
        f"the loss is {case.loss:.3g}, where knowing nothing is {case.ignorance:.2f}.",
        f"Make the weights and biases of this layer smaller; {HE}.",
    )


def _saturated_activation(case: _Case) -> Iterator[Verdict]:
    for sign in case.heard:
        common = isinstance(sign.layer, (ReLU, Dropout))
        if not sign.weights and not common and sign.flat is not None and sign.flat > 0.9:
            yield Verdict(
                "saturated",
                sign.path,
                f"{100 * sign.flat:.0f} % of the outputs of {type(sign.layer).__name__} let less than a hundredth of the gradient "
                "through: its inputs lie where it is flat.",
                "Make the weights before it smaller, normalise its input, or use ReLU.",
            )
            return


def _vanishing_gradient(case: _Case) -> Iterator[Verdict]:
    if case.error < 1e-3:
        return
    weak = [sign for sign in case.layers if sign.gradient < 1e-5 * case.error]
    if weak and any(sign.gradient > 0.0 for sign in weak):
        sign = min(weak, key=lambda sign: sign.gradient)
        yield Verdict(
            "vanishing",
            sign.path,
            f"The gradient is {sign.gradient:.0e} of the weights here and "
            f"{max(sign.gradient for sign in case.layers):.0e} where it is largest: it is lost on the way back.",
            f"Use ReLU, and {HE}.",
        )


def _renumbered(case: _Case) -> Iterator[Verdict]:
    guesses = case.logits.argmax(axis=1)
    table = np.zeros((case.classes, case.classes), int)
    np.add.at(table, (guesses, case.labels), 1)
    best = table.argmax(axis=1)  # the label that images named k mostly have
    named = table.sum(axis=1) > 0
    share = table.max(axis=1).sum() / len(guesses)
    one_to_one = len(set(best[named])) == named.sum()
    if named.sum() > case.classes / 2 and one_to_one and share > 0.6 and case.accuracy < 0.5 * share:
        k = int(np.flatnonzero(named & (best != np.arange(case.classes)))[0])
        yield Verdict(
            "labels renumbered",
            "",
            f"{100 * share:.0f} % of the answers would be right if classes were numbered otherwise, and "
            f"{100 * case.accuracy:.0f} % are: what the network calls {k} is labelled {best[k]}.",
            "Put the class names into the order that the network was trained with.",
        )


def _frozen(case: _Case) -> Iterator[Verdict]:
    if case.error < 1e-6:
        return
    learned = None if case.optimizer is None else {id(p) for p in case.optimizer.parameters.values()}
    for sign in case.heard:
        why = ""
        if sign.weights and not all(p.has_grad for p in sign.weights):
            why = "Its backward sets no gradient"
        elif sign.weights and sign.gradient == 0.0:
            why = "Its gradient is exactly zero, although signal and error are not"
        elif learned is not None and not all(id(p) in learned for p in sign.weights):
            why = "The optimizer does not have its weights"
        if why:
            yield Verdict(
                "frozen",
                sign.path,
                f"{why}, so {type(sign.layer).__name__} never changes.",
                "Look at the backward of this layer and the one behind it, and give SGD all of net.parameters().",
            )


def _wrong_gradient(case: _Case) -> Iterator[Verdict]:
    if case.step:  # a backward that is wrong is so from the beginning
        return
    case._set_mode()
    parameters = {name: p for name, p in case.net.parameters().items() if p.has_grad}
    norms = {name: _norm(p.grad) for name, p in parameters.items()}
    # Large enough to be seen in the loss, and next to the rounding of the weights.
    rounding = 25.0 * float(np.finfo(case.x.dtype).eps)
    seen = max(norm * _norm(parameters[name].data) for name, norm in norms.items())
    size = max(1e-4 * max(1.0, case.loss) / len(norms), rounding * seen)
    directions: dict[str, tuple[int, Any]] = {}
    for name, p in parameters.items():
        scale = 1.0 if p.ndim == 1 else _rms(p.data)
        above_noise = norms[name] > 1e-4 * max(norms.values())
        if above_noise and size <= 0.02 * scale * sqrt(p.size) * norms[name]:  # short enough for a slope
            directions[name] = (id(p), p.grad / norms[name] / norms[name])

    def slope(names: Sequence[str]) -> float:
        shift = dict(directions[name] for name in names)
        return (case.loss_at(shift, size) - case.loss_at(shift, -size)) / (2.0 * size)

    if not directions or abs(slope(list(directions)) / len(directions) - 1.0) < 0.02:
        return
    for name in reversed(directions):  # backward runs from the last to the first, and an error with it
        found = slope([name])
        if abs(found - 1.0) > 0.3:
            yield Verdict(
                "wrong gradient",
                name,
                f"Along this gradient the loss changes by {found:.2f} times what the gradient foretells.",
                "Compare the backward of this layer and of those behind it with their forward (gradcheck.check_layer).",
            )
            return


def _running_statistics(case: _Case) -> Iterator[Verdict]:
    norms = [sign for sign in case.heard if isinstance(sign.layer, BatchNorm2d)]
    if not norms or case.loss > 0.5 * case.ignorance:
        return
    for _, layer in case.net.walk():
        layer.training = False
    logits = case.net.forward(case.x)
    loss = float(case.criterion.forward(logits, case.labels))
    if not loss < 0.9 * case.ignorance:
        yield Verdict(
            "running statistics off",
            norms[0].path,
            f"With the batch's own statistics the loss is {case.loss:.3g}, with the running ones {loss:.3g}: what "
            "batch normalisation tracked is not what the layers see.",
            "Let the statistics be tracked in training mode, with a momentum near 0.1, and save them with the weights.",
        )


def _too_strong(case: _Case, reason: str) -> Verdict:
    decay = case.optimizer.weight_decay
    return Verdict(
        "weight decay too strong", "", reason, f"Lower the weight decay of {decay:g}; 5e-4 is usual."
    )


def _weight_decay(case: _Case) -> Iterator[Verdict]:
    if case.optimizer is None:
        return
    shrinks = case.highest_lr * case.optimizer.weight_decay / max(1.0 - case.momentum, 1e-3)
    if shrinks > 0.01:
        yield _too_strong(case, f"Decay alone takes {100 * shrinks:.2g} % off the weights at every step.")


def _dropout(case: _Case) -> Iterator[Verdict]:
    for sign in case.heard:
        if isinstance(sign.layer, Dropout) and sign.layer.p > 0.8:
            p = sign.layer.p
            noise = "no signal is left" if p == 1.0 else f"the noise is {p / (1 - p):.1f} times the signal"
            yield Verdict(
                "dropout too high",
                sign.path,
                f"It keeps {100 * (1 - p):.2g} % of the activations: {noise}.",
                "Drop half of them at most.",
            )


def _rate_too_high(case: _Case) -> Iterator[Verdict]:
    normalised = any(isinstance(sign.layer, BatchNorm2d) for sign in case.heard)
    limit = 1.0 if normalised else 0.2
    updates = [sign.update for sign in case.layers if sign.update is not None]
    if updates and median(updates) > limit:
        largest = max(case.layers, key=lambda sign: sign.update)
        yield Verdict(
            "learning rate too high",
            largest.path,
            f"A step changes weights by {median(updates):.2g} of themselves in the median layer, and by "
            f"{largest.update:.2g} in this one.",
            f"{_sentence(RATE)[:-1]}: a hundredth is a good step.",
        )
        return
    if not normalised and case.lr:
        shift = {id(p): p.grad for p in case.net.parameters().values() if p.has_grad}
        case._set_mode()
        after = case.loss_at(shift, -case.lr)
        if not after < 3.0 * max(case.loss, case.ignorance):
            yield Verdict(
                "learning rate too high",
                "",
                f"One step takes the loss of the very same images from {case.loss:.3g} to {after:.3g}.",
                _sentence(RATE),
            )
            return
    if case.leap and case.stuck:
        yield Verdict(
            "learning rate too high",
            "",
            f"The loss leapt to {case.leap[1]:.3g} at step {case.leap[0]}, and is {case.loss:.3g} now.",
            _sentence(RATE),
        )


def _rate_too_low(case: _Case) -> Iterator[Verdict]:
    if not case.lr or case.error < 0.1:
        return
    update = median(sign.update for sign in case.layers) * case.highest_lr / case.lr
    stuck = len(case.losses) >= 300 and fmean(case.losses[-100:]) > 0.99 * case.ignorance
    if update < (1e-4 if stuck else 1e-5) * case.error:
        yield Verdict(
            "learning rate too low",
            "",
            f"A step changes weights by {update:.1e} of themselves in the median layer: it takes {1 / update:,.0f} "
            "steps to make others of them."
            if update
            else "A step changes nothing.",
            "Raise the learning rate: a thousandth is a good step.",
        )


def _labels(case: _Case) -> Iterator[Verdict]:
    advice = "Look at images with their labels: they must be shuffled together, or not at all."
    recent = fmean(case.losses[-100:]) if len(case.losses) >= 300 else 0.0
    last = case.epochs[-1] if case.epochs else None
    chance = 1.0 / case.classes
    if recent > 0.99 * case.ignorance:
        reason = (
            f"After {case.step} steps the training loss is {recent:.4f}, ln {case.classes} is {case.ignorance:.4f}, "
            "although signal, gradients and steps are sound: nothing in the images tells the labels."
        )
    elif last and last["val_accuracy"] < 1.3 * chance and last["train_accuracy"] > 2.0 * chance:
        reason = (
            f"Training images are learned by heart, {100 * last['train_accuracy']:.0f} % of them, and of validation "
            f"images {100 * last['val_accuracy']:.0f} % are right, which is guessing."
        )
    elif self_evident := _no_trace(case):
        reason = self_evident
    else:
        return
    yield Verdict("labels shuffled", "", reason, advice)


def _no_trace(case: _Case) -> str:
    """Return a sentence where images with one label are no more alike than images with two."""
    if case.pairs < ENOUGH_PAIRS or not _has_structure(case.x):
        return ""
    views = [_alike(case.x), *(sign.alike for sign in case.heard if sign.alike is not None)]
    rng = np.random.default_rng(0)
    shuffled = [rng.permutation(case.labels) for _ in range(100)]
    best = -float("inf")
    for alike in views:
        by_chance = [_same(alike, labels) for labels in shuffled]
        best = max(best, float((_same(alike, case.labels) - np.mean(by_chance)) / np.std(by_chance)))
    if best > 3.0:
        return ""
    return (
        f"Images with the same label are no more alike than others, in no layer: {best:.1f} standard deviations above "
        "chance at most."
    )


def _same(alike: np.ndarray, labels: np.ndarray) -> float:
    return float(alike[labels[:, None] == labels[None, :]].sum())


def _has_structure(x: Any) -> bool:
    """Tell pictures, in which neighbouring pixels are alike, from noise, which no label can be read from."""
    if x.ndim != 4 or x.shape[2] < 2:
        return False
    x = x - x.mean(axis=(0, 1, 2))
    return float((x[:, :, 1:] * x[:, :, :-1]).mean()) > 0.3 * float((x * x).mean())


def _overfitting(case: _Case) -> Iterator[Verdict]:
    if len(case.epochs) < 3:
        return
    best = min(range(len(case.epochs)), key=lambda i: case.epochs[i]["val_loss"])
    since, first, last = case.epochs[best + 1 :], case.epochs[best], case.epochs[-1]
    rising = len(since) >= 2 and all(row["val_loss"] > 1.1 * first["val_loss"] for row in since[-2:])
    if rising and last["train_loss"] < first["train_loss"] and last["train_loss"] < 0.7 * last["val_loss"]:
        yield Verdict(
            "overfitting",
            "",
            f"Validation loss rose from {first['val_loss']:.3g} after epoch {best + 1} to {last['val_loss']:.3g}, "
            f"while training loss fell from {first['train_loss']:.3g} to {last['train_loss']:.3g}.",
            "Stop earlier, or take more images, augmentation, dropout or weight decay.",
        )


Rule = Callable[[_Case], Iterator[Verdict]]

FLOORS: tuple[tuple[Rule, ...], ...] = (
    (_no_numbers,),
    (_images_alike,),
    (_not_normalised, _classes_missing),
    (_zero_weights, _equal_weights),
    (_squashed,),
    (_dead,),
    (_saturated_activation,),
    (_exploding,),
    (_vanishing,),
    (_mostly_dead,),
    (_renumbered,),
    (_saturated_softmax,),
    (_vanishing_gradient,),
    (_frozen, _wrong_gradient),
    (_running_statistics,),
    (_weight_decay, _rate_too_high, _dropout),
    (_rate_too_low,),
    (_labels, _overfitting),
)

ENOUGH_PAIRS = 2500  # of images with one label: 256 images of ten classes have some 3,200


def _culprit(sizes: Sequence[float], beyond: Callable[[float], bool]) -> tuple[int, bool]:
    """Return the layer that changes the size most, and True, if it alone makes half of the whole change.

    Otherwise return the first layer whose size is ``beyond``, or the last, and False. ``sizes[0]`` is the input's.
    """
    logs = [log(max(size, 1e-300)) for size in sizes]
    jumps = [after - before for before, after in zip(logs[:-1], logs[1:], strict=True)]
    total = logs[-1] - logs[0]
    largest = max(range(len(jumps)), key=lambda i: jumps[i] / total)
    if jumps[largest] / total > 0.5 and len(jumps) > 2:
        return largest, True
    return next((i for i, size in enumerate(sizes[1:]) if beyond(size)), len(jumps) - 1), False


def _next_to_he(sign: _Heard) -> float:
    """Return how large the weights are, as a multiple of He's."""
    w = max(sign.weights, key=lambda p: p.size)
    return _rms(w.data) * sqrt(prod(w.shape[:-1]) / 2.0)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def why_not_finite(net: Layer, x: Any) -> str:
    """Say where a NaN or an infinity first appeared, given the batch with which the loss showed it.

    Where weights are spoilt already, the last step spoilt them, with the gradients that are still there:
    backward runs from the last layer to the first, so the spoilt gradient that is nearest to the output came
    first. Otherwise this batch did it, and the first layer whose output is not finite is looked for, by
    running them one by one.

    Parameters
    ----------
    net : Layer
    x : array (N, H, W, 3)

    Returns
    -------
    str
        Half a sentence, with what to do.

    Examples
    --------
    >>> from scratchnet.layers import Linear, ReLU, Sequential
    >>> net = Sequential(Linear(2, 2), ReLU())
    >>> net[0].bias.data = np.array([0.0, np.inf])
    >>> why_not_finite(net, np.ones((1, 2), "float32"))
    'it first appeared in 0.bias, which is not finite: lower the learning rate, or warm it up'
    """
    advice = "lower the learning rate, or warm it up"
    parameters = net.parameters()
    if not all(is_finite(p.data) for p in parameters.values()):
        gradients = [name for name, p in parameters.items() if p.grad is not None and not is_finite(p.grad)]
        if gradients:
            return f"it first appeared in the gradient of {gradients[-1]}, one step before: {advice}"
        spoilt = next(name for name, p in parameters.items() if not is_finite(p.data))
        return f"it first appeared in {spoilt}, which is not finite: {advice}"
    if not is_finite(x):
        return "it first appeared in the images themselves: check the data and its normalisation"
    for layer in getattr(net, "layers", [net]):
        x = layer.forward(x)
        if not is_finite(x):
            name = type(layer).__name__
            return f"it first appeared in the output of {layer.path or name} ({name}): {advice}"
    return f"every layer's output is finite, so it appeared in the loss itself: {advice}"


def is_finite(x: Any) -> bool:
    """Tell whether an array has neither NaN nor infinity.

    Parameters
    ----------
    x : array

    Examples
    --------
    >>> is_finite(np.array([1.0, np.nan]))
    False
    """
    return bool(array_module(x).isfinite(x).all())


def _for_json(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as text."""
    if isinstance(value, dict):
        return {key: _for_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_for_json(item) for item in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return float(value) if value in ("nan", "inf", "-inf") else value
