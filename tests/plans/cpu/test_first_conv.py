"""The first convolution, of an image with few channels."""

from __future__ import annotations

import pytest

from scratchnet import layers
from tests.fakes.one_layer import assert_plan_equals_layers


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(12, 8), (9, 7)])
@pytest.mark.parametrize("images, workers", [(5, 2), (1, 1), (1, 2), (2, 3), (1, 10)])
@pytest.mark.parametrize("training", [True, False])
def test_first_layer_with_few_channels(channels, size, images, workers, training):
    net = layers.Sequential(layers.Conv2d(channels, 20), layers.ReLU(), layers.Conv2d(20, 8))
    plan = assert_plan_equals_layers(net, (images, *size, channels), workers, training)
    if training or images > 1:  # otherwise there are too few tiles for Winograd's algorithm to follow
        assert [kernel.algorithm for kernel in plan.kernels] == ["first_conv", "winograd4"]
