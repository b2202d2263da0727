"""Convolution as one matrix product, for any kernel, stride, padding and number of workers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scratchnet import layers, plans
from tests.fakes.one_layer import EPSILON, assert_accurate, error, one_layer


@pytest.mark.parametrize(
    "kwargs",
    [
        {"kernel_size": 5, "padding": 2},
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": 1, "padding": 0},
        {"kernel_size": 3, "padding": 0, "bias": False},
        {"kernel_size": 2, "stride": 3, "padding": 1},
    ],
)
def test_im2col_takes_any_kernel_stride_and_padding(kwargs):
    plan, *results = one_layer(layers.Conv2d(6, 10, **kwargs), (5, 11, 14, 6), relu=True)
    assert plan.kernels[0].algorithm == "im2col"
    assert_accurate(*results)


@pytest.mark.parametrize("workers", ["1", "2", "5"])
@pytest.mark.parametrize(
    "kwargs, shape",
    [
        ({}, (1, 11, 14, 6)),
        ({}, (1, 2, 9, 6)),
        ({"kernel_size": 5, "padding": 2}, (3, 8, 7, 6)),
        ({"kernel_size": 3, "stride": 2}, (2, 9, 9, 6)),
        ({"kernel_size": 3, "padding": 0}, (1, 9, 8, 6)),
    ],
)
@pytest.mark.parametrize("pool", [False, True])
def test_few_images_are_divided_by_rows(monkeypatch, kwargs, shape, pool, workers):
    monkeypatch.setenv("SCRATCHNET_THREADS", workers)
    conv = layers.Conv2d(6, 10, **kwargs)
    pooling = [layers.MaxPool2d(2)] if pool else []
    net = layers.Sequential(conv, layers.ReLU(), *pooling, layers.Conv2d(10, 4)).eval()
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    plan = plans.compile(net, shape, algorithm="im2col")
    assert error(plan.forward(x), net.forward(x)) < EPSILON


def test_im2col_on_request():
    plan, *results = one_layer(layers.Conv2d(64, 32), (3, 8, 8, 64), relu=True, pool=True, algorithm="im2col")
    assert plan.kernels[0].algorithm == "im2col"
    assert_accurate(*results)


@st.composite
def convolutions(draw):
    """Draw a convolution, also one whose patches lie wholly in the padding, and an input that it takes."""
    kernel_size, stride, padding = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(0, 4))
    least = max(1, kernel_size - 2 * padding)
    N, H, W = (
        draw(st.integers(1, 3)),
        draw(st.integers(least, least + 5)),
        draw(st.integers(least, least + 5)),
    )
    return (kernel_size, stride, padding), (N, H, W, 3)


@given(convolutions(), st.integers(1, 4), st.booleans(), st.booleans())
@example(((1, 3, 2), (1, 4, 1, 3)), 2, False, False)
@example(((2, 3, 3), (1, 2, 1, 3)), 3, False, False)
@settings(max_examples=60, deadline=None)
def test_any_convolution_on_any_number_of_workers_is_that_of_the_layers(conv, workers, training, pool):
    (kernel_size, stride, padding), shape = conv
    rest = [layers.ReLU()]
    conv = layers.Conv2d(3, 2, kernel_size, stride=stride, padding=padding)
    if pool and min(conv.output_shape(shape)[1:3]) >= 2:
        rest.append(layers.MaxPool2d(2))
    rng = np.random.default_rng(0)
    conv.bias.data[...] = rng.standard_normal(2)
    net = layers.Sequential(conv, *rest)
    net.train(training)
    x = rng.standard_normal(shape).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCRATCHNET_THREADS", str(workers))
        plan = plans.compile(net, shape, training=training, algorithm="im2col")
        y = plan.forward(x)
        np.testing.assert_allclose(y, net.forward(x), rtol=1e-5, atol=1e-6)
        if training:
            dy = rng.standard_normal(y.shape).astype(np.float32)
            expected = [net.backward(dy), *(p.grad.copy() for p in net.parameters().values())]
            got = [plan.backward(dy, need_input_gradient=True), *(p.grad for p in net.parameters().values())]
            for a, b in zip(got, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
