"""Layers with little arithmetic, each on its own, and layers that have no kernel.

They need no ``.cu`` files of their own: a ReLU is an epilogue with nothing else, and the mask of its output
backward; max pooling is the epilogue's, without a ReLU; a copy is a cast from float32 to float32.
"""

from __future__ import annotations

from typing import Any
from typing import cast as typed

import numpy as np

from scratchnet import layers
from scratchnet.plans import kernel
from scratchnet.plans.cuda.kernel import Kernel
from scratchnet.plans.cuda.launch.average import average, average_backward
from scratchnet.plans.cuda.launch.dropout import dropout
from scratchnet.plans.cuda.launch.epilogue import epilogue, epilogue_pool
from scratchnet.plans.cuda.launch.mask import mask, unpool
from scratchnet.plans.cuda.launch.operands import cast
from scratchnet.plans.kernel import Group
from scratchnet.plans.memory import Arena, Buffer


class ReLU(Kernel):
    """ReLU: the only activation that other kernels take along."""

    algorithm = "relu"
    role = "activation"
    keeps_output = True

    def forward(self) -> None:  # noqa: D102
        epilogue(self.input.data, self.output.data)

    def backward(self, need_input_gradient: bool) -> None:  # noqa: D102
        if need_input_gradient:
            mask(self.output.grad, self.output.data, self.input.grad)


class MaxPool(Kernel):
    """Max pooling with windows of 2 x 2, side by side; there is no kernel for others."""

    algorithm = "maximum"
    role = "pool"
    code: Buffer | None = None

    @classmethod
    def may_follow(cls, group: Group, layer: layers.Layer) -> bool:  # noqa: D102
        pool = typed(layers.MaxPool2d, layer)
        return pool.kernel_size == pool.stride == 2

    @classmethod
    def supports(cls, groups: list[Group], i: int, context: kernel.PlanContext) -> bool:  # noqa: D102
        return cls.may_follow(groups[i], groups[i].main)

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        if backward is not None:
            self.code = arena.reserve("code", self.output.shape, np.uint8, forward, backward)

    def forward(self) -> None:  # noqa: D102
        code = None if self.code is None else self.code.array
        epilogue_pool(self.input.data, self.output.data, code, relu=False)

    def backward(self, need_input_gradient: bool) -> None:  # noqa: D102
        if need_input_gradient and self.code is not None:
            unpool(self.output.grad, self.code.array, self.input.grad)


class Dropout(Kernel):
    """Dropout. The same key and counter drop the same places forward and backward, so no mask is kept."""

    algorithm = "dropout"
    role = "dropout"

    @classmethod
    def may_follow(cls, group: Group, layer: layers.Layer) -> bool:
        """Tell whether the output of the group tells what was kept: after a ReLU."""
        return group.activation is not None

    @classmethod
    def does_nothing(cls, layer: layers.Layer) -> bool:  # noqa: D102
        return not layer.training or typed(layers.Dropout, layer).p == 0.0

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        if not self.does_nothing(self.group.main):
            self.dropout = typed(layers.Dropout, self.group.main)

    def forward(self) -> None:  # noqa: D102
        cast(self.input.data, self.output.data)
        if self.dropout is not None:
            dropout(self.output.data, self.dropout.p, 0, self.counter)

    def backward(self, need_input_gradient: bool) -> None:  # noqa: D102
        if need_input_gradient:
            cast(self.output.grad, self.input.grad)
            if self.dropout is not None:
                dropout(self.input.grad, self.dropout.p, 0, self.counter)


class View(kernel.View, Kernel):
    """Flatten: the same numbers under another shape, so nothing to do."""

    def forward(self) -> None:  # noqa: D102
        pass

    def backward(self, need_input_gradient: bool) -> None:  # noqa: D102
        pass


class Average(Kernel):
    """Global average pooling: y = sum of x / (H*W), and dx = dy / (H*W) for every pixel."""

    algorithm = "mean"

    def forward(self) -> None:  # noqa: D102
        average(self.input.data, self.output.data)

    def backward(self, need_input_gradient: bool) -> None:  # noqa: D102
        if need_input_gradient:
            average_backward(self.output.grad, self.input.grad)


class Fallback(kernel.Fallback, Kernel):
    """A layer without a kernel, or any layer of a float64 network: its own forward and backward.

    It may do anything, so that a plan with one of these is not recorded: its launches are made each time.
    """

    replayable = False

    def forward(self) -> None:  # noqa: D102
        self.run_forward()

    def backward(self, need_input_gradient: bool) -> None:  # noqa: D102
        self.run_backward()
