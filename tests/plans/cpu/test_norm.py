"""Batch normalisation in every layout."""

from __future__ import annotations

import numpy as np
import pytest

from scratchnet import functional as F
from scratchnet import layers, plans
from scratchnet.plans.cpu import norm
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


@pytest.mark.parametrize("shape", [(64, 16, 16, 32), (5, 30, 9, 40)])
@pytest.mark.parametrize("algorithm", ["winograd4", "winograd6", "im2col"])
def test_means_and_deviations_of_blocks_are_merged_into_those_of_the_batch(shape, algorithm, monkeypatch):
    monkeypatch.setattr(norm, "CACHE_ELEMENTS", 1000)  # so that there are many blocks
    rng, C = np.random.default_rng(0), shape[-1]
    x = rng.standard_normal(shape) + 3 * rng.standard_normal((shape[0], 1, 1, C))  # images that differ
    x = (x + 3 * np.linspace(-1, 1, shape[1])[:, None, None]).astype(np.float32)  # and so do their rows
    bn = layers.BatchNorm2d(C, momentum=1.0)
    net = layers.Sequential(layers.Conv2d(C, C), bn, layers.ReLU(), layers.Conv2d(C, 4))
    plan = plans.compile(net, shape, training=True, algorithm=algorithm)
    plan.forward(x)
    assert len(plan.kernels[1].regions) > 2
    weight, bias = net[0].weight.data.astype(float), net[0].bias.data.astype(float)
    z = F.conv2d_forward(x.astype(float), weight, bias, 1, 1)[0].reshape(-1, C)
    np.testing.assert_allclose(bn.running_mean, z.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(bn.running_var, z.var(axis=0, ddof=1), rtol=1e-5)


def test_with_a_large_mean_a_plan_loses_hardly_more_than_the_layer():
    shape = (8, 16, 16, 32)
    rng = np.random.default_rng(0)
    z, dy = ((m + rng.standard_normal(shape)).astype(np.float32) for m in (300, 0))
    w, b = np.full(32, 1.5), np.zeros(32)
    exact, cache = F.batch_norm_forward(z.astype(float), w, b)
    exact_dz, exact_dw, _ = F.batch_norm_backward(dy.astype(float), cache)
    lost = []
    for planned in (True, False):
        net = layers.Sequential(layers.BatchNorm2d(32))
        net[0].weight.data[...] = 1.5
        engine = plans.compile(net, shape, training=True) if planned else net
        y = engine.forward(z)
        dz = engine.backward(dy, need_input_gradient=True)
        lost.append([error(y, exact), error(dz, exact_dz), error(net[0].weight.grad, exact_dw)])
    assert (np.array(lost[0]) < 5 * np.array(lost[1])).all()
