"""Dropout."""

import numpy as np
import pytest

from scratchnet import functional as F
from scratchnet.gradcheck import check_layer
from scratchnet.layers import Dropout


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 2, 2)])
def test_gradients_agree_with_central_differences(shape, p):
    check_layer(Dropout(p), np.random.default_rng(0).standard_normal(shape)).raise_for_failure()


def test_what_is_kept_is_scaled_and_the_rest_is_zero():
    keep = np.array([True, False, True, True])
    y, cache = F.dropout_forward(np.array([1.0, 2.0, 3.0, -4.0]), keep, 0.75)
    assert y.tolist() == [4, 0, 12, -16]
    assert F.dropout_backward(np.ones(4), cache).tolist() == [4, 0, 4, 4]


def test_everything_dropped_is_zero_and_not_nan():
    y, cache = F.dropout_forward(np.ones(3), np.zeros(3, bool), 1.0)
    assert y.tolist() == [0, 0, 0] and F.dropout_backward(np.ones(3), cache).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtype_is_preserved_and_inputs_are_not_written_to(dtype):
    x, keep = np.ones((2, 3), dtype), np.ones((2, 3), bool)
    x.flags.writeable = keep.flags.writeable = False
    y, cache = F.dropout_forward(x, keep, 0.5)
    dx = F.dropout_backward(x, cache)
    assert y.dtype == dx.dtype == dtype and (y == 2).all() and (dx == 2).all()


def test_expectation_is_kept():
    layer = Dropout(0.3, rng=np.random.default_rng(1))
    assert layer.forward(np.ones((400, 500), "float32")).mean() == pytest.approx(1.0, abs=0.01)
