"""Batch normalisation in every layout."""

from __future__ import annotations

import numpy as np
import pytest

from scratchnet import layers, plans
from tests.fakes.one_layer import EPSILON, error


@pytest.mark.parametrize("shape", [(7, 4, 4, 5), (3, 9, 6, 70), (4, 2, 2, 5), (1, 5, 5, 1)])
@pytest.mark.parametrize("convolve", [True, False])
def test_batch_norm_in_every_layout(shape, convolve):
    C = shape[-1]
    nets = [
        layers.Sequential(*([layers.Conv2d(C, C)] if convolve else []), layers.BatchNorm2d(C), layers.ReLU())
        for _ in range(2)
    ]
    rng = np.random.default_rng(0)
    x = (3 + rng.standard_normal(shape)).astype(np.float32)
    for net in nets:
        net[-2].weight.data[...] = np.linspace(0.5, 2, C)
        net[-2].bias.data[...] = np.linspace(0.5, -1, C)
    plan = plans.compile(nets[0], shape, training=True)
    y, expected = plan.forward(x), nets[1].forward(x)
    assert error(y, expected) < EPSILON
    dy = rng.standard_normal(shape).astype(np.float32)
    dx = plan.backward(dy, need_input_gradient=True)
    assert error(dx, nets[1].backward(dy)) < 3e-5
    for name in ("weight", "bias"):
        a, b = (getattr(net[-2], name).grad for net in nets)
        assert error(a, b) < EPSILON
    for name in ("running_mean", "running_var"):
        a, b = (getattr(net[-2], name) for net in nets)
        assert error(a, b) < EPSILON
    assert len(plan.kernels) == 1 + convolve
