"""What follows a convolution: ReLU and pooling."""

from __future__ import annotations

import numpy as np

from scratchnet import layers, plans


def test_pooling_gives_ties_to_the_first_of_the_window():
    net = layers.Sequential(layers.Conv2d(4, 4, bias=False), layers.ReLU(), layers.MaxPool2d(2))
    net[0].weight.data = np.zeros((3, 3, 4, 4), np.float32)
    net[0].weight.data[1, 1] = np.eye(4)
    for algorithm, size in (("auto", 8), ("im2col", 8), ("auto", 2)):
        x = np.ones((2, size, size, 4), np.float32)  # all four of a window are equal, and positive
        plan = plans.compile(net, x.shape, training=True, algorithm=algorithm)
        plan.forward(x)
        # im2col is exact. With Winograd equal pixels may differ by rounding, but one has to get it all.
        dx = plan.backward(np.ones((2, size // 2, size // 2, 4), np.float32), need_input_gradient=True)
        windows = dx.reshape(2, size // 2, 2, size // 2, 2, 4).sum(axis=(2, 4))
        np.testing.assert_allclose(windows, 1.0, rtol=1e-5)
        if algorithm == "im2col":
            np.testing.assert_array_equal(dx[:, ::2, ::2], 1.0)
