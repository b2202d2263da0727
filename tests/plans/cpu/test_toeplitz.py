"""Convolutions of 2 x 2 pixels by a Toeplitz matrix."""

from __future__ import annotations

import numpy as np
import pytest

from scratchnet import layers
from scratchnet.plans.cpu import toeplitz
from tests.fakes.one_layer import assert_accurate, one_layer


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("images", [1, 2, 7])
def test_toeplitz_is_accurate_forward_and_backward(images, pool):
    plan, *results = one_layer(layers.Conv2d(96, 80), (images, 2, 2, 96), relu=pool, pool=pool)
    assert plan.kernels[0].algorithm == "toeplitz"
    assert_accurate(*results)


def test_toeplitz_matrices_compute_a_padded_convolution_of_two_pixels():
    x, g = np.array([2.0, 5.0]), np.array([3.0, 7.0, 11.0])
    expand, contract = np.array([[1, 1], [0, 1], [1, 0]]), np.array([[1, 1, 0], [1, 0, 1]])
    y = contract @ ((toeplitz.K @ g) * (expand @ x))
    np.testing.assert_allclose(y, np.correlate(np.pad(x, 1), g, "valid"))
