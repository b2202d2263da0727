"""How the doctor measures: a batch goes forward and back, the network is listened to and left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite, log, sqrt
from typing import Any

import numpy as np

from scratchnet import functional as F
from scratchnet.backend import array_module, to_numpy
from scratchnet.layers import Dropout, Layer, Parameter, ReLU
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import SGD
from scratchnet.training.diagnosis import Row

ENOUGH_PAIRS = 2500  # of images with one label: 256 images of ten classes have some 3,200


@dataclass
class Heard:
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
    def weights(self) -> list[Parameter]:
        """What the layer is about: its matrices, or, where it has none, all its parameters."""
        own = [value for value in vars(self.layer).values() if isinstance(value, Parameter)]
        return [p for p in own if p.ndim > 1] or own

    @property
    def mixes(self) -> bool:
        """Whether it has a matrix, as convolutions and linear layers have."""
        return any(p.ndim > 1 for p in self.weights)


@contextmanager
def undisturbed(net: Layer) -> Iterator[None]:
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
    modes = [(layer, layer.training, layer._saved) for layer in layers]
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
            layer.training, layer._saved = training, kept
        for array, before in statistics:
            array[...] = before
        for generator, state in generators:
            generator.state = state


@contextmanager
def listening(net: Layer, compare: bool) -> Iterator[list[Heard]]:
    """Yield a list that fills, as the network computes, with what each layer puts out and passes back.

    It works for every network whose layers call each other's ``forward`` and ``backward``.
    """
    heard: list[Heard] = []
    layers = []
    for path, layer in net.walk():
        sign = Heard(path, layer)
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


def _listen(sign: Heard, heard: list[Heard], compare: bool) -> None:
    layer = sign.layer
    forward, backward = layer.forward, layer.backward

    def heard_forward(x: Any) -> Any:
        y = forward(x)
        sign.std, sign.signal = rms(y - y.mean()), signal_of(y)
        sign.finite = bool(array_module(y).isfinite(y).all())
        if isinstance(layer, ReLU):
            sign.dead = float((y.reshape(-1, y.shape[-1]).max(axis=0) <= 0).mean())
            sign.alike = alikeness(y) if compare else None
        if sign not in heard:
            heard.append(sign)
        return y

    def heard_backward(dy: Any, *arguments: Any, **keywords: Any) -> Any:
        dx = backward(dy, *arguments, **keywords)
        if dx is not None and dx.shape == dy.shape:
            sign.flat = float((abs(dx) <= 0.01 * abs(dy)).mean())
        return dx

    layer.forward, layer.backward = heard_forward, heard_backward


def rms(x: Any) -> float:
    """Return the root mean square, of numbers however large or small."""
    largest = float(abs(x).max())
    if largest == 0.0 or not isfinite(largest):
        return largest
    return largest * sqrt(float(((x / largest) ** 2).mean()))


def norm(x: Any) -> float:
    """Return the root of the sum of squares."""
    return rms(x) * sqrt(x.size)


def signal_of(x: Any) -> float:
    """Return the standard deviation over the batch, of all places and channels together."""
    return rms(x - x.mean(axis=0))


def alikeness(x: Any) -> np.ndarray:
    """Return the cosine of the angle between each two images' features, their mean taken off, (N, N)."""
    features = x.reshape(len(x), -1)
    features = features - features.mean(axis=0)
    features /= array_module(x).sqrt((features**2).sum(axis=1, keepdims=True)) + 1e-30
    return to_numpy(features @ features.T)


@dataclass
class Case:
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

    def measure(self) -> None:
        """Send the batch forward and back, and listen."""
        if self.lr is None and self.optimizer is not None:
            self.lr = self.optimizer.lr
        if self.highest_lr is None:
            self.highest_lr = self.lr
        net, labels = self.net, self.labels
        parameters = list(net.parameters().values())
        counts = np.bincount(labels[labels >= 0]) if labels.dtype.kind in "iu" else np.zeros(1)
        self.pairs = int((counts * (counts - 1)).sum()) // 2  # of images with one label
        self.set_mode()
        with listening(net, compare=self.pairs >= ENOUGH_PAIRS) as heard:
            logits = net.forward(self.x)
            self.loss = float(self.criterion.forward(logits, labels))
            spoilt = not all(is_finite(array) for array in (logits, *(p.data for p in parameters)))
            self.not_finite = why_not_finite(net, self.x) if spoilt else ""
            for p in parameters:  # from here on new gradients, in an array of their own
                p.has_grad, p.buffer.grad = False, None
            dlogits = self.criterion.backward()
            if not spoilt:
                net.backward(dlogits, need_input_gradient=False)
        self.error = norm(dlogits) * sqrt(len(labels))  # of an image, |p - t|
        self.classes = logits.shape[1]
        self.heard = heard
        self.logits = to_numpy(logits).astype("float64")
        self.accuracy = float((self.logits.argmax(axis=1) == labels).mean())
        self.layers = [sign for sign in heard if sign.mixes]
        self.input_std, self.input_signal = rms(self.x - self.x.mean()), signal_of(self.x)
        steps = _steps(self.optimizer, self.lr)
        for before, sign in zip([None, *heard], heard, strict=False):
            if isinstance(sign.layer, ReLU) and before is not None and before.weights:
                before.dead = sign.dead
            if sign.weights:
                sign.size = sqrt(sum(norm(p.data) ** 2 for p in sign.weights))
                gradient = sqrt(sum(norm(p.grad) ** 2 for p in sign.weights if p.has_grad))
                sign.gradient = gradient / sign.size if sign.size else gradient
                if steps is not None:
                    update = sqrt(sum(steps(p) ** 2 for p in sign.weights))
                    sign.update = update / sign.size if sign.size else update

    def set_mode(self) -> None:
        """Compute as in training, but dropout passes everything: the loss is a function of the weights."""
        for _, layer in self.net.walk():
            layer.training = not isinstance(layer, Dropout)

    def rows(self) -> list[Row]:
        """Return the rows of the table."""
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
        """The optimizer's, 0 where there is none."""
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
        return lambda p: lr * norm(p.grad) if p.has_grad else 0.0
    places, start = {}, 0
    for name, p in optimizer.parameters.items():
        decay = 0.0 if optimizer.no_decay(name, p) else optimizer.weight_decay
        places[id(p)] = (start, decay)
        start += p.size

    def next_step(p: Parameter) -> float:
        if id(p) not in places or not p.has_grad:
            return 0.0
        start, decay = places[id(p)]
        g = p.grad + decay * p.data
        if optimizer.momentum_buffer is None:  # what equal gradients will add up to
            return lr * norm(g) / max(1.0 - optimizer.momentum, 1e-3)
        v = p.buffer.backend.asarray(optimizer.momentum_buffer[start : start + p.size]).reshape(p.shape)
        v = optimizer.momentum * v + g
        return lr * norm(g + optimizer.momentum * v if optimizer.nesterov else v)

    return next_step


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
