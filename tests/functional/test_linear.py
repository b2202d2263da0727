"""The fully connected layer."""

import numpy as np
import pytest

from scratchnet import functional as F
from scratchnet.gradcheck import check_layer
from scratchnet.layers import Linear


def normal(*shape, seed=0, dtype="float64"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("N", "I", "O"), [(1, 1, 1), (4, 3, 2), (1, 5, 3), (3, 1, 4), (2, 4, 1)])
def test_gradients_agree_with_central_differences(N, I, O, bias):
    check_layer(Linear(I, O, bias, init="pytorch"), normal(N, I)).raise_for_failure()


def test_forward_is_the_sum_of_products():
    x, weight, bias = normal(3, 4), normal(4, 2, seed=1), normal(2, seed=2)
    expected = [[sum(x[n, i] * weight[i, o] for i in range(4)) + bias[o] for o in range(2)] for n in range(3)]
    np.testing.assert_allclose(F.linear_forward(x, weight, bias)[0], expected, atol=1e-14)


def test_the_gradient_of_the_input_can_be_left_out():
    y, cache = F.linear_forward(normal(3, 4), normal(4, 2), normal(2))
    dx, dweight, dbias = F.linear_backward(y, cache, need_dx=False)
    full = F.linear_backward(y, cache)
    assert dx is None and (dweight == full[1]).all() and (dbias == full[2]).all()


def test_without_bias_there_is_no_gradient_of_one():
    y, cache = F.linear_forward(normal(3, 4), normal(4, 2))
    assert F.linear_backward(y, cache)[2] is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_preserved_and_inputs_are_not_written_to(dtype):
    arrays = normal(3, 4, dtype=dtype), normal(4, 2, dtype=dtype), normal(2, dtype=dtype)
    dy = normal(3, 2, dtype=dtype)
    for array in (*arrays, dy):
        array.flags.writeable = False
    y, cache = F.linear_forward(*arrays)
    assert {a.dtype for a in (y, *F.linear_backward(dy, cache))} == {np.dtype(dtype)}


@pytest.mark.parametrize("view", [np.asfortranarray, lambda a: a[::-1].copy()[::-1]])
def test_memory_layout_does_not_matter(view):
    x, weight, dy = normal(3, 4), normal(4, 2), normal(3, 2)
    y, cache = F.linear_forward(x, weight)
    y2, cache2 = F.linear_forward(view(x), view(weight))
    np.testing.assert_allclose(y2, y, atol=1e-14)
    for a, b in zip(F.linear_backward(dy, cache)[:2], F.linear_backward(view(dy), cache2)[:2], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-14)
