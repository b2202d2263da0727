"""The plan of a CPU: an algorithm and a layout for each group, and the phases that all of it consists of."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from scratchnet import workers
from scratchnet.plans.cpu import choosing, measuring
from scratchnet.plans.cpu.calls import Phase, run
from scratchnet.plans.cpu.first_conv import FirstConv
from scratchnet.plans.cpu.im2col import Im2col
from scratchnet.plans.cpu.kernel import Kernel, PlanContext
from scratchnet.plans.cpu.layouts import LAYOUTS, Map, Reshaped
from scratchnet.plans.cpu.linear import Linear
from scratchnet.plans.cpu.misc_kernels import Average, Fallback, View
from scratchnet.plans.cpu.norm import Norm
from scratchnet.plans.cpu.toeplitz import Toeplitz
from scratchnet.plans.cpu.winograd import Winograd
from scratchnet.plans.plan import Plan

# The kernels of a convolution, the most special first.
CONVOLUTIONS: tuple[type[Kernel], ...] = (Toeplitz, FirstConv, Winograd, Im2col)
OTHERS: dict[str, type[Kernel]] = {
    "norm": Norm,
    "linear": Linear,
    "average": Average,
    "flatten": View,
    "nothing": View,
    "other": Fallback,
}


class CpuPlan(Plan):
    """A network compiled for NumPy, on worker threads."""

    # What it consists of

    def _compile(self) -> None:
        limit = measuring.block_limit()
        self.context = PlanContext(workers.size(), self.training, self.dtype, limit)
        self._make_kernels()
        if not self.training:
            self._keep_weights()

    def _make_kernels(self) -> None:
        """Choose an algorithm for each group, and make the maps between them."""
        classes = [
            choosing.kernel_for(CONVOLUTIONS, self.groups, i, self.context, self.algorithm)
            if g.kind == "conv"
            else OTHERS[g.kind]
            for i, g in enumerate(self.groups)
        ]
        layouts = []  # of the input of each group, then of the output
        for i, g in enumerate(self.groups):
            if g.kind == "norm" and i > 0 and self.groups[i - 1].kind == "conv":
                # A norm takes any layout: that which its convolution reads, so that nothing is rearranged.
                layouts.append(classes[i - 1].output_layout or layouts[i - 1])
            else:
                layouts.append(classes[i].input_layout)
        layouts.append("plain")

        N, workers = self.input_shape[0], self.context.workers
        tiled = [g.input_shape for g, layout in zip(self.groups, layouts, strict=False) if layout == "tiles"]
        width, channels = tiled[0][2:] if tiled else (1, 1)
        chunks = choosing.images_per_chunk(N, width, channels, workers)
        maps: list[Map] = [LAYOUTS[layouts[0]](self.input_shape, chunks, self.context.dtype)]
        self.kernels: list[Kernel] = []
        for i, g in enumerate(self.groups):
            before = maps[-1]
            if classes[i] is View:
                output: Map = Reshaped(before, g.output_shape)
            else:
                output = LAYOUTS[layouts[i + 1]](g.output_shape, chunks, self.context.dtype)
                output.rectified = g.relu is not None
                if g.dropout is not None and self.training:
                    output.scale = 1.0 / (1.0 - g.dropout.p) if g.dropout.p < 1.0 else 0.0
            maps.append(output)
            self.kernels.append(classes[i].build(g, before, output, self.context, first=i == 0))
        self.maps = maps
        self._folds = [kernel.fold for kernel in self.kernels if kernel.group.norm is not None]

    def _keep_weights(self) -> None:
        """Decide which kernels keep their transformed weights: from the first on, as far as memory goes."""
        budget = memory_budget(self._buffer.size * self.context.dtype.itemsize if self._buffer else 0)
        for kernel in self.kernels:
            if 0 < kernel.weight_bytes <= budget:
                kernel.keeps_weights = True
                budget -= kernel.weight_bytes

    def _prepare(self) -> None:
        """Record all steps."""
        self._weights = [kernel.record_weights() for kernel in self.kernels]
        self._forward = [kernel.record_forward() for kernel in self.kernels]
        for i, kernel in enumerate(self.kernels):
            borders = kernel.borders()
            if borders is None:
                continue
            if i and self._forward[i - 1]:
                # They need no phase, hence no barrier, of their own: who writes the map leaves them alone.
                for do, more in zip(self._forward[i - 1][-1].workers, borders.workers, strict=True):
                    do.extend(more)
            else:
                self._forward[i].insert(0, borders)
        self._backward: list[list[Phase]] | None = None
        self._grad: Any = None

    # Running

    @property
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
        return self.maps[-1].data.reshape(self.output_shape).copy()

    def _run_backward(self, dy: Any, need_input_gradient: bool) -> np.ndarray | None:
        if self._backward is None or self._grad is not getattr(self._buffer, "grad", None):
            self._backward = [kernel.record_backward() for kernel in self.kernels]
            self._grad = getattr(self._buffer, "grad", None)
        last = self.maps[-1]
        with workers.one_blas_thread():
            last.grad[...] = np.asarray(dy).reshape(last.grad.shape)
            if last.rectified:  # no group reads this map, so nobody else masks its gradient
                last.grad[...] *= (last.data > 0) * last.dtype.type(last.scale)
            phases = [(i, p) for i in reversed(range(len(self.kernels))) for p in self._backward[i]]
            phases = [(i, p) for i, p in phases if need_input_gradient or not p.for_input_gradient]
            run(phases, self.clock, "backward")
        return self.maps[0].take_gradient() if need_input_gradient else None

    def _how(self) -> str:
        return f"{self.context.workers} workers, {self.dtype}"


def memory_budget(parameter_bytes: int) -> int:
    """Return how many bytes a plan for inference may spend on weights in a form that is quick to use.

    ``SCRATCHNET_PLAN_MEMORY`` says how many megabytes; by default it is a quarter of the parameters' size.
    Weights for which there is no room are transformed anew in each forward pass, a block at a time. (A batch
    normalisation that is folded into a convolution by im2col costs a copy of its weights besides.)

    Examples
    --------
    >>> memory_budget(400)
    100
    """
    wanted = os.environ.get("SCRATCHNET_PLAN_MEMORY")
    if not wanted:
        return parameter_bytes // 4
    if not wanted.isdecimal():
        raise ValueError(f"SCRATCHNET_PLAN_MEMORY must be a whole number of megabytes, not {wanted!r}")
    return int(wanted) * 1_000_000
