"""Small networks through a plan, and the same by layers or in float64: what tests of kernels compare."""

from __future__ import annotations

import numpy as np
import pytest

from scratchnet import functional as F
from scratchnet import layers, plans

EPSILON = 1e-5  # relative error of one layer, which the project allows


def error(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def one_layer(conv, shape, *, pool=False, relu=False, algorithm="auto", seed=0):
    """Run one convolution (and what follows) through a plan and in float64; return both sides' results."""
    rng = np.random.default_rng(seed)
    rest = [layers.ReLU()] * relu + [layers.MaxPool2d(2)] * pool
    net = layers.Sequential(conv, *rest)
    x = rng.standard_normal(shape).astype(np.float32)
    if conv.bias is not None:
        conv.bias.data[...] = rng.standard_normal(conv.bias.shape)
    plan = plans.compile(net, shape, training=True, algorithm=algorithm)
    y = plan.forward(x)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    dx = plan.backward(dy, need_input_gradient=True)
    got = {"y": y, "dx": dx} | {name: p.grad.copy() for name, p in net.parameters().items()}

    bias = None if conv.bias is None else conv.bias.data.astype(float)
    z, cache = F.conv2d_forward(
        x.astype(float), conv.weight.data.astype(float), bias, conv.stride, conv.padding
    )
    caches = []
    if relu:
        z, kept = F.relu_forward(z)
        caches.append((F.relu_backward, kept))
    if pool:
        z, kept = F.max_pool2d_forward(z, 2)
        caches.append((F.max_pool2d_backward, kept))
    g = dy.astype(float)
    for backward, kept in reversed(caches):
        g = backward(g, kept)
    dx, dweight, dbias = F.conv2d_backward(g, cache)
    expected = {"y": z, "dx": dx, "0.weight": dweight}
    if bias is not None:
        expected["0.bias"] = dbias
    return plan, got, expected


def assert_accurate(got, expected):
    assert got.keys() == expected.keys()
    for name in expected:
        assert error(got[name], expected[name]) < EPSILON, name


def assert_plan_equals_layers(net, shape, workers, training=True, algorithm="auto", frozen=()):
    """Compare a plan on some workers with its layers, forward and, in training, backward; return the plan."""
    for prefix in frozen:
        net.freeze(prefix)
    rng = np.random.default_rng(0)
    for name, parameter in net.train(training).parameters().items():
        if name.endswith("bias"):
            parameter.data[...] = rng.standard_normal(parameter.shape)
    x = rng.standard_normal(shape).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCRATCHNET_THREADS", str(workers))
        plan = plans.compile(net, shape, training=training, algorithm=algorithm)
        got, expected = {"y": plan.forward(x)}, {"y": net.forward(x)}
        if training:
            dy = rng.standard_normal(plan.output_shape).astype(np.float32)
            expected["dx"] = net.backward(dy)
            learning = {name: p for name, p in net.parameters().items() if p.trainable}
            expected |= {name: p.grad.copy() for name, p in learning.items()}
            for p in net.parameters().values():
                p.grad_view[...] = np.nan
            got["dx"] = plan.backward(dy, need_input_gradient=True)
            got |= {name: p.grad for name, p in learning.items()}
            for name, p in net.parameters().items():
                assert p.trainable or np.isnan(p.grad_view).all(), f"{name} is frozen"
    for name, value in expected.items():
        scale = max(1.0, np.abs(value).max())
        np.testing.assert_allclose(got[name] / scale, value / scale, rtol=0, atol=EPSILON, err_msg=name)
    return plan
