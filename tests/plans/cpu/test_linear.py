"""Fully connected layers, large and small, of many images and of one."""

from __future__ import annotations

import numpy as np
import pytest

from scratchnet import layers, plans
from scratchnet.plans.cpu import measuring
from tests.fakes.one_layer import EPSILON, error


# Each of these batches is multiplied in another way, forward, or backward in dW or dx.
@pytest.mark.parametrize("rows", [1, 2, 8, 9, 16, 17, 32, 33, 100])
@pytest.mark.parametrize("features", [4096, 1000, 37])
@pytest.mark.parametrize("blocks_are_faster", [True, False])
def test_linear(monkeypatch, rows, features, blocks_are_faster):
    monkeypatch.setattr(measuring, "block_limit", lambda: 1_000_000 if blocks_are_faster else 0)
    net = layers.Sequential(layers.Linear(features, 530), layers.ReLU())
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, features)).astype(np.float32)
    dy = rng.standard_normal((rows, 530)).astype(np.float32)
    plan = plans.compile(net, x.shape, training=True)
    y, dx = plan.forward(x), plan.backward(dy, need_input_gradient=True)
    weight, bias = (p.data.astype(np.float64) for p in net.parameters().values())
    exact = np.maximum(x @ weight + bias, 0)
    dz = dy * (exact > 0)
    assert error(y, exact) < 1e-6
    assert error(dx, dz @ weight.T) < 1e-6
    assert error(net[0].weight.grad, x.T.astype(np.float64) @ dz) < 1e-6
    assert error(net[0].bias.grad, dz.sum(axis=0)) < 1e-6


@pytest.mark.parametrize("workers", ["1", "2", "3"])
@pytest.mark.parametrize("features", [8192, 4099])  # 4099 is prime
@pytest.mark.parametrize("bias", [True, False])
def test_a_large_linear_layer_of_one_image(monkeypatch, features, bias, workers):
    monkeypatch.setenv("SCRATCHNET_THREADS", workers)
    rng = np.random.default_rng(0)
    x = np.abs(rng.standard_normal((1, features))).astype(np.float32)
    linear = layers.Linear(features, 1030, bias=bias)
    plan = plans.compile(layers.Sequential(linear).eval(), x.shape)
    assert plan.kernels[0].by_rows
    divided = None not in plan.kernels[0].blocks  # then not all rows are added up one by one
    exact = x.astype(np.float64) @ linear.weight.data + (linear.bias.data if bias else 0)
    assert error(plan.forward(x), exact) < (3e-7 if divided else 1e-6)

    dy = rng.standard_normal((1, 1030)).astype(np.float32)
    results = []
    for compiled in True, False:
        net = layers.Sequential(
            layers.Linear(features, 1030, bias=bias, rng=np.random.default_rng(1)),
            layers.ReLU(),
            layers.Dropout(0.5, rng=np.random.default_rng(2)),
        )
        engine = plans.compile(net, x.shape, training=True) if compiled else net
        y = engine.forward(x)
        engine.backward(dy)
        results.append([y, *(p.grad.copy() for p in net.parameters().values())])
    for got, expected in zip(*results, strict=True):
        assert expected.any() and error(got, expected) < EPSILON
