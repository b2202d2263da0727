"""Convolution as one matrix product, for any kernel, stride, padding and number of workers."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scratchnet import layers
from tests.fakes.one_layer import assert_accurate, assert_plan_equals_layers, one_layer


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


@given(convolutions(), st.integers(1, 5), st.booleans(), st.booleans())
@example(((1, 3, 2), (1, 4, 1, 3)), 2, False, False)
@example(((2, 3, 3), (1, 2, 1, 3)), 3, False, False)
@settings(max_examples=150, deadline=None)
def test_any_convolution_on_any_number_of_workers_is_that_of_the_layers(conv, workers, training, pool):
    (kernel_size, stride, padding), shape = conv
    conv = layers.Conv2d(3, 2, kernel_size, stride=stride, padding=padding)
    pooled = pool and min(conv.output_shape(shape)[1:3]) >= 2
    net = layers.Sequential(conv, layers.ReLU(), *[layers.MaxPool2d(2)] * pooled)
    assert_plan_equals_layers(net, shape, workers, training, algorithm="im2col")
