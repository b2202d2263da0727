"""Fully connected layers, with the ReLU and the dropout that follow them.

Three products, as in ``functional/linear.py``: y = x W + b forward, dW = x^T dz and dx = dz W^T backward,
with x and dz rounded to operands first. Dropout keeps no mask: after a ReLU what it dropped is zero and what
it kept is not (or has no gradient anyway), so that (y > 0) tells.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchnet.backend import Array
from scratchnet.plans.cuda.kernel import Kernel
from scratchnet.plans.cuda.launch.dropout import dropout
from scratchnet.plans.cuda.launch.epilogue import epilogue
from scratchnet.plans.cuda.launch.mask import mask
from scratchnet.plans.cuda.launch.operands import cast
from scratchnet.plans.cuda.launch.sums import finish_sums, sums_shape
from scratchnet.plans.memory import Arena, Buffer


class Linear(Kernel):
    """Linear [+ ReLU [+ Dropout]].

    Attributes
    ----------
    drops : bool
        Whether it draws random numbers. Then its plan sets ``counter``, an int64 (1,) in device memory.
    """

    algorithm = "product"
    takes = "activation", "dropout"
    counter: Any = None

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        dropout = self.group.dropout
        self.drops = dropout is not None and self.context.training and dropout.p > 0.0
        self.keeps_output = self.group.activation is not None

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        operand = self.context.operand
        self.x = self.dz = None  # the input, and the output's gradient, themselves
        if operand != np.float32:
            self.x = arena.reserve("x", self.input.shape, operand, forward, forward)
        if backward is None:
            return
        if operand != np.float32:
            self.x_again = arena.reserve("x", self.input.shape, operand, backward, backward)
        if self.group.activation is not None or operand != np.float32:
            self.dz = arena.reserve("dz", self.output.shape, operand, backward, backward)
        if self.group.main.bias is not None:
            shape = sums_shape(*self.output.shape)
            self.partial = arena.reserve("partial", shape, np.float32, backward, backward)

    def forward(self) -> None:  # noqa: D102
        linear, y = self.group.main, self.output.data
        x = self.input.data if self.x is None else self._cast(self.x)
        self.context.matmul(x, self.context.weights.matrix(linear.weight), out=y)
        bias, relu = None if linear.bias is None else linear.bias.data, self.group.activation is not None
        if relu or bias is not None:
            epilogue(y, y, bias, relu=relu)
        if self.drops:
            dropout(y, self.group.dropout.p, 0, self.counter)

    def backward(self, need_input_gradient: bool) -> None:  # noqa: D102
        linear, dy = self.group.main, self.output.grad
        dz = dy if self.dz is None else self.dz.array
        partial = None if linear.bias is None else self.partial.array
        if self.dz is not None or partial is not None:
            y = self.output.data if self.keeps_output else None
            p = self.group.dropout.p if self.drops else 0.0
            factor = 1.0 / (1.0 - p) if p < 1.0 else 0.0
            mask(dy, y, None if self.dz is None else dz, partial, factor=factor)
        if linear.bias is not None:
            finish_sums(partial, linear.bias.grad_view)
        x = self.input.data if self.x is None else self._cast(self.x_again)
        self.context.matmul(x, dz, out=linear.weight.grad_view, transpose_a=True)
        if need_input_gradient:
            weight = self.context.weights.matrix(linear.weight)
            self.context.matmul(dz, weight, out=self.input.grad, transpose_b=True)

    def _cast(self, buffer: Buffer) -> Array:
        cast(self.input.data, buffer.array)
        return buffer.array
