"""Batch normalisation, with the ReLU and the pooling behind it.

The mathematics is in ``functional/norm.py``, and how the kernels add up without one disturbing another in
``kernels/norm.cu``. In training three launches forward (statistics in parts, joining them, normalising with
ReLU and pooling) and four backward (two sums in parts, joining them, dx). In evaluation, where no convolution
is before it that could take it along, it is an epilogue on a map.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from scratchnet.plans.cuda import modules
from scratchnet.plans.cuda.conv import statistics_of
from scratchnet.plans.cuda.kernel import Kernel, gradient
from scratchnet.plans.memory import Arena


class Norm(Kernel):
    """BatchNorm2d [+ ReLU] [+ 2 x 2 max pooling]."""

    algorithm = "normalise"

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.norm, self.rows = self.group.main, prod(self.input.shape[:3])
        self.pools = self.group.pool is not None
        self.keeps_output = self.group.relu is not None and not self.pools
        if self.context.training and self.rows == 1:
            raise ValueError(
                f"{self.norm._label()}: one value a channel has no variance to train with: {self.input.shape}"
            )

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        C, last_use = self.input.shape[3], forward if backward is None else backward
        self.mean, self.inv_std, self.scale = (
            arena.reserve(name, (C,), np.float32, forward, last_use) for name in ("mean", "inv_std", "scale")
        )
        if backward is None:
            return
        shape = 2, *modules.sums_shape(self.rows, C)
        self.partial = arena.reserve("partial", shape, np.float32, forward, forward)
        shape = 2, *modules.sums_shape(prod(self.output.shape[:3]), C)
        self.sums = arena.reserve("partial", shape, np.float32, backward, backward)
        self.code = None
        if self.pools:
            self.code = arena.reserve("code", self.output.shape, np.uint8, forward, backward)

    def forward(self) -> None:  # noqa: D102
        norm, x, y = self.norm, self.input.data, self.output.data
        mean, inv_std, scale = self.mean.array, self.inv_std.array, self.scale.array
        running = norm.running_mean, norm.running_var
        code = None
        if self.context.training:
            partial = self.partial.array
            modules.norm_statistics(x, partial)
            modules.norm_finish(
                partial, self.rows, norm.weight.data, mean, inv_std, scale, *running, norm.eps, norm.momentum
            )
            code = self.code.array if self.pools else None
        else:
            modules.norm_fold(norm.weight.data, *running, None, mean, scale, norm.eps)
        follows = {"centre": mean, "scale": scale, "relu": self.group.relu is not None}
        if self.pools:
            modules.epilogue_pool(x, y, code, norm.bias.data, **follows)
        else:
            modules.epilogue(x, y, norm.bias.data, **follows)

    def backward(self, need_input_gradient: bool) -> None:  # noqa: D102
        norm, x, dy = self.norm, self.input.data, self.output.grad
        mean, inv_std, sums = self.mean.array, self.inv_std.array, self.sums.array
        dweight, dbias = gradient(norm.weight), gradient(norm.bias)
        through: dict[str, Any] = {"y": self.output.data} if self.keeps_output else {}
        if self.pools:
            through = {"code": self.code.array}
        modules.norm_backward_sums(dy, x, mean, inv_std, sums, **through)
        modules.finish_sums(sums[0], dbias)
        modules.finish_sums(sums[1], dweight)
        if need_input_gradient:
            dx, scale = self.input.grad, self.scale.array
            modules.norm_backward(dy, x, mean, inv_std, scale, dweight, dbias, dx, **through)

    def constants(self) -> tuple:  # noqa: D102
        return statistics_of(self.norm)
