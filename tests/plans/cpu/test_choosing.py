"""Which kernel computes which convolution."""

from __future__ import annotations

import numpy as np
import pytest

from scratchnet import layers, plans
from scratchnet.plans.cpu import blocks, measuring
from scratchnet.plans.kernel import Group, PlanContext
from scratchnet.plans.registry import kernel_for, kernels_for


def algorithms(*chain, shape, training=True, algorithm="auto"):
    net = layers.Sequential(*chain).train(training)
    plan = plans.compile(net, shape, training=training, algorithm=algorithm)
    return [kernel.algorithm for kernel in plan.kernels]


@pytest.mark.parametrize(
    "kwargs, shape, expected",
    [
        ({}, (2, 8, 8, 4), "winograd4"),
        ({}, (2, 3, 3, 4), "winograd4"),
        ({}, (2, 2, 2, 4), "toeplitz"),
        ({}, (2, 2, 8, 4), "im2col"),
        ({}, (2, 8, 8, 3), "im2col"),  # too few channels
        ({"out_channels": 3}, (2, 8, 8, 8), "im2col"),
        ({"kernel_size": 5, "padding": 2}, (2, 8, 8, 8), "im2col"),
        ({"stride": 2}, (2, 8, 8, 8), "im2col"),
        ({"padding": 0}, (2, 8, 8, 8), "im2col"),
        ({"dtype": "float64"}, (2, 8, 8, 8), "im2col"),
    ],
)
def test_the_shape_decides(kwargs, shape, expected):
    assert algorithms(layers.Conv2d(shape[3], **{"out_channels": 8} | kwargs), shape=shape) == [expected]


@pytest.mark.parametrize(
    "chain, expected",
    [
        ((layers.Conv2d(3, 8), layers.ReLU(), layers.Conv2d(8, 8)), "first_conv"),
        ((layers.Conv2d(3, 8), layers.BatchNorm2d(8), layers.ReLU()), "first_conv"),
        ((layers.Conv2d(5, 8), layers.ReLU(), layers.Conv2d(8, 8)), "winograd4"),  # too many channels
        ((layers.Conv2d(3, 8), layers.MaxPool2d(2), layers.Conv2d(8, 8)), "im2col"),  # pooled
        ((layers.Conv2d(3, 8), layers.Conv2d(8, 8, 1, padding=0)), "im2col"),  # what follows wants no tiles
    ],
)
def test_the_first_convolution_of_a_photograph(chain, expected):
    assert algorithms(*chain, shape=(2, 8, 8, chain[0].in_channels))[0] == expected


def test_a_single_small_image_is_not_worth_winograds_larger_weights():
    chain = layers.Conv2d(16, 16), layers.ReLU(), layers.Conv2d(16, 16)
    assert algorithms(*chain, shape=(1, 8, 8, 16), training=True) == ["winograd4"] * 2
    assert algorithms(*chain, shape=(1, 8, 8, 16), training=False) == ["im2col"] * 2
    assert algorithms(*chain, shape=(9, 8, 8, 16), training=False) == ["winograd4"] * 2


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((8, 224, 224, 64), "winograd6"),
        ((8, 56, 56, 256), "winograd6"),
        ((1, 56, 56, 256), "winograd4"),  # the weights are moved more
        ((128, 32, 32, 64), "winograd4"),  # 36 x 36 pixels of tiles
        ((128, 24, 24, 64), "winograd6"),
        ((128, 14, 14, 64), "winograd4"),
    ],
)
@pytest.mark.parametrize("algorithm", ["auto", "winograd"])
@pytest.mark.parametrize("fast", [False, True], ids=["", "with fast small products"])
def test_tiles_of_six_where_they_save(monkeypatch, shape, expected, algorithm, fast):
    monkeypatch.setattr(measuring, "block_limit", lambda: blocks.SMALL * fast)
    group = Group(conv := layers.Conv2d(shape[3], shape[3]), [conv], ["0"], shape, shape)
    group.kernels = kernels_for(conv, "cpu")
    context = PlanContext(True, np.dtype("float32"), algorithm)
    assert kernel_for([group], 0, context).algorithm == ("winograd4" if fast else expected)


@pytest.mark.parametrize(
    "algorithm, expected",
    [
        ("auto", ["first_conv", "winograd4", "toeplitz", "im2col"]),
        ("im2col", ["im2col"] * 4),
        ("winograd", ["winograd4"] * 3 + ["im2col"]),
        ("winograd4", ["winograd4"] * 3 + ["im2col"]),
        ("winograd6", ["winograd6"] * 3 + ["im2col"]),
        ("toeplitz", ["first_conv", "winograd4", "toeplitz", "im2col"]),
        ("first_conv", ["first_conv", "winograd4", "toeplitz", "im2col"]),
    ],
)
def test_an_algorithm_asked_for_is_used_wherever_it_can_be(algorithm, expected):
    chain = [layers.Conv2d(3, 8), layers.ReLU(), layers.Conv2d(8, 8), layers.MaxPool2d(2)]
    chain += [layers.Conv2d(8, 8), layers.ReLU(), layers.Conv2d(8, 8, 1, padding=0)]
    assert algorithms(*chain, shape=(2, 4, 4, 3), algorithm=algorithm) == expected
