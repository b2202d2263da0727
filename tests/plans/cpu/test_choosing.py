"""Which kernel computes which convolution."""

from __future__ import annotations

from scratchnet import layers, plans


def test_a_single_small_picture_is_not_worth_winograds_larger_weights():
    net = layers.Sequential(layers.Conv2d(16, 16), layers.ReLU(), layers.Conv2d(16, 16))
    algorithms = [
        [kernel.algorithm for kernel in plans.compile(net.train(training), shape, training=training).kernels]
        for training, shape in [(True, (1, 8, 8, 16)), (False, (1, 8, 8, 16)), (False, (9, 8, 8, 16))]
    ]
    assert algorithms == [["winograd"] * 2, ["im2col"] * 2, ["winograd"] * 2]
