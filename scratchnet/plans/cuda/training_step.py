"""A whole training step as one CUDA graph: images, forward, loss, backward, SGD.

What differs from step to step lies in device memory. At the start of an epoch the host uploads it all at
once, and from then on only launches the graph again::

    rates       float32 (steps,)         the learning rate of each step
    choices     int32 (images, 6)        which images, in which order, and how each is changed
    counters    int64 (1 + dropouts,)    the step within the epoch; then for each dropout a number from which
                                         follows what it drops

    the graph:  images -> x, labels    forward    loss, its gradient    backward    SGD    counters += 1
                                                          |
                                            totals += losses, correct, images         read once in a while

The host reads ``totals`` when it reports how training goes, and waits for the GPU only then. The last,
shorter batch of an epoch is one more graph, of a plan of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike

from scratchnet.backend import Array
from scratchnet.cuda_errors import explained
from scratchnet.layers import Layer, assemble
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import SGD
from scratchnet.plans.compile import compile
from scratchnet.plans.cuda.graphs import Replayed
from scratchnet.plans.cuda.launch.compiling import address
from scratchnet.plans.cuda.launch.images import advance, prepare_images
from scratchnet.plans.cuda.launch.operands import operand_dtype
from scratchnet.plans.cuda.launch.sgd import sgd
from scratchnet.plans.cuda.launch.softmax import add_up, softmax_cross_entropy
from scratchnet.plans.cuda.plan import CudaPlan, dropping_layers
from scratchnet.plans.cuda.weights import low_precision_weights


class EpochTotals(NamedTuple):
    """Running totals since ``TrainingSteps.begin``."""

    loss: float  # the sum of all images' losses
    correct: int  # how many images' largest logit was that of their label
    images: int


@dataclass(frozen=True)
class DeviceImages:
    """A data set in device memory, and how its images are prepared there, as ``prepare_images`` takes it."""

    images: Array  # uint8 (M, H, W, 3)
    labels: Array  # int64 (M,)
    crop: int
    cutout: int
    fill: tuple[int, ...]
    scale: tuple[float, ...]
    shift: tuple[float, ...]
    taps: Array | None = None  # of ``resizing_taps``: images are resized

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (H, W, 3) of an image as the network sees it."""
        size = self.images.shape[1:3] if self.taps is None else 2 * self.taps.shape[:1]
        return *size, self.images.shape[3]


class TrainingSteps:
    """Training steps of a network on a GPU, in float32, in training mode while steps are made.

    The optimizer is of this network's parameters, all of them; its learning rate is not used, since ``begin``
    takes those of all steps. ``batch_size`` is that of every batch of an epoch but the last, and ``data``
    where batches come from: without, each step is given its images. Without ``graphs`` everything is launched
    one by one in each step, for comparison. ValueError if network and optimizer do not fit.
    """

    def __init__(
        self, net: Layer, optimizer: SGD, loss: SoftmaxCrossEntropy, batch_size: int,
        precision: str = "fp32", data: DeviceImages | None = None, graphs: bool = True,
    ):  # fmt: skip
        parameters = list(assemble(net).parameters().values())
        if net.backend.name != "cupy" or not parameters or parameters[0].dtype != np.float32:
            raise ValueError("training steps on a GPU need a network of parameters in float32, on cupy")
        if type(optimizer) is not SGD:
            raise ValueError(f"training steps on a GPU are those of SGD, not of {type(optimizer).__name__}")
        if {id(p) for p in optimizer.parameters.values()} != {id(p) for p in parameters}:
            raise ValueError("the optimizer has to be made of this network's parameters, all of them")
        self.net, self.optimizer, self.loss, self.precision = net, optimizer, loss, precision
        self.batch_size, self.data, self.graphs = batch_size, data, graphs
        self.xp = net.backend.xp
        self.buffer = parameters[0].buffer
        self.totals_on_device: Array = self.xp.zeros(3, np.float64)
        self.scales: list[float] = []
        self.rates: Array = self.xp.empty((0, 0), np.float32)
        self.choices: Array = self.xp.empty((0, 6), np.int32)
        self.counters: Array = self.xp.empty(0, np.int64)
        self._of_size: dict[int, _Step] = {}
        self._trained: list[str] = []  # when they were made

    def begin(
        self, rates: ArrayLike, choices: ArrayLike | None = None, first: int = 0,
        totals: tuple[float, int, int] = (0.0, 0, 0),
    ) -> None:  # fmt: skip
        """Begin an epoch: with the learning rate of each step, and for ``data`` with ``Loader.choices``.

        If ``first`` steps of it are done already, ``totals`` are those of them.
        """
        self.scales = sorted({self.optimizer.lr_scale(name) for name in self.optimizer.parameters})
        rows = np.outer(self.scales, np.asarray(rates, np.float32)).astype(np.float32)
        self.rates = self._upload(self.rates, rows)  # (scales, steps)
        if choices is not None:
            self.choices = self._upload(self.choices, np.asarray(choices, np.int32))
        # Each dropout begins with a random number and counts on from there. The number comes from its
        # generator, which a checkpoint saves.
        dropouts = [layer.rng.integers(2**62) for layer in dropping_layers(self.net)]
        self.counters = self._upload(self.counters, np.array([0, *dropouts], np.int64) + first)
        if any(totals):
            self.totals_on_device = self._upload(self.totals_on_device, np.array(totals, np.float64))
        else:
            self.totals_on_device.fill(0)

    def step(self, count: int, x: Array | None = None, labels: Array | None = None) -> None:
        """Make a step with the next ``count`` images, and do not wait for it.

        Unless there is ``data``, these are x (count, H, W, 3), and ``labels`` (count,), classes that the
        network has: it is not checked.
        """
        if x is None and self.data is None:
            raise ValueError("a step needs images and labels, unless TrainingSteps was given data")
        image = x.shape[1:] if x is not None else cast(DeviceImages, self.data).shape
        self._prepare_optimizer()
        if (trained := list(self.optimizer.trainable())) != self._trained:  # frozen or unfrozen since
            self._of_size, self._trained = {}, trained
        if count not in self._of_size:
            self._of_size[count] = _Step(self, (count, *image))
        with explained():
            self._of_size[count](x, labels)

    def plan(self, count: int) -> CudaPlan:
        """Return the plan of steps with ``count`` images, of which there has been one."""
        return self._of_size[count].plan

    def totals(self) -> EpochTotals:
        """Return the totals since ``begin``. Waits for the GPU."""
        with explained():
            loss, correct, images = self.net.backend.to_numpy(self.totals_on_device)
        return EpochTotals(float(loss), int(correct), int(images))

    def _upload(self, there: Array, here: Array) -> Array:
        """Copy to where a graph expects it, if the size is still the same, and otherwise to a new array."""
        if there.shape != here.shape:
            return self.net.backend.asarray(here)
        on_device: Any = there  # CuPy has no types
        on_device.set(here)
        return there

    def _prepare_optimizer(self) -> None:
        if not self.optimizer.trainable():
            raise RuntimeError("all parameters are frozen: there is nothing to train")
        self.buffer.allocate_grad()
        for p in self.buffer.parameters:
            p.has_grad = p.trainable
        self.optimizer.lay_out(self.net.backend)


