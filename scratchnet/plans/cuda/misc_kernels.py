"""Kernels with little arithmetic, and layers without a kernel."""

from __future__ import annotations

from typing import Any

from scratchnet.layers import Layer
from scratchnet.plans import kernel
from scratchnet.plans.cuda.kernel import Kernel
from scratchnet.plans.cuda.launch.average import average, average_backward
from scratchnet.plans.kernel import Group, PlanContext


class View(kernel.View, Kernel):
    """Flatten: the same numbers under another shape, so nothing to do."""

    def forward(self) -> None:  # noqa: D102
        pass

    def backward(self, need_input_gradient: bool) -> None:  # noqa: D102
        pass


class Identity(View):
    """A dropout that drops nothing: it only stands where a network has no other layer."""

    algorithm = "identity"

    @classmethod
    def does_nothing(cls, layer: Any) -> bool:  # noqa: D102
        return layer.p == 0.0 or not layer.training

    @classmethod
    def supports(cls, groups: list[Group], i: int, context: PlanContext) -> bool:  # noqa: D102
        return cls.does_nothing(groups[i].main)


class Average(Kernel):
    """Global average pooling: y = sum of x / (H*W), and dx = dy / (H*W) for every pixel."""

    algorithm = "mean"

    def forward(self) -> None:  # noqa: D102
        average(self.input.data, self.output.data)

    def backward(self, need_input_gradient: bool) -> None:  # noqa: D102
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


class ReLU(Fallback):
    """A ReLU that no group takes along."""

    role = "activation"
    increasing = zero_derivative_at_zero = True


class MaxPool(Fallback):
    """Max pooling that no group takes along."""

    role = "pool"

    @classmethod
    def may_follow(cls, group: Group, layer: Any) -> bool:  # noqa: D102
        return layer.kernel_size == layer.stride == 2


class Dropout(Fallback):
    """Dropout that no group takes along."""

    role = "dropout"

    @classmethod
    def may_follow(cls, group: Group, layer: Layer) -> bool:  # noqa: D102
        return group.activation is not None

    @classmethod
    def supports(cls, groups: list[Group], i: int, context: PlanContext) -> bool:  # noqa: D102
        return not Identity.does_nothing(groups[i].main)
