"""The forecast of a training: multiply-adds, memory by category, and the time of an epoch.

Memory is added up from what will be allocated: the flat arrays of parameters, gradients and momentum, and the
block of a plan, whose buffers all have their places before any of them exists. What the process holds already
(the interpreter, its libraries, the images) is asked of the system. Time is measured, with a few steps of
the trainer's own loop on a copy of the network, so that not a bit of the run that follows is changed.
"""

from __future__ import annotations

import copy
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from scratchnet import checks, plans
from scratchnet.cli.system import available_bytes, resident_bytes
from scratchnet.data import Loader
from scratchnet.functional.conv import COLUMNS_ON_CPU
from scratchnet.layers import BatchNorm2d, Conv2d, Dropout, Layer, Linear, MaxPool2d, ReLU, leaves
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import SGD
from scratchnet.tables import aligned
from scratchnet.training.console import duration
from scratchnet.training.engine import make_engine
from scratchnet.training.evaluation import evaluate
from scratchnet.training.trainer import Trainer

MB = 1e6
SECONDS = 1.0  # of each measurement, about
MEASUREMENTS = 3
BATCHES = 4  # that are in memory at once: the one in work, the next, and what it is being made of


@dataclass(frozen=True)
class Timing:
    """What was measured, and how often it will be done in an epoch.

    Attributes
    ----------
    step, validation_step : float
        Seconds of a batch.
    steps, validation_steps : int
        Batches in an epoch.
    epochs : int
    """

    step: float  # seconds
    steps: int
    validation_step: float
    validation_steps: int
    epochs: int = 1

    @property
    def epoch(self) -> float:
        """Seconds of an epoch, validation included.

        Examples
        --------
        >>> Timing(0.5, steps=100, validation_step=0.2, validation_steps=10).epoch
        52.0
        """
        return self.step * self.steps + self.validation_step * self.validation_steps


