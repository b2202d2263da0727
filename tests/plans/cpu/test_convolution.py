"""What all kernels of a convolution have in common."""

from __future__ import annotations

import pytest

from scratchnet import layers
from tests.fakes.one_layer import assert_plan_equals_layers


@pytest.mark.parametrize("frozen", [["0.weight"], ["0.bias"], ["0.weight", "0.bias"]])
@pytest.mark.parametrize(
    "algorithm, channels, size",
    [
        ("first_conv", 3, 8),
        ("im2col", 3, 8),
        ("winograd4 by rows", 8, 8),
        ("winograd4 by phases", 160, 8),
        ("toeplitz", 8, 2),
    ],
)
def test_the_gradients_of_frozen_parameters_are_not_even_written(algorithm, channels, size, frozen):
    net = layers.Sequential(layers.Conv2d(channels, 160), layers.ReLU(), layers.Conv2d(160, 4))
    name, _, order = algorithm.partition(" ")
    plan = assert_plan_equals_layers(net, (5, size, size, channels), 2, algorithm=name, frozen=frozen)
    assert plan.kernels[0].algorithm == name and plan.kernels[0].describe().startswith(order)
