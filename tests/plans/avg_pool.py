"""Average pooling as an author outside the package writes it: the layer, and its kernel for plans."""

import numpy as np

from scratchnet import plans
from scratchnet.layers import Layer


class AvgPool2d(Layer):
    """The mean of each window."""

    def __init__(self, kernel_size=2, stride=None, **common):
        super().__init__(**common)
        self.kernel_size, self.stride = kernel_size, stride or kernel_size

    def forward(self, x):
        self.check_input(x, "N", "H", "W", "C")
        y = np.mean(self._windows(x), axis=0, dtype=x.dtype)
        return self.save_for_backward(y, x.shape)

    def backward(self, dy):
        dx = np.zeros(self.saved(dy), dy.dtype)
        for window in self._windows(dx):
            window += dy / dy.dtype.type(self.kernel_size**2)
        return dx

    def output_shape(self, shape):
        N, H, W, C = shape
        return (N, *((size - self.kernel_size) // self.stride + 1 for size in (H, W)), C)

    def settings(self):
        return {"kernel_size": self.kernel_size, "stride": self.stride}

    def _windows(self, x):
        K, S, (_, OH, OW, _) = self.kernel_size, self.stride, self.output_shape(x.shape)
        return [x[:, i:, j:][:, ::S, ::S][:, :OH, :OW] for i in range(K) for j in range(K)]


class AvgPoolKernel(plans.Windows):
    algorithm = "average"

    def record_forward(self, calls, windows, y):
        calls.copy(windows[0], out=y)
        for x in windows[1:]:
            calls(np.add, y, x, out=y)
        calls(np.divide, y, y.dtype.type(len(windows)), out=y)

    def record_backward(self, calls, windows, y, dy, dwindows):
        calls(np.divide, dy, dy.dtype.type(len(windows)), out=dy)
        for dx in dwindows:
            calls(np.add, dx, dy, out=dx)


plans.register(AvgPool2d, cpu=AvgPoolKernel)
