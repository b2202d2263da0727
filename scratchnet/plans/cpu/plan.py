"""The plan of a CPU: an algorithm and a layout for each group, and the phases that all of it consists of."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from scratchnet import layers, workers
from scratchnet.plans.cpu import choosing, measuring, misc_kernels, padding
from scratchnet.plans.cpu.calls import CACHE_ELEMENTS, Calls, Phase, run
from scratchnet.plans.cpu.elementwise import ReLU
from scratchnet.plans.cpu.first_conv import FirstConv
from scratchnet.plans.cpu.im2col import Im2col
from scratchnet.plans.cpu.kernel import Kernel, PlanContext
from scratchnet.plans.cpu.layouts import LAYOUTS, TILES, Map, Plain
from scratchnet.plans.cpu.linear import Linear
from scratchnet.plans.cpu.masking import Mask
from scratchnet.plans.cpu.norm import Norm
from scratchnet.plans.cpu.toeplitz import Toeplitz
from scratchnet.plans.cpu.windows import MaxPool
from scratchnet.plans.cpu.winograd import Winograd4, Winograd6
from scratchnet.plans.kernel import Group
from scratchnet.plans.plan import Plan
from scratchnet.plans.registry import kernel_for, register

_KERNELS: dict[type[layers.Layer], list[Any]] = {
    layers.Conv2d: [Im2col, Winograd6, Winograd4, FirstConv, Toeplitz],  # the most special last
    layers.BatchNorm2d: [Norm],
    layers.BatchNorm1d: [Norm],
    layers.Linear: [Linear],
    layers.ReLU: [ReLU],
    layers.MaxPool2d: [MaxPool],
    layers.GlobalAvgPool2d: [misc_kernels.Average],
    layers.Flatten: [misc_kernels.View],
    layers.Dropout: [misc_kernels.Identity, misc_kernels.Dropout],
}
for _layer, _kernels in _KERNELS.items():
    for _kernel in _kernels:
        register(_layer, cpu=_kernel)


class CpuPlan(Plan):
    """A network compiled for NumPy, on worker threads."""

    device = "cpu"

    # What it consists of

    def _compile(self) -> None:
        count, limit = workers.size(), measuring.block_limit()
        context = self.context = PlanContext(self.training, self.dtype, self.algorithm, count, limit)
        kernels = (kernel_for(self.groups, i, context) for i in range(len(self.groups)))
        classes: list[Any] = [kernel or misc_kernels.Fallback for kernel in kernels]
        layouts = choosing.layouts(classes)
        tiled = [
            (-(-g.input_shape[2] // TILES[layout]), g.input_shape[3])
            for g, layout in zip(self.groups, layouts, strict=False)
            if layout in TILES
        ]
        tiles, channels = tiled[0] if tiled else (1, 1)
        chunks = choosing.images_per_chunk(self.input_shape[0], tiles, channels, count)
        self.maps: list[Map] = [LAYOUTS[layouts[0]](self.input_shape, chunks, self.dtype)]
        for i, g in enumerate(self.groups):
            before, kernel = self.maps[-1], classes[i]
            if kernel.is_view:
                output: Map = Plain(g.output_shape, chunks, self.dtype, before.mask, source=before)
            else:
                output = LAYOUTS[layouts[i + 1]](g.output_shape, chunks, self.dtype, self._mask(g))
            self.maps.append(output)
            self.kernels.append(kernel.build(g, before, output, context, first=i <= self.lowest))
        self._folds = [kernel.fold for kernel in self.kernels if kernel.group.norm is not None]
        if not self.training:  # the first kernels keep their transformed weights, as far as memory goes
            budget = weight_memory_budget(self._buffer.size * self.dtype.itemsize if self._buffer else 0)
            for made in self.kernels:
                if 0 < made.weight_bytes <= budget:
                    made.keeps_weights = True
                    budget -= made.weight_bytes

    def _mask(self, group: Group) -> Mask:
        """Return what the gradient of a group's output is multiplied by."""
        if group.activation_kernel is None:
            return Mask()
        drops = group.dropout is not None and self.training
        scale = misc_kernels.dropout_scale(group.dropout) if drops else 1.0
        return Mask(group.activation_kernel(group.activation), scale)

    def _prepare(self) -> None:
        """Record all passes."""
        self._weights = [kernel.record_weights() for kernel in self.kernels]
        self._forward = [kernel.record_forward() for kernel in self.kernels]
        for i, kernel in enumerate(self.kernels):
            writer = self.kernels[i - 1] if i else None
            borders = padding.record_borders(self.maps[i], writer, kernel)
            if borders is None:
                continue
            if i and self._forward[i - 1]:
                # They need no phase, hence no barrier, of their own: the map's writer leaves them alone.
                for do, more in zip(self._forward[i - 1][-1].workers, borders.workers, strict=True):
                    do.extend(more)
            else:
                self._forward[i].insert(0, borders)
        self._backward: list[list[Phase]] | None = None
        self._grad: Any = None

    def release(self) -> None:  # noqa: D102  (see Plan)
        super().release()
        self._weights, self._forward, self._backward = [], [], None  # recorded calls hold views

    # Running

    def _statistics_changed(self) -> bool:
        return any(fold.stale for fold in self._folds)

    def _run_forward(self, x: np.ndarray, derive: bool) -> np.ndarray:
        with workers.one_blas_thread():
            self.maps[0].put(x)
            phases = []
            for i, forward in enumerate(self._forward):
                phases += [(i, phase) for phase in (self._weights[i] if derive else [])]
                phases += [(i, phase) for phase in forward]
            run(phases, self.clock, "forward")
        return self.maps[-1].take()

    def _run_backward(self, dy: Any, need_input_gradient: bool) -> np.ndarray | None:
        if self._backward is None or self._grad is not getattr(self._buffer, "grad", None):
            self._backward = [self._record_backward(kernel) for kernel in self.kernels]
            self._grad = getattr(self._buffer, "grad", None)
        last = self.maps[-1]
        with workers.one_blas_thread():
            last.grad[...] = np.asarray(dy).reshape(last.grad.shape)
            self._mask_all(last, calls := Calls())  # no kernel writes this gradient, so none masks it
            calls.run()
            lowest = 0 if need_input_gradient else self.lowest
            phases = [(i, p) for i in reversed(range(lowest, len(self.kernels))) for p in self._backward[i]]
            phases = [(i, p) for i, p in phases if need_input_gradient or not p.for_input_gradient]
            run(phases, self.clock, "backward", self._gradients_final)
        return self.maps[0].take_gradient() if need_input_gradient else None

    def _record_backward(self, kernel: Kernel) -> list[Phase]:
        phases, mask = kernel.record_backward(), kernel.phase("mask", for_input_gradient=kernel.first)
        if not (kernel.masks or kernel.is_view):
            self._mask_all(kernel.input, mask.workers[0])
        return [*phases, mask]

    def _mask_all(self, target: Map, calls: Calls) -> None:
        """Record the masking of a whole gradient, of a map in which it lies as the data does."""
        if (activation := target.mask.activation) is not None:
            scratch = np.empty(CACHE_ELEMENTS, activation.scratch_dtype or self.dtype)
            target.mask.record(calls, target.grad, target.data, scratch)

    def describe_device(self) -> str:  # noqa: D102
        return f"{self.context.workers} workers, {self.dtype}"


def weight_memory_budget(parameter_bytes: int) -> int:
    """Return how many bytes a plan for inference may spend on transformed weights.

    ``SCRATCHNET_PLAN_MEMORY`` says how many megabytes; by default it is a quarter of the parameters' size.
    Weights for which there is no room are transformed again in each forward pass, a block at a time. (A batch
    normalisation that is folded into a convolution by im2col costs a copy of its weights besides.)

    Parameters
    ----------
    parameter_bytes : int
        The size of all parameters.

    Examples
    --------
    >>> weight_memory_budget(400)
    100
    """
    wanted = os.environ.get("SCRATCHNET_PLAN_MEMORY")
    if not wanted:
        return parameter_bytes // 4
    if not wanted.isdecimal():
        raise ValueError(f"SCRATCHNET_PLAN_MEMORY must be a whole number of megabytes, not {wanted!r}")
    return int(wanted) * 1_000_000