class _Step:
    """One graph: the step for batches of one size."""

    def __init__(self, steps: TrainingSteps, shape: tuple[int, ...]):
        self.steps, xp = steps, steps.xp
        self.plan = cast(CudaPlan, compile(steps.net, shape, training=True, precision=steps.precision))
        self.weights = low_precision_weights(steps.buffer, operand_dtype(steps.precision))  # the plan's, too
        self.labels: Array = xp.empty(shape[0], np.int64)
        self.losses: Array = xp.empty(shape[0], np.float32)
        self.correct: Array = xp.empty(shape[0], np.float32)
        graphs = steps.graphs and self.plan.replayable
        self.run = Replayed(xp, self.launch, self.constants, graphs)

    def __call__(self, x: Array | None, labels: Array | None) -> None:
        steps, plan = self.steps, self.plan
        plan.ready()
        plan.count_dropouts(steps.counters[1:])
        if x is not None and labels is not None:
            plan.maps[0].data[...] = steps.net.backend.asarray(x)
            self.labels[...] = steps.net.backend.asarray(labels)
        self.run()
        steps.buffer.version += 1
        self.weights.state = steps.buffer.state  # SGD has written both

    def launch(self) -> None:
        steps, plan, data = self.steps, self.plan, self.steps.data
        logits, counter = plan.maps[-1], steps.counters[:1]
        if data is not None:
            prepare_images(
                **vars(data), choices=steps.choices, batch=counter, batch_size=steps.batch_size,
                x=plan.maps[0].data, y=self.labels,
            )  # fmt: skip
        plan.launch_forward()
        smoothing = steps.loss.label_smoothing
        rows = self.losses, self.correct
        softmax_cross_entropy(logits.data, self.labels, *rows, logits.grad, label_smoothing=smoothing)
        add_up(*rows, steps.totals_on_device)
        plan.launch_backward()
        self._launch_sgd()
        advance(steps.counters)

    def _launch_sgd(self) -> None:
        """Launch the optimizer: once, unless some parameters do not decay, or learn at another rate."""
        steps, weights, optimizer = self.steps, self.weights, self.steps.optimizer
        velocity = optimizer.momentum_buffer if optimizer.momentum else None
        for span in optimizer.spans():
            rates, start, stop = steps.rates[steps.scales.index(span.lr_scale)], span.start, span.stop
            sgd(
                cast(Array, span.buffer.data)[start:stop], cast(Array, span.buffer.grad)[start:stop],
                None if velocity is None else span.of(velocity),
                rates, steps.counters[:1], momentum=optimizer.momentum, weight_decay=span.decay,
                nesterov=optimizer.nesterov, operands=weights.flat[start:stop] if weights.separate else None,
            )  # fmt: skip

    def constants(self) -> tuple[Any, ...]:
        steps, optimizer = self.steps, self.steps.optimizer
        arrays = steps.rates, steps.choices, steps.counters, optimizer.momentum_buffer
        addresses = (None if array is None else address(array) for array in arrays)
        settings = optimizer.momentum, optimizer.weight_decay, optimizer.nesterov, steps.loss.label_smoothing
        return *self.plan.constants(), *addresses, *settings, *steps.scales
