"""Layers with little arithmetic, and layers that a plan does not know."""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchnet.plans.cpu.calls import Phase, split_evenly
from scratchnet.plans.cpu.kernel import Kernel
from scratchnet.plans.memory import Arena


class View(Kernel):
    """Flatten, and a dropout that drops nothing: the same numbers under another shape, so nothing to do."""

    algorithm = "view"
    is_view = True

    def record_forward(self) -> list[Phase]:  # noqa: D102
        return []

    def record_backward(self) -> list[Phase]:  # noqa: D102
        return []


class Average(Kernel):
    """Global average pooling: y = sum of x / (H*W), and dx = dy / (H*W) for every pixel."""

    algorithm = "mean"

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        shape = (self.input.N, self.input.H, self.input.C)
        self.rows = arena.reserve("sums of rows", shape, self.context.dtype, forward, forward)
        if backward is not None:
            self.mask = self.mask_scratch(arena, backward)

    def record_forward(self) -> list[Phase]:  # noqa: D102
        phase = self.phase("mean")
        pixels = self.context.dtype.type(self.input.H * self.input.W)
        for do, images in zip(phase.workers, split_evenly(self.input.N, self.context.workers), strict=True):
            n = slice(images.start, images.stop)
            if images:
                y = self.output.rows[n]
                do(np.add.reduce, self.input.data[n], 2, None, out=self.rows.array[n])  # (n, H, C)
                do(np.add.reduce, self.rows.array[n], 1, None, out=y)  # (n, C)
                do(np.divide, y, pixels, out=y)
        return [phase]

    def record_backward(self) -> list[Phase]:  # noqa: D102
        phase = self.phase("dx", for_input_gradient=self.first)
        pixels = self.context.dtype.type(self.input.H * self.input.W)
        for worker, images in enumerate(split_evenly(self.input.N, self.context.workers)):
            do, n = phase.workers[worker], slice(images.start, images.stop)
            if images:
                dx, dy = self.input.grad[n], self.output.grad_rows[n]
                do(np.divide, dy[:, None, None], pixels, out=dx)
                self.input.mask_gradient(do, dx, self.input.data[n], self.mask[worker].array)
        return [phase]


class Fallback(Kernel):
    """A layer that is not known here: its own forward and backward, on the calling thread."""

    algorithm = "fallback"

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        if backward is not None:
            self.mask = self.mask_scratch(arena, backward)

    def record_forward(self) -> list[Phase]:  # noqa: D102
        phase = self.phase("layer.forward")
        phase.workers[0].call(self._forward)
        return [phase]

    def record_backward(self) -> list[Phase]:  # noqa: D102
        phases = [self.phase("layer.backward")]
        phases[0].workers[0].call(self._backward)
        mask = self.phase("mask")
        self.input.mask_gradient(mask.workers[0], self.input.grad, self.input.data, self.mask[0].array)
        return [*phases, mask]

    def _forward(self) -> None:
        layer, group = self.group.main, self.group
        # The layer gets an array of its own, and may keep it: this memory is soon used for something else.
        y = layer.forward(self.input.data.reshape(group.input_shape).copy())
        if tuple(y.shape) != group.output_shape:
            raise ValueError(
                f"{layer.label}: forward returned {tuple(y.shape)}, output_shape() promised "
                f"{group.output_shape}: define output_shape in {type(layer).__name__}"
            )
        self.output.put(y)

    def _backward(self) -> None:
        dx: Any = self.group.main.backward(self.output.take_gradient())
        self.input.grad[...] = dx.reshape(self.input.grad.shape)