@dataclass(frozen=True)
class Forecast:
    """What ``forecast`` returns; ``print`` it.

    Attributes
    ----------
    batch_size : int
    parameters : int
        How many.
    multiply_adds : int
        Of the forward pass of one image; a training step takes three times as many for each.
    memory : dict of str to int
        Bytes by category. Where it trains on a GPU it is the GPU's memory.
    available : int or None
        Bytes that may be taken besides those that are held already; None where the system does not say.
    held : int
        Bytes of ``memory`` that are held already.
    largest_batch : int or None
        At least so many images per step would fit.
    timing : Timing or None
        If steps were measured.
    images : int or None
        How many there are to train on, if that is known: no batch is larger.
    """

    batch_size: int
    parameters: int
    multiply_adds: int
    memory: dict[str, int]
    available: int | None
    held: int
    largest_batch: int | None
    timing: Timing | None = None
    images: int | None = None

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether there is memory enough."""
        return self.available is None or self.total - self.held <= self.available

    @property
    def line(self) -> str:
        """The shortest form."""
        return f"{count(self.multiply_adds)} multiply-adds per image, {megabytes(self.total)} of memory"

    @property
    def warning(self) -> str:
        """One sentence if the memory will not do, and otherwise nothing."""
        if self.fits:
            return ""
        advice = f"{self.largest_batch} would fit" if self.largest_batch else "no batch would fit"
        return (
            f"a batch of {self.batch_size} needs {megabytes(self.total - self.held)} of memory, "
            f"{megabytes(self.available or 0)} are available: {advice}"
        )

    def __str__(self) -> str:
        rows = [
            ("parameters", f"{self.parameters:,}", ""),
            ("multiply-adds", count(self.multiply_adds), "per image, forward; three times that in training"),
            (f"memory, batches of {self.batch_size}", "", ""),
            *((f"  {name}", megabytes(size), NOTES.get(name, "")) for name, size in self.memory.items()),
            ("  together", megabytes(self.total), ""),
        ]
        if self.available is not None:
            fit = f"batches of {self.largest_batch:,} would fit" if self.largest_batch else "no batch fits"
            if self.largest_batch and self.largest_batch == self.images:
                fit = f"a batch of all {self.images:,} images would fit"
            rows.append(("  available", megabytes(self.available + self.held), fit))
        if self.timing is not None:
            t = self.timing
            rows += [
                ("time", "", ""),
                ("  per step", seconds(t.step), f"{self.batch_size / t.step:,.0f} images per second"),
                (
                    "  per epoch",
                    duration(t.epoch),
                    f"{t.steps:,} steps, and {t.validation_steps:,} to validate",
                ),
            ]
            if t.epochs > 1:
                rows.append((f"  {t.epochs} epochs", duration(t.epochs * t.epoch), ""))
        lines = aligned([row[:2] for row in rows], gap="  ")
        return "\n".join(f"{line}  {note}".rstrip() for line, (_, _, note) in zip(lines, rows, strict=True))


VARYING = ("activations", "workspace", "batches")  # with the batch
NOTES = {
    "activations": "what the backward pass will need",
    "workspace": "gradients of activations and scratch, which take turns",
    "batches": "images that are being prepared",
    "validation": "weights in a form that is quick to use",
    "saving": "a copy of the weights, while they are written",
    "program": "Python, libraries, and the data set",
}


def forecast(
    net: Layer,
    batch_size: int,
    image_size: int | None = None,
    *,
    optimizer: SGD | None = None,
    train: Loader | None = None,
    validation: Loader | None = None,
    loss: SoftmaxCrossEntropy | None = None,
    epochs: int = 1,
    engine: str | None = None,
    precision: str = "fp32",
    saves: bool = False,
    measure: bool = False,
) -> Forecast:
    """Return what training a network will cost.

    Parameters
    ----------
    net : Layer
        On the backend on which it is to train, in training mode. It is not changed.
    batch_size : int
    image_size : int, optional
        Side of the images; by default that which a VGG was built for.
    optimizer : SGD, optional
        By default one with momentum.
    train, validation : Loader, optional
        What an epoch consists of, for its time.
    loss : SoftmaxCrossEntropy, optional
    epochs : int
        How many, for the time of all of them.
    engine : {"plan", "layers"}, optional
        See ``make_engine``. For the layers memory is an estimate from the shapes of what they keep.
    precision : {"fp32", "tf32", "bf16"}
    saves : bool
        Whether weights are saved after an epoch, which takes a copy of them.
    measure : bool
        Whether to time a few steps with ``train`` and ``validation``, some seconds in all.

    Returns
    -------
    Forecast

    Raises
    ------
    ValueError
        If the network does not take such images, or there is nothing to measure with.

    Examples
    --------
    >>> from scratchnet.models import vgg11
    >>> net = vgg11(num_classes=10, image_size=32, width=0.25, classifier_width=256)
    >>> f = forecast(net, batch_size=64)
    >>> f.parameters, f.memory["gradients"]
    (678506, 2714024)
    >>> print(f.line)  # doctest: +ELLIPSIS
    10.0 M multiply-adds per image, ... MB of memory
    """
    checks.whole(batch_size=batch_size)
    size = image_size or net.settings().get("image_size")
    if size is None:
        raise ValueError("this network does not say which images it takes: give image_size")
    if measure and (train is None or not len(train)):
        raise ValueError("a step can only be measured with images: give a Loader as train")
    if train is not None:
        batch_size = max(1, min(batch_size, train.n_samples))  # there may be fewer images than a batch has

    channels = net.settings().get("in_channels", 3) if train is None else train.images.shape[3]

    def shape(n: int) -> tuple[int, ...]:
        return (n, size, size, channels)

    parameters = list(net.parameters().values())
    on_cpu = net.backend.name == "numpy"
    weights = sum(p.size * p.dtype.itemsize for p in parameters)
    learned = sum(p.size * p.dtype.itemsize for p in parameters if p.trainable)
    momentum = learned if optimizer is None or optimizer.momentum else 0
    has_weights = bool(parameters) and parameters[0].buffer.data is not None
    resident = (resident_bytes() if on_cpu else 0) - (weights if has_weights else 0)

    def memory(n: int) -> dict[str, int]:
        activations, workspace = _computing(net, shape(n), engine, precision)
        return {
            "parameters": weights,
            "gradients": learned if on_cpu else weights,
            "momentum": momentum,
            "activations": activations,
            "workspace": workspace,
            "batches": BATCHES * prod(shape(n)) * net.dtype.itemsize,
            "validation": plans.weight_memory_budget(weights) if on_cpu and engine != "layers" else 0,
            "saving": weights if saves and on_cpu else 0,
            "program": max(0, resident) if on_cpu else 0 if train is None else train.images.nbytes,
        }

    own = memory(batch_size)
    held = own["program"] * on_cpu + (weights if has_weights else 0)
    available = available_bytes(net)
    largest = None
    if available is not None:
        total = sum(own.values())
        varying = sum(own[name] for name in VARYING)
        largest = _largest(
            lambda n: sum(memory(n)[name] for name in VARYING),
            batch_size,
            varying,
            room=available + held - (total - varying),
        )
        largest = min(largest, train.n_samples) if train is not None else largest
    images = train.n_samples if train is not None else None
    timing = None
    if measure and train is not None:
        timing = _measured(net, optimizer, train, validation, loss, epochs, engine, precision)
        gc.collect()  # the copy and its plans refer to each other
    forward = net.multiply_adds(shape(1))
    own = {name: size for name, size in own.items() if size}
    return Forecast(
        batch_size, sum(p.size for p in parameters), forward, own, available, held, largest, timing, images
    )


def _largest(varying: Callable[[int], int], batch_size: int, own: int, room: int) -> int:
    """Return a number of images for which there is room, near the largest.

    Above this batch, what varies is taken to grow in a straight line, through this batch and half of it.
    Where that leads is looked at again, unless it is far above: there many more buffers would have to be
    placed, which takes seconds, and memory grows less steeply than the line. Otherwise the number is found by
    halves.
    """
    fits, too_many = 0, batch_size
    if own <= room:
        other = batch_size // 2 or 2
        slope = (own - varying(other)) / (batch_size - other)
        n = int(batch_size + (room - own) / slope)
        if n > max(4 * batch_size, 512) or varying(n) <= room:
            return n
        fits, too_many = batch_size, n
    while too_many - fits > max(1, too_many // 50):
        n = (fits + too_many) // 2
        fits, too_many = (n, too_many) if varying(n) <= room else (fits, n)
    return fits


def _computing(net: Layer, shape: tuple[int, ...], engine: str | None, precision: str) -> tuple[int, int]:
    """Return the bytes of activations and of workspace for a batch of this shape."""
    if engine != "layers":
        return plans.memory(net, shape, training=True, precision=precision)
    return _of_layers(net, shape)


def _of_layers(net: Layer, shape: tuple[int, ...]) -> tuple[int, int]:
    """Estimate what the layers keep for the backward pass, and what they need on the way.

    Maps are numbered: map i goes into layer i. A convolution, a linear layer and a batch normalisation keep
    their input, a ReLU its output; pooling and dropout a byte per number. What else there is lives for a
    moment: a layer's output, a chunk of a convolution's patches, and in the backward pass the gradients on
    both of its sides.
    """
    item = net.dtype.itemsize
    maps, kept, extra = [prod(shape) * item], set(), 0
    peaks = []
    chain = [layer for _, layer in leaves(net)]
    for i, layer in enumerate(chain):
        shape = layer.output_shape(shape)
        maps.append(prod(shape) * item)
        if isinstance(layer, (Conv2d, Linear, BatchNorm2d)):
            kept.add(i)
        elif isinstance(layer, ReLU):
            kept.add(i + 1)
        elif isinstance(layer, (MaxPool2d, Dropout)):
            extra += prod(shape)
        so_far = extra + sum(maps[k] for k in kept)
        columns = COLUMNS_ON_CPU if isinstance(layer, Conv2d) else 0  # of patches, at most
        peaks.append(so_far + 2 * maps[i] + 2 * maps[i + 1] + columns)
    activations = extra + sum(maps[k] for k in kept)
    return activations, max(0, max(peaks) - activations)


def _measured(
    net: Layer,
    optimizer: SGD | None,
    train: Loader,
    validation: Loader | None,
    loss: SoftmaxCrossEntropy | None,
    epochs: int,
    engine: str | None,
    precision: str,
) -> Timing:
    """Time steps of the trainer's own loop on a copy of the network."""
    twin = copy.deepcopy(net)
    settings: dict[str, Any] = {"momentum": 0.9}
    if optimizer is not None:
        settings = {name: getattr(optimizer, name) for name in ("momentum", "nesterov", "weight_decay")}
    steps = SGD(twin.parameters(), 0.0, **settings)
    part = copy.copy(train)  # some of its images, prepared as they will be
    part.indices = train.indices[: train.batch_size]
    computes = make_engine(twin, engine, precision)
    loop = Trainer(twin, steps, lambda step: 0.0, part, part, None, loss, computes, observers=())
    step = _median(lambda: loop.train_epoch(0), part, train)
    validation_step = 0.0
    if validation is not None and len(validation):
        part = copy.copy(validation)
        part.indices = validation.indices[: validation.batch_size]
        validation_step = _median(lambda: evaluate(twin, part, computes), part, validation)
    return Timing(step, len(train), validation_step, 0 if validation is None else len(validation), epochs)


