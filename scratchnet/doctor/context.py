"""Measurement: a batch goes forward and back, each layer is observed, and the network is left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite, log, sqrt
from statistics import median

import numpy as np

from scratchnet.backend import Array, array_module, to_numpy
from scratchnet.doctor.diagnosis import Row
from scratchnet.layers import BatchNorm2d, Dropout, Layer, Parameter, ReLU
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import Optimizer
from scratchnet.state import preserved
from scratchnet.training.engine import Layers
from scratchnet.training.finite import is_finite, why_not_finite

# Of images with the same label, from which labels are judged. Over so many pairs the mean of cosines, each of
# standard deviation s, is known to s / sqrt(2500) = s / 50; 256 images of ten classes have some 3,200.
ENOUGH_PAIRS = 2500

# The mean loss of 32 images is known to their spread, about ln K, over sqrt(32): to 18 %. Chance does not
# double the loss, which is more than five times that.
SPIKE = 2.0


@dataclass(eq=False)
class LayerStats:
    """What was observed at one layer: its output on the way forward, the gradients on the way back."""

    path: str
    layer: Layer
    std: float = 0.0  # of all that it puts out
    signal: float = 0.0  # of the part that differs from image to image
    dead: float | None = None  # share of the units of a ReLU, or of the ReLU after a layer with weights
    alone: bool = True  # whether no layer with weights comes before it
    similarity: Array | None = None  # of a ReLU, the cosine between its outputs for each two images (N, N)
    size: float = 0.0  # norm of the weights
    gradient: float | None = None  # norms over that of the weights
    update: float | None = None

    @property
    def weights(self) -> list[Parameter]:
        """What the layer is about: its matrices, or, where it has none, all its parameters."""
        own = [value for value in vars(self.layer).values() if isinstance(value, Parameter)]
        return [p for p in own if p.ndim > 1] or own


@contextmanager
def observing(net: Layer, compare: bool) -> Iterator[list[LayerStats]]:
    """Yield a list that fills, as the network computes, with the statistics of each layer.

    It works for every network whose layers call each other's ``forward``, branches included.
    """
    found: list[LayerStats] = []
    observed = []
    for path, layer in net.walk():
        stats = LayerStats(path, layer)
        if stats.weights or not list(layer.children()):
            observed.append((vars(layer), vars(layer).get("forward")))
            vars(layer)["forward"] = _observed(stats, found, compare)
    try:
        yield found
    finally:
        for attributes, before in observed:
            del attributes["forward"]
            if before is not None:
                attributes["forward"] = before


def _observed(stats: LayerStats, found: list[LayerStats], compare: bool) -> Callable[[Array], Array]:
    """Return a layer's forward that also notes what it puts out."""
    forward = stats.layer.forward

    def observed_forward(x: Array) -> Array:
        y = forward(x)
        stats.std, stats.signal = rms(y - y.mean()), signal_of(y)
        if isinstance(stats.layer, ReLU):
            stats.dead = float((y.reshape(-1, y.shape[-1]).max(axis=0) <= 0).mean())
            stats.similarity = cosine_similarity(y) if compare else None
        if stats not in found:
            found.append(stats)
        return y

    return observed_forward


def rms(x: Array) -> float:
    """Return the root mean square, of numbers however large or small."""
    sizes: Array = abs(x)
    largest = float(sizes.max())
    if largest == 0.0 or not isfinite(largest):
        return largest
    return largest * sqrt(float(((x / largest) ** 2).mean()))


def norm(x: Array) -> float:
    """Return the root of the sum of squares."""
    return rms(x) * sqrt(x.size)


def signal_of(x: Array) -> float:
    """Return the standard deviation over the batch, of all places and channels together."""
    return rms(x - x.mean(axis=0))


def cosine_similarity(x: Array) -> np.ndarray:
    """Return the cosine of the angle between each two images' features, their mean subtracted, (N, N)."""
    features = x.reshape(len(x), -1)
    features = features - features.mean(axis=0)
    features /= array_module(x).sqrt((features**2).sum(axis=1, keepdims=True)) + 1e-30
    return to_numpy(features @ features.T)


