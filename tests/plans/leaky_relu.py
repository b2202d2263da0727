"""Leaky ReLU as an author outside the package writes it: the layer, and its kernel for plans."""

import numpy as np

from scratchnet import plans
from scratchnet.layers import Layer


class LeakyReLU(Layer):
    """y = x where x > 0, otherwise slope * x."""

    def __init__(self, slope=0.01, **common):
        super().__init__(**common)
        if slope < 0:
            raise ValueError(f"slope must not be negative, not {slope}: the sign of y tells that of x")
        self.slope = slope

    def forward(self, x):
        self.check_input(x)
        return self.save_for_backward(np.where(x > 0, x, x.dtype.type(self.slope) * x), x)

    def backward(self, dy):
        x = self.saved(dy)
        return np.where(x > 0, dy, dy.dtype.type(self.slope) * dy)

    def settings(self):
        return {"slope": self.slope}


class LeakyReLUKernel(plans.Elementwise):
    algorithm = "leaky relu"
    increasing = True  # so that max pooling may follow in the same group

    def record_forward(self, calls, x):
        calls.call(scale_where_negative, x, x.dtype.type(self.layer.slope))

    def record_backward(self, calls, dy, y, scratch):
        calls(np.less_equal, y, 0, out=scratch)
        calls(np.multiply, dy, dy.dtype.type(self.layer.slope), out=dy, where=scratch)


def scale_where_negative(x, slope):
    np.multiply(x, slope, out=x, where=x < 0)


plans.register(LeakyReLU, cpu=LeakyReLUKernel)