def _median(run: Callable[[], Any], part: Loader, whole: Loader) -> float:
    """Return the seconds of a batch, the median of a few measurements after a warm-up.

    ``part`` is given so many batches of ``whole`` that a measurement takes about SECONDS.
    """
    run()  # compiles, and touches all memory for the first time
    first = _time(run)
    batches = max(1, min(len(whole) - 1, int(SECONDS / first)))
    part.indices = whole.indices[: batches * whole.batch_size]
    measured = [first / len(part)] if batches == 1 else []
    until = time.perf_counter() + 2 * MEASUREMENTS * SECONDS
    while len(measured) < MEASUREMENTS and (not measured or time.perf_counter() < until):
        measured.append(_time(run) / len(part))
    return statistics.median(measured)


def _time(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


# Numbers as text


def count(n: int) -> str:
    """Write a large number with a thousand, a million or a billion as its unit.

    Parameters
    ----------
    n : int

    Examples
    --------
    >>> count(313_478_154), count(15_470_264_320), count(950)
    ('313.5 M', '15.5 G', '950')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return str(n)


def megabytes(size: float) -> str:
    """Write a number of bytes in megabytes, as whole numbers where they are large.

    Parameters
    ----------
    size : float

    Examples
    --------
    >>> megabytes(1_234_567_890), megabytes(3_107_560)
    ('1,235 MB', '3.1 MB')
    """
    return f"{size / MB:,.0f} MB" if size >= 10 * MB else f"{size / MB:.1f} MB"


def seconds(value: float) -> str:
    """Write a short time.

    Parameters
    ----------
    value : float

    Examples
    --------
    >>> seconds(0.0123), seconds(1.5)
    ('12.3 ms', '1.50 s')
    """
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"
