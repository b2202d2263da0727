"""Kernels with little arithmetic, and layers without a kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchnet.backend import Array
from scratchnet.layers import Layer
from scratchnet.plans import kernel
from scratchnet.plans.cpu.by_images import ByImages, Images
from scratchnet.plans.cpu.calls import Calls, Phase
from scratchnet.plans.cpu.kernel import Kernel
from scratchnet.plans.kernel import Group, PlanContext
from scratchnet.plans.memory import Arena


class View(kernel.View, Kernel):
    """Flatten: the same numbers under another shape, so nothing to do."""

    def record_forward(self) -> list[Phase]:  # noqa: D102
        return []

    def record_backward(self) -> list[Phase]:  # noqa: D102
        return []


class Identity(View):
    """A dropout that drops nothing: it only stands where a network has no other layer."""

    algorithm = "identity"

    @classmethod
    def does_nothing(cls, layer: Any) -> bool:  # noqa: D102
        return layer.p == 0.0 or not layer.training

    @classmethod
    def supports(cls, groups: list[Group], i: int, context: PlanContext) -> bool:  # noqa: D102
        return cls.does_nothing(groups[i].main)


class Dropout(ByImages):
    """Dropout on its own: y = x * kept / (1 - p), and dx = dy * kept / (1 - p)."""

    algorithm = "dropout"
    role = "dropout"

    @classmethod
    def may_follow(cls, group: Group, layer: Layer) -> bool:
        """Tell whether the output of the group can tell what was kept: it is zero where it was not."""
        return group.activation_kernel is not None and group.activation_kernel.zero_derivative_at_zero

    @classmethod
    def supports(cls, groups: list[Group], i: int, context: PlanContext) -> bool:  # noqa: D102
        return not Identity.does_nothing(groups[i].main)

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        super().reserve(arena, forward, backward)
        last_use = forward if backward is None else backward
        self.kept = arena.reserve("kept", self.input.memory_shape(), np.bool_, forward, last_use)

    def record_forward(self) -> list[Phase]:  # noqa: D102
        draw = self.phase("draw")
        draw.workers[0].call(self._draw)
        return [draw, *super().record_forward()]

    def record_images(self, calls: Calls, images: Images) -> None:  # noqa: D102
        self._record(calls, images.x, images.n, out=images.y)

    def record_images_backward(self, calls: Calls, images: Images) -> None:  # noqa: D102
        self._record(calls, images.dy, images.n, out=images.dx)

    def _record(self, calls: Calls, x: Array, n: slice, out: Array) -> None:
        """Record out = x * kept / (1 - p)."""
        calls(np.multiply, x, self.kept.array[n], out=out)
        calls(np.multiply, out, out.dtype.type(dropout_scale(self.group.main)), out=out)

    def _draw(self) -> None:
        layer: Any = self.group.main
        self.kept.array[...] = layer.draw(self.group.input_shape).reshape(self.kept.array.shape)


def dropout_scale(layer: Any) -> float:
    """Return what a dropout multiplies by what it keeps."""
    return 1.0 / (1.0 - layer.p) if layer.p < 1.0 else 0.0


class Average(Kernel):
    """Global average pooling: y = sum of x / (H*W), and dx = dy / (H*W) for every pixel."""

    algorithm = "mean"

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        shape = (self.input.N, self.input.H, self.input.C)
        self.rows = arena.reserve("sums of rows", shape, self.context.dtype, forward, forward)
        self.reserve_mask(arena, backward)

    def record_forward(self) -> list[Phase]:  # noqa: D102
        phase = self.phase("mean")
        pixels = self.context.dtype.type(self.input.H * self.input.W)
        for worker, n in self.shares(self.input.N):
            do, y = phase.workers[worker], self.output.rows[n]
            do(np.add.reduce, self.input.data[n], 2, None, out=self.rows.array[n])  # (n, H, C)
            do(np.add.reduce, self.rows.array[n], 1, None, out=y)  # (n, C)
            do(np.divide, y, pixels, out=y)
        return [phase]

    def record_backward(self) -> list[Phase]:  # noqa: D102
        phase = self.phase("dx", for_input_gradient=self.first)
        pixels = self.context.dtype.type(self.input.H * self.input.W)
        for worker, n in self.shares(self.input.N):
            do, dx, dy = phase.workers[worker], self.input.grad[n], self.output.grad_rows[n]
            do(np.divide, dy[:, None, None], pixels, out=dx)
            self.mask_gradient(do, worker, dx, self.input.data[n])
        return [phase]


class Fallback(kernel.Fallback, Kernel):
    """A layer without a kernel: its own forward and backward, on the calling thread."""

    def record_forward(self) -> list[Phase]:  # noqa: D102
        phase = self.phase("layer.forward")
        phase.workers[0].call(self.run_forward)
        return [phase]

    def record_backward(self) -> list[Phase]:  # noqa: D102
        phase = self.phase("layer.backward")
        phase.workers[0].call(self.run_backward)
        return [phase]
