"""Batch normalisation, with the ReLU and the pooling that follow it.

The mathematics is in ``functional/norm.py``, and how the kernels compute a variance without cancellation in
``kernels/norm.cu``. In training there are three launches forward (partial statistics, joining them,
normalising with ReLU and pooling) and four backward (two partial sums, finishing each, dx). In evaluation,
where no convolution before it takes it along, it is an epilogue on a map; frozen, in training, it is the same
forward, and backward dx = weight / s * dz, the formula of training with both sums zero.
"""

from __future__ import annotations

from math import prod
from typing import Any, cast

import numpy as np

from scratchnet.backend import Array
from scratchnet.layers import Layer
from scratchnet.layers.norm import BatchNorm
from scratchnet.parameters import Parameter
from scratchnet.plans.cuda.kernel import Kernel
from scratchnet.plans.cuda.launch import norm as launch
from scratchnet.plans.cuda.launch.epilogue import epilogue, epilogue_pool
from scratchnet.plans.cuda.launch.sums import finish_sums, sums_shape
from scratchnet.plans.kernel import Group
from scratchnet.plans.memory import Arena, Buffer


class Norm(Kernel):
    """BatchNorm2d, or BatchNorm1d, [+ ReLU] [+ 2 x 2 max pooling]."""

    algorithm = "normalise"
    takes = "activation", "pool"
    role = "norm"
    norm: BatchNorm
    code: Buffer | None = None  # which pixel of each window won
    bias_before: Parameter | None = None  # of the layer before it, where that leaves it out

    @classmethod
    def may_follow(cls, group: Group, layer: Layer) -> bool:
        """Tell whether a convolution can take it along: where its statistics are fixed."""
        return not (group.main.training or layer.training)

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.norm, self.rows = cast(BatchNorm, self.group.main), prod(self.input.shape[:-1])
        self.relu, self.pools = self.group.activation is not None, self.group.pool is not None
        self.keeps_output = self.relu and not self.pools
        if self._uses_batch and self.rows == 1:
            raise ValueError(
                f"{self.norm.label}: one value per channel has no variance to train with: {self.input.shape}"
            )

    @property
    def _uses_batch(self) -> bool:
        """Whether it normalises with the batch's own statistics."""
        return self.context.training and not self.norm.frozen

    def follow(self, before: Kernel) -> None:  # noqa: D102
        if self._uses_batch:
            self.bias_before = before.leave_out_bias()

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        C, last_use = self.input.shape[-1], forward if backward is None else backward
        self.mean, self.inv_std, self.scale = (
            arena.reserve(name, (C,), np.float32, forward, last_use) for name in ("mean", "inv_std", "scale")
        )
        if backward is None:
            return
        shape = 2, *sums_shape(self.rows, C)
        self.partial = arena.reserve("partial", shape, np.float32, forward, forward)
        shape = 2, *sums_shape(prod(self.output.shape[:-1]), C)
        self.sums = arena.reserve("partial", shape, np.float32, backward, backward)
        if self.pools:
            self.code = arena.reserve("code", self.output.shape, np.uint8, forward, backward)
        self.zeros: Array = self.context.xp.zeros(C, np.float32)

    def forward(self) -> None:  # noqa: D102
        norm, x, y = self.norm, self.input.data, self.output.data
        weight, bias = norm.weight.data, norm.bias.data
        mean, inv_std, scale = self.mean.array, self.inv_std.array, self.scale.array
        running = norm.running_mean, norm.running_var
        if self._uses_batch:
            partial = self.partial.array
            launch.norm_statistics(x, partial)
            batch = mean, inv_std, scale
            before = None if self.bias_before is None else self.bias_before.data
            numbers = norm.eps, norm.momentum
            launch.norm_finish(partial, self.rows, weight, *batch, *running, *numbers, before)
        else:
            launch.norm_fold(weight, *running, None, mean, scale, norm.eps)
        if self.pools:
            code = None if self.code is None else self.code.array
            epilogue_pool(x, y, code, bias, mean=mean, scale=scale, relu=self.relu)
        else:
            epilogue(x, y, bias, mean=mean, scale=scale, relu=self.relu)

    def backward(self, need_input_gradient: bool) -> None:  # noqa: D102
        norm, x, dy = self.norm, self.input.data, self.output.grad
        mean, inv_std, scale = self.mean.array, self.inv_std.array, self.scale.array
        dweight, dbias = norm.weight.grad_view, norm.bias.grad_view
        passed: dict[str, Array] = {"y": self.output.data} if self.keeps_output else {}
        if self.code is not None:
            passed = {"code": self.code.array}
        if self._uses_batch:
            sums = self.sums.array
            launch.norm_backward_sums(dy, x, mean, inv_std, sums, **passed)
            finish_sums(sums[0], dbias)
            finish_sums(sums[1], dweight)
            if self.bias_before is not None and self.bias_before.trainable:
                finish_sums(self.zeros.reshape(1, -1), self.bias_before.grad_view)
        else:
            inv_std, dweight, dbias = self.zeros, self.zeros, self.zeros
        if need_input_gradient:
            launch.norm_backward(dy, x, mean, inv_std, scale, dweight, dbias, self.input.grad, **passed)
