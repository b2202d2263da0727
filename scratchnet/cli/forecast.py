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
from scratchnet.data import Loader
from scratchnet.functional.conv import COLUMNS_ON_CPU
from scratchnet.layers import BatchNorm2d, Conv2d, Dropout, Layer, Linear, MaxPool2d, ReLU, leaves
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import SGD, Optimizer
from scratchnet.system import available_bytes, resident_bytes
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

    >>> Timing(0.5, steps=100, validation_step=0.2, validation_steps=10).epoch
    52.0
    """

    step: float  # seconds of a batch
    steps: int  # in an epoch
    validation_step: float
    validation_steps: int
    epochs: int = 1

    @property
    def epoch(self) -> float:
        """Seconds of an epoch, validation included."""
        return self.step * self.steps + self.validation_step * self.validation_steps


@dataclass(frozen=True)
class Forecast:
    """What ``forecast`` returns; ``print`` it."""

    batch_size: int
    parameters: int  # how many
    multiply_adds: int  # of the forward pass of one image; a training step takes three times as many for each
    memory: dict[str, int]  # bytes by category; where it trains on a GPU, of its memory
    available: int | None  # bytes that may be taken besides those held; None where the system does not say
    held: int  # bytes of memory that are held already
    largest_batch: int | None  # at least so many images per step would fit
    timing: Timing | None = None  # if steps were measured
    images: int | None = None  # how many there are to train on, if that is known: no batch is larger

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
            ("  total", megabytes(self.total), ""),
        ]
        if self.available is not None:
            fit = f"batches of {self.largest_batch:,} would fit" if self.largest_batch else "no batch fits"
            if self.largest_batch and self.largest_batch == self.images:
                fit = f"a batch of all {self.images:,} images would fit"
            rows.append(("  available", megabytes(self.available + self.held), fit))
        if self.timing is not None:
            t = self.timing
            speed = f"{self.batch_size / t.step:,.0f} images per second"
            steps = f"{t.steps:,} steps, and {t.validation_steps:,} to validate"
            rows += [
                ("time", "", ""),
                ("  per step", f"{t.step:.2f} s" if t.step >= 1 else f"{t.step * 1e3:.1f} ms", speed),
                ("  per epoch", duration(t.epoch), steps),
            ]
            if t.epochs > 1:
                rows.append((f"  {t.epochs} epochs", duration(t.epochs * t.epoch), ""))
        lines = aligned([row[:2] for row in rows], gap="  ")
        return "\n".join(f"{line}  {note}".rstrip() for line, (_, _, note) in zip(lines, rows, strict=True))


NOTES = {
    "activations": "what the backward pass will need",
    "workspace": "gradients of activations and scratch, which take turns",
    "batches": "images that are being prepared",
    "validation": "transformed weights of the validation plan",
    "saving": "a copy of the weights, while they are written",
    "program": "Python, libraries, and the data set",
}


def forecast(
    net: Layer,
    batch_size: int,
    image_size: int | None = None,
    *,
    optimizer: Optimizer | None = None,
    train: Loader | None = None,
    validation: Loader | None = None,
    loss: SoftmaxCrossEntropy | None = None,
    epochs: int = 1,
    engine: str | None = None,
    precision: str = "fp32",
    saves: bool = False,
    measure: bool = False,
) -> Forecast:
    """Return what training a network will cost; the network is not changed.

    It is on the backend on which it is to train, in training mode. Without ``image_size`` images are those
    that a VGG was built for, without an optimizer it is one with momentum. For ``engine="layers"`` memory is
    an estimate from the shapes of what they keep. ``saves``: weights are saved after an epoch, which takes a
    copy of them. ``measure``: time a few steps with ``train`` and ``validation``, some seconds in all.

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
    images = None if train is None else train.n_samples
    if images is not None:
        batch_size = max(1, min(batch_size, images))  # there may be fewer images than a batch has
    channels = net.settings().get("in_channels", 3) if train is None else train.images.shape[3]
    parameters = list(net.parameters().values())
    on_cpu = net.backend.name == "numpy"
    weights = sum(p.size * p.dtype.itemsize for p in parameters)
    learned = sum(p.size * p.dtype.itemsize for p in parameters if p.trainable)
    own_weights = weights if parameters and parameters[0].buffer.data is not None else 0
    resident = max(0, resident_bytes() - own_weights) if on_cpu else 0

    def varying(n: int) -> dict[str, int]:
        shape = (n, size, size, channels)
        if engine == "layers":
            activations, workspace = _of_layers(net, shape)
        else:
            activations, workspace = plans.memory(net, shape, training=True, precision=precision)
        batches = BATCHES * prod(shape) * net.dtype.itemsize
        return {"activations": activations, "workspace": workspace, "batches": batches}

    fixed = {
        "validation": plans.weight_memory_budget(weights) if on_cpu and engine != "layers" else 0,
        "saving": weights if saves and on_cpu else 0,
        "program": resident if on_cpu or train is None else train.images.nbytes,
    }
    kept = 1 if optimizer is None else len(optimizer.keeps)  # numbers for each that is learned
    flat = {"parameters": weights, "gradients": learned if on_cpu else weights, "momentum": kept * learned}
    with_batch = varying(batch_size)
    memory = {name: n for name, n in (flat | with_batch | fixed).items() if n}
    held = resident + own_weights
    available, largest = available_bytes(net.backend), None
    if available is not None:
        own = sum(with_batch.values())
        room = available + held - (sum(memory.values()) - own)
        largest = _largest(lambda n: sum(varying(n).values()), batch_size, own, room)
        largest = largest if images is None else min(largest, images)
    timing = None
    if measure and train is not None:
        timing = _measured(net, optimizer, train, validation, loss, epochs, engine, precision)
        gc.collect()  # the copy and its plans refer to each other
    count_of = sum(p.size for p in parameters)
    forward = net.multiply_adds((1, size, size, channels))
    return Forecast(batch_size, count_of, forward, memory, available, held, largest, timing, images)


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
    optimizer: Optimizer | None,
    train: Loader,
    validation: Loader | None,
    loss: SoftmaxCrossEntropy | None,
    epochs: int,
    engine: str | None,
    precision: str,
) -> Timing:
    """Time steps of the trainer's own loop on a copy of the network."""
    twin = copy.deepcopy(net)
    parameters = twin.parameters()
    steps = SGD(parameters, 0.0, momentum=0.9) if optimizer is None else optimizer.like(parameters)
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

    def time_of_run() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    run()  # compiles, and touches all memory for the first time
    first = time_of_run()
    batches = max(1, min(len(whole) - 1, int(SECONDS / first)))
    part.indices = whole.indices[: batches * whole.batch_size]
    measured = [first / len(part)] if batches == 1 else []
    until = time.perf_counter() + 2 * MEASUREMENTS * SECONDS
    while len(measured) < MEASUREMENTS and (not measured or time.perf_counter() < until):
        measured.append(time_of_run() / len(part))
    return statistics.median(measured)


def count(n: int) -> str:
    """Write a large number with a thousand, a million or a billion as its unit.

    >>> count(313_478_154), count(15_470_264_320), count(950)
    ('313.5 M', '15.5 G', '950')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return str(n)


def megabytes(size: float) -> str:
    """Write a number of bytes in megabytes, as whole numbers where they are large.

    >>> megabytes(1_234_567_890), megabytes(3_107_560)
    ('1,235 MB', '3.1 MB')
    """
    return f"{size / MB:,.0f} MB" if size >= 10 * MB else f"{size / MB:.1f} MB"
