"""The plan of a GPU: a kernel for each group, and all launches recorded as CUDA graphs."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any, cast

import numpy as np

from scratchnet import layers
from scratchnet.backend import Array, BackendError
from scratchnet.cuda_errors import explained, is_blocking
from scratchnet.plans.cuda import capability, conv, linear, misc_kernels, norm
from scratchnet.plans.cuda.graphs import Replayed
from scratchnet.plans.cuda.kernel import Kernel, PlanContext
from scratchnet.plans.cuda.launch.compiling import address
from scratchnet.plans.cuda.launch.operands import operand_dtype
from scratchnet.plans.cuda.matmul import Matmul
from scratchnet.plans.cuda.weights import low_precision_weights
from scratchnet.plans.grouping import group
from scratchnet.plans.kernel import Group, Map
from scratchnet.plans.plan import Plan
from scratchnet.plans.registry import kernel_for, kernels_for, register

for _layer, _kernel in {
    layers.Conv2d: conv.Convolution,
    layers.BatchNorm1d: norm.Norm,
    layers.BatchNorm2d: norm.Norm,
    layers.Linear: linear.Linear,
    layers.ReLU: misc_kernels.ReLU,
    layers.MaxPool2d: misc_kernels.MaxPool,
    layers.GlobalAvgPool2d: misc_kernels.Average,
    layers.Flatten: misc_kernels.View,
    layers.Dropout: misc_kernels.Dropout,
}.items():
    register(_layer, cuda=_kernel)


class CudaPlan(Plan):
    """A network compiled for a GPU."""

    device = "cuda"
    precisions = ("fp32", "tf32", "bf16")
    graphs = True  # False: all launches are made one by one, as they are before they are recorded

    # What it consists of

    def _group(self) -> list[Group]:
        # The kernels compute in float32: in any other dtype each layer runs by its own passes.
        device = self.device if self.dtype == np.float32 else ""
        return group(self.net, self.input_shape, device, self.common)

    def _compile(self) -> None:
        xp = self.net.backend.xp
        capability.require(xp, self.precision)
        self.gpu = xp.cuda.runtime.getDevice()
        operand = operand_dtype(self.precision)
        self.weights = None
        if self._buffer is not None and self.dtype == np.float32:
            self.weights = low_precision_weights(self._buffer, operand)
        shared = xp, Matmul(xp, self.precision), operand, self.weights
        context = PlanContext(self.training, self.dtype, self.algorithm, *shared)
        self.kernels, self.maps = [], [Map(self.input_shape, self.dtype)]
        for i, g in enumerate(self.groups):
            before, kernel = self.maps[-1], kernel_for(self.groups, i, context) or misc_kernels.Fallback
            self.maps.append(Map(g.output_shape, self.dtype, before if kernel.is_view else None))
            self.kernels.append(kernel.build(g, before, self.maps[-1], context, first=i <= self.lowest))
        for i, kernel in enumerate(self.kernels[1:]):
            kernel.follow(self.kernels[i])
        self.dropping: list[Kernel] = [kernel for kernel in self.kernels if kernel.dropout is not None]

    def bind(self) -> None:
        """Take (or move to) the network's block of memory; say how many images fit if it is too large."""
        try:
            super().bind()
        except MemoryError as error:
            raise BackendError(self._too_large()) from error

    def _prepare(self) -> None:
        xp = self.net.backend.xp
        for kernel in self.kernels:
            kernel.prepare()
        self.count_dropouts(xp.zeros(max(1, len(self.dropping)), np.int64))
        graphs = self.graphs and self.replayable
        self._forward = Replayed(xp, self.launch_forward, self.constants, graphs)
        self._backward = {
            need: Replayed(xp, partial(self.launch_backward, need), self.constants, graphs)
            for need in (False, True)
        }

    @property
    def replayable(self) -> bool:
        """Whether all that it does can be recorded as a graph (which names no layer where a kernel fails)."""
        return all(kernel.replayable for kernel in self.kernels) and not is_blocking()

    def describe_device(self) -> str:  # noqa: D102
        return f"{self.precision}, {self.dtype}"

    # Running. The first three are also what a whole training step consists of, see ``training_step.py``.

    def derive(self) -> None:
        """Bring what products read of the parameters up to date, unless it is."""
        if self.weights is not None and self._buffer is not None:
            self.weights.derive(self._buffer)

    def launch_forward(self) -> None:
        """Launch everything between the first map and the last."""
        for i, kernel in enumerate(self.kernels):
            with explained(self._where(i, "forward")):
                kernel.forward()
        if self.weights is not None and self._buffer is not None:
            self.weights.state = self._buffer.state  # what was launched has only read parameters

    def launch_backward(self, need_input_gradient: bool = False) -> None:
        """Launch everything between the last map's gradient and the lowest layer that is trained.

        With ``need_input_gradient`` everything down to the first map's gradient.
        """
        for i in reversed(range(0 if need_input_gradient else self.lowest, len(self.kernels))):
            with explained(self._where(i, "backward")):
                self.kernels[i].backward(need_input_gradient or i > self.lowest)
            self._gradients_final(i)

    def _where(self, i: int, direction: str) -> str:
        return f"{self.groups[i].name} ({self.groups[i].title}), {direction}"

    def count_dropouts(self, counters: Array) -> None:
        """Let dropouts read from these counters, int64 (as many,), which numbers they drop.

        They need a fresh number for each forward pass.
        """
        self.counters = counters
        for d, kernel in enumerate(self.dropping):
            kernel.counter = counters[d : d + 1]

    def ready(self) -> None:
        """Check that this plan is current, and take over the workspace, as ``forward`` does by itself."""
        self._check_current()
        if self.workspace.block is not self._block:
            self.bind()
        self.workspace.take()
        self._last_forward = 0
        self.derive()

    def _check_current(self) -> None:
        super()._check_current()
        current = self.net.backend.xp.cuda.runtime.getDevice()
        if current != self.gpu:
            raise RuntimeError(
                f"this plan was compiled on GPU {self.gpu}, and GPU {current} is current: use it within "
                f"cupy.cuda.Device({self.gpu}), or compile another one"
            )

    def constants(self) -> tuple[Any, ...]:
        """Return what a recorded graph contains and would have to be recorded again for, if it changes."""
        grad = None if self._buffer is None or self._buffer.grad is None else address(self._buffer.grad)
        block = address(self.workspace.block)
        return grad, block, address(self.counters), *(kernel.constants() for kernel in self.kernels)

    def _run_forward(self, x: Array, derive: bool) -> Array:
        self.maps[0].put(x)
        self.derive()
        if self.dropping:
            draws = [kernel.dropout.rng.integers(2**62) for kernel in self.dropping if kernel.dropout]
            counters: Any = self.counters  # CuPy has no types
            counters.set(np.array(draws, np.int64))
        with explained():
            self._forward()
            return self.maps[-1].take()

    def _run_backward(self, dy: Array, need_input_gradient: bool) -> Array | None:
        last = self.maps[-1]
        last.grad[...] = self.net.backend.asarray(dy, dtype=self.dtype).reshape(last.shape)
        with explained():
            if self._buffer is not None and self._buffer.observer is not None:
                self.launch_backward(need_input_gradient)  # one by one: a graph would tell nobody in between
            else:
                self._backward[need_input_gradient]()
            return self.maps[0].take_gradient() if need_input_gradient else None

    def refresh(self) -> None:  # noqa: D102  (see Plan)
        super().refresh()
        if self.weights is not None:
            self.weights.state = None

    # Telling

    def measure(self, repeats: int = 10) -> None:
        """Time each group, launched by itself, for ``describe``.

        The maps hold what the last forward and backward pass left. Launched one by one, small groups look
        slower than they are in a graph.
        """
        cuda = self.net.backend.xp.cuda
        self.clock.reset()
        if self._buffer is not None and self.training:
            self._buffer.allocate_grad()
        for direction in ("forward", "backward") if self.training else ("forward",):
            for i, kernel in enumerate(self.kernels):
                if not kernel.replayable:
                    continue
                launch = kernel.forward if direction == "forward" else partial(kernel.backward, i > 0)
                launch()  # compiled, loaded
                start, end = cuda.Event(), cuda.Event()
                start.record()
                for _ in range(repeats):
                    launch()
                end.record()
                end.synchronize()
                self.clock.seconds[i, direction, ""] = cuda.get_elapsed_time(start, end) / 1e3
            self.clock.runs[direction] = repeats

    def warn_of_fallback(self, stacklevel: int) -> None:  # noqa: D102  (see Plan)
        if self.dtype == np.float32:
            super().warn_of_fallback(stacklevel + 1)
            return
        message = f"kernels on a GPU compute in float32: this network of {self.dtype} runs layer by layer"
        warnings.warn(message, UserWarning, stacklevel=stacklevel + 1)

    # Errors

    def _too_large(self) -> str:
        """Say how many images would fit."""
        xp = self.net.backend.xp
        xp.get_default_memory_pool().free_all_blocks()
        free, _ = xp.cuda.runtime.memGetInfo()
        images, fits = self.input_shape[0], 0
        for k in reversed(range(images.bit_length())):  # the bits of their number, the highest first
            more = fits + (1 << k)
            if more < images and self._bytes_for(more) <= 0.95 * free:  # pools do not fill up wholly
                fits = more
        none = "not even one image would fit: take a smaller one"
        hint = f"{fits} images per batch would fit" if fits else none
        return (
            f"the GPU has not enough memory for {images} images per batch: {self.arena.size / 2**30:.1f} GiB "
            f"are needed, {free / 2**30:.1f} are free: {hint}"
        )

    def _bytes_for(self, images: int) -> int:
        """Return how much memory this plan would take for another number of images."""
        other = copy.copy(self)
        other.input_shape = (images, *self.input_shape[1:])
        other.groups = other._group()
        other._compile()
        other._reserve_memory()
        return other.arena.size


def dropping_layers(net: layers.Layer) -> list[layers.Dropout]:
    """Return the dropouts for which kernels drop numbers, in the order of ``CudaPlan.dropping``."""
    return [
        cast(layers.Dropout, layer)
        for _, layer in layers.leaves(net)
        if misc_kernels.Dropout in kernels_for(layer, "cuda") and not misc_kernels.Dropout.does_nothing(layer)
    ]
