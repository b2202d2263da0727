"""ReLU."""

import numpy as np
import pytest

from scratchnet import functional as F
from scratchnet.gradcheck import check_layer
from scratchnet.layers import ReLU


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 4, 5), (2, 1, 2, 1, 2)])
def test_relu_of_any_rank_agrees_with_central_differences(shape):
    check_layer(ReLU(), np.random.default_rng(1).standard_normal(shape)).raise_for_failure()


def test_relu_keeps_what_is_positive():
    y, cache = F.relu_forward(np.array([-2.0, -0.0, 0.0, 3.0]))
    assert y.tolist() == [0, 0, 0, 3]
    assert F.relu_backward(np.array([1.0, 2.0, 3.0, 4.0]), cache).tolist() == [0, 0, 0, 4]


def test_relu_passes_nan_and_infinity_on():
    y, _ = F.relu_forward(np.array([np.nan, np.inf, -np.inf]))
    assert np.isnan(y[0]) and y[1] == np.inf and y[2] == 0


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_relu_preserves_dtype_and_writes_to_no_input(dtype):
    x = np.array([[-1.0, 2.0]], dtype)
    x.flags.writeable = False
    y, cache = F.relu_forward(x)
    dy = np.array([[3.0, 4.0]], dtype)
    dy.flags.writeable = False
    dx = F.relu_backward(dy, cache)
    assert y.dtype == dx.dtype == dtype and dx.tolist() == [[0, 4]]
    assert not np.shares_memory(x, y) and not np.shares_memory(dx, dy)


def test_relu_of_strided_arrays():
    x = np.arange(-6.0, 6.0).reshape(3, 4)
    for view in (x.T, x[::-1, ::2], np.asfortranarray(x)):
        y, cache = F.relu_forward(view)
        assert (y == np.where(view > 0, view, 0)).all()
        assert (F.relu_backward(view, cache) == y).all()
