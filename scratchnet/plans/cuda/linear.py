"""Fully connected layers, with the ReLU and the dropout that follow them.

Three products, as in ``functional/linear.py``: y = x W + b forward, dW = x^T dz and dx = dz W^T backward,
with x and dz rounded to operands first. Dropout keeps no mask: after a ReLU what it dropped is zero and what
it kept is not (or has no gradient anyway), so that (y > 0) tells.
"""

from __future__ import annotations

from typing import Any
from typing import cast as typed

import numpy as np

from scratchnet import layers
from scratchnet.backend import Array
from scratchnet.parameters import Parameter
from scratchnet.plans.cuda.kernel import Kernel
from scratchnet.plans.cuda.launch.dropout import dropout
from scratchnet.plans.cuda.launch.epilogue import epilogue
from scratchnet.plans.cuda.launch.mask import mask
from scratchnet.plans.cuda.launch.operands import cast
from scratchnet.plans.cuda.launch.sums import finish_sums, sums_shape
from scratchnet.plans.cuda.misc_kernels import Dropout
from scratchnet.plans.memory import Arena, Buffer


class Linear(Kernel):
    """Linear [+ ReLU [+ Dropout]]."""

    algorithm = "product"
    takes = "activation", "dropout"
    x: Buffer | None = None  # the input as an operand; None: it is one
    dz: Buffer | None = None  # the gradient of the product; None: it is that of the output
    partial: Buffer | None = None  # sums of the bias's gradient

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.layer = typed(layers.Linear, self.group.main)
        if (layer := self.group.dropout) is not None and not Dropout.does_nothing(layer):
            self.dropout = typed(layers.Dropout, layer)
        self.relu = self.keeps_output = self.group.activation is not None
        self.bias = self.layer.bias

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        operand = self.context.operand
        if operand != np.float32:
            self.x = arena.reserve("x", self.input.shape, operand, forward, forward)
        if backward is None:
            return
        if operand != np.float32:
            self.x_again = arena.reserve("x", self.input.shape, operand, backward, backward)
        if self.relu or operand != np.float32:
            self.dz = arena.reserve("dz", self.output.shape, operand, backward, backward)
        if self.bias is not None:
            shape = sums_shape(*self.output.shape)
            self.partial = arena.reserve("partial", shape, np.float32, backward, backward)

    def leave_out_bias(self) -> Parameter | None:  # noqa: D102
        if self.relu:
            return None
        left_out, self.bias = self.bias, None
        return left_out

    def forward(self) -> None:  # noqa: D102
        y, bias = self.output.data, self.bias
        x = self.input.data if self.x is None else self._cast(self.x)
        self.context.matmul(x, self.matrix(self.layer.weight), out=y)
        if self.relu or bias is not None:
            epilogue(y, y, None if bias is None else bias.data, relu=self.relu)
        if self.dropout is not None:
            dropout(y, self.dropout.p, 0, self.counter)

    def backward(self, need_input_gradient: bool) -> None:  # noqa: D102
        weight, bias, dy = self.layer.weight, self.bias, self.output.grad
        dz = dy if self.dz is None else self.dz.array
        partial = None
        if self.partial is not None and bias is not None and bias.trainable:
            partial = self.partial.array
        if self.dz is not None or partial is not None:
            y = self.output.data if self.relu else None
            p = 0.0 if self.dropout is None else self.dropout.p
            factor = 1.0 / (1.0 - p) if p < 1.0 else 0.0
            mask(dy, y, None if self.dz is None else dz, partial, factor=factor)
        if partial is not None and bias is not None:
            finish_sums(partial, bias.grad_view)
        if weight.trainable:
            x = self.input.data if self.x is None else self._cast(self.x_again)
            self.context.matmul(x, dz, out=weight.grad_view, transpose_a=True)
        if need_input_gradient:
            self.context.matmul(dz, self.matrix(weight), out=self.input.grad, transpose_b=True)

    def _cast(self, buffer: Buffer) -> Array:
        cast(self.input.data, buffer.array)
        return buffer.array