@dataclass
class Context:
    """A network, a batch, what is known of its training, and what is measured: all that the rules ask."""

    net: Layer
    x: Array
    labels: np.ndarray
    optimizer: Optimizer | None
    lr: float | None
    highest_lr: float | None
    criterion: SoftmaxCrossEntropy
    step: int
    losses: Sequence[float]
    epochs: Sequence[Mapping[str, float]]

    def check_weights(self) -> None:
        """Look for NaN and infinity while the gradients that brought them are there."""
        spoilt = not all(is_finite(p.data) for p in self.net.parameters().values())
        self.not_finite = why_not_finite(self.net, self.x) if spoilt else ""

    def measure(self) -> None:
        """Send the batch forward and back, and observe. It changes the network, which is to be preserved."""
        net, x, labels = self.net, self.x, self.labels
        if self.lr is None and self.optimizer is not None:
            self.lr = self.optimizer.lr
        counts = np.bincount(labels[labels >= 0]) if labels.dtype.kind in "iu" else np.zeros(1)
        self.pairs = int((counts * (counts - 1)).sum()) // 2  # of images with one label
        self.set_mode()
        with observing(net, compare=self.pairs >= ENOUGH_PAIRS) as self.stats:
            logits = net.forward(x)
            self.loss = float(self.criterion.forward(logits, labels))
            if not self.not_finite and not is_finite(logits):
                self.not_finite = why_not_finite(net, x)
            dlogits = self.criterion.backward()
            if not self.not_finite:
                Layers(net).backward(dlogits)
        self.error = norm(dlogits) * sqrt(len(labels))  # of an image, |p - t|
        self.classes = logits.shape[1]
        self.logits = to_numpy(logits).astype("float64")
        self.accuracy = float((self.logits.argmax(axis=1) == labels).mean())
        self.layers = [stats for stats in self.stats if any(p.ndim > 1 for p in stats.weights)]
        self.learning = [stats for stats in self.layers if any(p.trainable for p in stats.weights)]
        self.norms = [stats for stats in self.stats if isinstance(stats.layer, BatchNorm2d)]
        self.input = LayerStats("", net, rms(x - x.mean()), signal_of(x))
        self._compare_with_weights()

    def _compare_with_weights(self) -> None:
        for before, stats in zip(self.stats, self.stats[1:], strict=False):
            if isinstance(stats.layer, ReLU) and before.weights:
                before.dead, stats.alone = stats.dead, False
        for stats in self.stats:
            if stats.weights:
                stats.size = sqrt(sum(norm(p.data) ** 2 for p in stats.weights))
                scale = stats.size or 1.0
                gradients = [p.grad for p in stats.weights if p.grad is not None]
                stats.gradient = sqrt(sum(norm(g) ** 2 for g in gradients)) / scale
                if self.lr is not None:
                    stats.update = sqrt(sum(self._next_step(p) ** 2 for p in stats.weights)) / scale

    def _next_step(self, p: Parameter) -> float:
        """Return the norm of a parameter's next step; lr times the gradient where no optimizer is known."""
        optimizer, lr, g = self.optimizer, self.lr or 0.0, p.grad
        if optimizer is None or g is None:
            return 0.0 if g is None else lr * norm(g)
        name = next((name for name, other in optimizer.trainable().items() if other is p), None)
        return 0.0 if name is None else norm(optimizer.next_step(name, p, g, lr))

    def set_mode(self) -> None:
        """Compute as in training, but dropout passes everything: the loss is a function of the weights."""
        for _, layer in self.net.walk():
            layer.training = not isinstance(layer, Dropout)

    def rows(self) -> list[Row]:
        """Return the rows of the table."""
        return [
            Row(s.path, type(s.layer).__name__, s.std, s.signal, s.dead, s.gradient, s.update)
            for s in self.stats
            if s.weights or (s.alone and s.dead is not None)
        ]

    # What several rules ask

    @property
    def chance_loss(self) -> float:
        """The loss of a network that knows nothing, ln K."""
        return log(self.classes)

    @property
    def by_chance(self) -> bool:
        """Whether no more answers are correct than guessing gives, within three standard deviations."""
        chance = 1.0 / self.classes
        return self.accuracy < chance + 3.0 * sqrt(chance * (1.0 - chance) / len(self.labels))

    @property
    def median_update(self) -> float | None:
        """How much of themselves a step changes weights, in the median layer; None where nothing tells."""
        updates = [stats.update for stats in self.learning if stats.update is not None]
        return median(updates) if updates else None

    @property
    def loss_spike(self) -> str:
        """A clause about the highest loss of training, where it is far above the first; otherwise nothing."""
        if len(self.losses) < 2:
            return ""
        highest = max(range(len(self.losses)), key=lambda i: self.losses[i])
        value = self.losses[highest]
        if not value > SPIKE * max(self.losses[0], self.chance_loss):
            return ""
        return f"the loss had leapt to {value:.3g} at step {self.step - len(self.losses) + highest}"

    def loss_now(self) -> float:
        """Return the loss of the batch, in the mode in which the layers are."""
        return float(self.criterion.forward(self.net.forward(self.x), self.labels))

    def loss_after_step(self, lr: float) -> float:
        """Return the loss of the batch after a step along its gradient; the weights are as before."""
        self.set_mode()
        gradients = [(p, p.grad) for p in self.net.parameters().values() if p.grad is not None]
        with preserved(self.net, values=True):
            for p, g in gradients:
                p.data[...] -= lr * g
            return self.loss_now()
