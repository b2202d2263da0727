"""Layers with little arithmetic, and layers that a plan does not know."""

from __future__ import annotations

from typing import Any

from scratchnet.plans.cuda.kernel import Kernel
from scratchnet.plans.cuda.launch.average import average, average_backward


class View(Kernel):
    """Flatten, and a dropout that drops nothing: the same numbers under another shape, so nothing to do."""

    algorithm = "view"
    is_view = True

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
        average_backward(self.output.grad, self.input.grad)


class Fallback(Kernel):
    """A layer that is not known here, or any layer of a float64 network: its own forward and backward.

    It may do anything, so that a plan with one of these is not recorded: its launches are made each time.
    """

    algorithm = "fallback"
    replayable = False

    def forward(self) -> None:  # noqa: D102
        layer, group = self.group.main, self.group
        # The layer gets an array of its own, and may keep it: this memory is soon used for something else.
        y: Any = layer.forward(self.input.data.reshape(group.input_shape).copy())
        if tuple(y.shape) != group.output_shape:
            raise ValueError(
                f"{layer.label}: forward returned {tuple(y.shape)}, output_shape() promised "
                f"{group.output_shape}: define output_shape in {type(layer).__name__}"
            )
        self.output.data[...] = y

    def backward(self, need_input_gradient: bool) -> None:  # noqa: D102
        dx: Any = self.group.main.backward(self.output.grad.copy())
        self.input.grad[...] = dx.reshape(self.input.grad.shape)
