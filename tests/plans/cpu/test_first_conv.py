"""The first convolution, of an image with first_conv."""

from __future__ import annotations

import numpy as np
import pytest

from scratchnet import layers, plans
from tests.fakes.one_layer import EPSILON, error


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(12, 8), (9, 7)])
@pytest.mark.parametrize("images, workers", [(5, "2"), (1, "1"), (1, "2"), (2, "3"), (1, "10")])
def test_first_layer_with_few_channels(monkeypatch, channels, size, images, workers):
    monkeypatch.setenv("SCRATCHNET_THREADS", workers)
    first, second = layers.Conv2d(channels, 20), layers.Conv2d(20, 8)
    net = layers.Sequential(first, layers.ReLU(), second)
    x = np.random.default_rng(0).standard_normal((images, *size, channels)).astype(np.float32)
    plan = plans.compile(net, x.shape, training=True)
    assert [kernel.algorithm for kernel in plan.kernels] == ["first_conv", "winograd"]
    y = plan.forward(x)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    dx = plan.backward(dy, need_input_gradient=True)
    got = [y, dx] + [p.grad.copy() for p in net.parameters().values()]
    expected = [net.forward(x), net.backward(dy)] + [p.grad for p in net.parameters().values()]
    assert max(error(a, b) for a, b in zip(got, expected, strict=True)) < EPSILON
