"""A whole training step as one CUDA graph: images, forward, loss, backward, SGD.

What differs from step to step lies in device memory. At the start of an epoch the host uploads it all at
once, and from then on only says "again"::

    rates       float32 (steps,)         the learning rate of each step
    choices     int32 (images, 6)      which images, in which order, and how each is changed
    counters    int64 (1 + dropouts,)    the step within the epoch; then what says which numbers each
                                         dropout drops

    the graph:  images -> x, labels    forward    loss, its gradient    backward    SGD    counters += 1
                                                          |
                                                       totals += losses, hits, images     read once in a while

The host reads ``totals`` when it wants to say how training goes, and waits for the GPU only then. The last,
shorter batch of an epoch is one more graph, of a plan of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from scratchnet.layers import Layer
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import SGD
from scratchnet.plans.cuda import modules
from scratchnet.plans.cuda.graphs import Replayed
from scratchnet.plans.cuda.plan import CudaPlan
from scratchnet.plans.plan import compile


class Totals(NamedTuple):
    """What has been added up since ``Steps.begin``."""

    loss: float  # the sum of all images' losses
    hits: int  # how many images' largest logit was that of their label
    images: int


@dataclass(frozen=True)
class Pictures:
    """A data set in device memory, and how images are prepared there.

    Attributes
    ----------
    images : uint8 (M, H, W, 3), on the device
    labels : int64 (M,), on the device
    how : dict
        ``crop``, ``cutout``, ``fill``, ``scale`` and ``shift``, as ``modules.images`` takes them.
    """

    images: Any
    labels: Any
    how: dict[str, Any]


class Steps:
    """Training steps of a network on a GPU.

    Parameters
    ----------
    net : Layer
        On CuPy, in float32, in training mode while steps are made.
    optimizer : SGD
        Of this network's parameters, all of them. Its learning rate is not used: ``begin`` takes those of all
        steps.
    loss : SoftmaxCrossEntropy
    batch_size : int
        Of every batch of an epoch but the last.
    precision : {"fp32", "tf32", "bf16"}
    images : Images, optional
        Where batches come from. Without, each step is given its images.
    graphs : bool
        False: launch everything anew in each step, for comparison.

    Raises
    ------
    ValueError
        If network and optimizer do not fit, or the network is not float32.
    """

    def __init__(
        self,
        net: Layer,
        optimizer: SGD,
        loss: SoftmaxCrossEntropy,
        batch_size: int,
        precision: str = "fp32",
        pictures: Pictures | None = None,
        graphs: bool = True,
    ):
        parameters = list(net.parameters().values())
        if net.backend.name != "cupy" or not parameters or parameters[0].dtype != np.float32:
            raise ValueError("training steps on a GPU need a network of parameters in float32, on cupy")
        ours = {id(p) for p in parameters}
        if {id(p) for p in optimizer.parameters.values()} != ours:
            raise ValueError("the optimizer has to be made of this network's parameters, all of them")
        self.net, self.optimizer, self.loss, self.precision = net, optimizer, loss, precision
        self.batch_size, self.pictures, self.graphs = batch_size, pictures, graphs
        self.xp = net.backend.xp
        self.buffer = parameters[0].buffer
        self.totals_there = self.xp.zeros(3, np.float64)
        self.rates = self.choices = self.counters = None
        self._of_size: dict[int, _Step] = {}

    def begin(self, rates: np.ndarray, choices: np.ndarray | None = None) -> None:
        """Begin an epoch.

        Parameters
        ----------
        rates : float32 (steps,)
            The learning rate of each step.
        choices : int32 (images of the epoch, 6), if there are ``images``
            As ``Loader.choices`` returns them.
        """
        self.rates = self._uploaded(self.rates, np.asarray(rates, np.float32))
        if choices is not None:
            self.choices = self._uploaded(self.choices, np.asarray(choices, np.int32))
        # Each dropout begins anywhere and counts on from there. The number comes from its generator, which
        # a checkpoint saves.
        dropouts = [rng.integers(2**62) for rng in self.net.generators().values()]
        self.counters = self._uploaded(self.counters, np.array([0, *dropouts], np.int64))
        self.totals_there.fill(0)

    def step(self, count: int, x: Any = None, labels: Any = None) -> None:
        """Make a step with the next ``count`` images, and do not wait for it.

        Parameters
        ----------
        count : int
        x : array (count, H, W, 3), unless there are ``images``
        labels : integer array (count,), unless there are ``images``
            Classes that the network has: it is not checked.
        """
        self._prepare_optimizer()
        if count not in self._of_size:
            shape = self.pictures.images.shape[1:] if x is None else x.shape[1:]
            self._of_size[count] = _Step(self, (count, *shape))
        self._of_size[count](x, labels)

    def plan(self, count: int) -> CudaPlan:
        """Return the plan of steps with so many images, of which there has been one."""
        return self._of_size[count].plan

    def totals(self) -> Totals:
        """Return what has been added up since ``begin``. Waits for the GPU."""
        loss, hits, images = self.net.backend.to_numpy(self.totals_there)
        return Totals(float(loss), int(hits), int(images))

    def _uploaded(self, there: Any, here: np.ndarray) -> Any:
        """Copy to where a graph expects it, if the size is still the same, and otherwise to a new place."""
        if there is None or there.shape != here.shape:
            return self.net.backend.asarray(here)
        there.set(here)
        return there

    def _prepare_optimizer(self) -> None:
        optimizer, buffer = self.optimizer, self.buffer
        buffer.allocate_grad()
        for p in buffer.parameters:
            p.has_grad = True
        if optimizer.momentum and optimizer.momentum_buffer is None:
            optimizer.momentum_buffer = self.xp.zeros(buffer.size, np.float32)


class _Step:
    """One graph: the step for batches of one size."""

    def __init__(self, steps: Steps, shape: tuple[int, ...]):
        self.steps, xp = steps, steps.xp
        self.plan: CudaPlan = compile(steps.net, shape, training=True, precision=steps.precision)
        self.labels = xp.empty(shape[0], np.int64)
        self.losses, self.hits = xp.empty(shape[0], np.float32), xp.empty(shape[0], np.float32)
        graphs = steps.graphs and all(kernel.replayable for kernel in self.plan.kernels)
        self.run = Replayed(xp, self.launch, self.constants, graphs)

    def __call__(self, x: Any, labels: Any) -> None:
        steps, plan = self.steps, self.plan
        plan.ready()
        plan.count_dropouts(steps.counters[1:])
        if x is not None:
            plan.maps[0].data[...] = steps.net.backend.asarray(x)
            self.labels[...] = steps.net.backend.asarray(labels)
        self.run()
        steps.buffer.version += 1
        plan.operands.version = steps.buffer.version  # SGD has written both

    def launch(self) -> None:
        steps, plan, pictures = self.steps, self.plan, self.steps.pictures
        logits, counter = plan.maps[-1], steps.counters[:1]
        if pictures is not None:
            batch = pictures.images, pictures.labels, steps.choices, counter, plan.maps[0].data, self.labels
            modules.pictures(*batch, batch_size=steps.batch_size, **pictures.how)
        plan.launch_forward()
        smoothing = steps.loss.label_smoothing
        rows = self.losses, self.hits
        modules.softmax_cross_entropy(logits.data, self.labels, *rows, logits.grad, label_smoothing=smoothing)
        modules.add_up(*rows, steps.totals_there)
        plan.launch_backward()
        self._launch_sgd()
        modules.advance(steps.counters)

    def _launch_sgd(self) -> None:
        """Launch the optimizer: once, unless some parameters do not decay."""
        steps, operands = self.steps, self.plan.operands
        optimizer = steps.optimizer
        for buffer, start, stop, momentum_start, decay in optimizer._runs():
            velocity = None
            if optimizer.momentum:
                velocity = optimizer.momentum_buffer[momentum_start : momentum_start + stop - start]
            modules.sgd(
                buffer.data[start:stop],
                buffer.grad[start:stop],
                velocity,
                steps.rates,
                steps.counters[:1],
                momentum=optimizer.momentum,
                weight_decay=decay,
                nesterov=optimizer.nesterov,
                operands=operands.flat[start:stop] if operands.separate else None,
            )

    def constants(self) -> tuple:
        steps, optimizer = self.steps, self.steps.optimizer
        arrays = steps.rates, steps.choices, steps.counters, optimizer.momentum_buffer
        return (
            *self.plan.constants(),
            *(None if array is None else array.data.ptr for array in arrays),
            optimizer.momentum,
            optimizer.weight_decay,
            optimizer.nesterov,
            steps.loss.label_smoothing,
        )
