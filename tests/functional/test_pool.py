"""Max pooling and global average pooling."""

import numpy as np
import pytest

from scratchnet import functional as F
from scratchnet.gradcheck import check_layer
from scratchnet.layers import GlobalAvgPool2d, MaxPool2d


def normal(*shape, seed=0, dtype="float64"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def by_loops(x, K, S):
    """Max pooling and its gradient by the definition: the first of equal values wins, as argmax says."""
    N, H, W, C = x.shape
    OH, OW = (H - K) // S + 1, (W - K) // S + 1
    y = np.empty((N, OH, OW, C), x.dtype)
    dy = normal(*y.shape, seed=9).astype(x.dtype)
    dx = np.zeros_like(x)
    for n, oh, ow, c in np.ndindex(*y.shape):
        window = x[n, oh * S : oh * S + K, ow * S : ow * S + K, c]
        i, j = divmod(int(window.argmax()), K)
        y[n, oh, ow, c] = window[i, j]
        dx[n, oh * S + i, ow * S + j, c] += dy[n, oh, ow, c]
    return y, dy, dx


# N, H, W, C, kernel, stride: H != W, rounding down, stride above and below the kernel
CASES = [
    (2, 4, 6, 3, 2, 2),
    (1, 5, 7, 1, 2, 2),
    (2, 7, 6, 2, 3, 2),
    (1, 5, 5, 2, 3, 1),
    (2, 7, 8, 1, 2, 3),
    (1, 6, 5, 2, 1, 1),
    (1, 6, 5, 2, 1, 3),
    (2, 5, 5, 2, 5, 5),
    (1, 17, 18, 1, 16, 1),
    (1, 9, 3, 1, 2, 40),
]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_max_pooling_equals_the_loops_also_with_ties(case, ties):
    N, H, W, C, K, S = case
    x = normal(N, H, W, C)
    x = np.maximum(np.round(x), 0) if ties else x
    expected, dy, expected_dx = by_loops(x, K, S)
    y, cache = F.max_pool2d_forward(x, K, S)
    assert (y == expected).all()
    np.testing.assert_allclose(F.max_pool2d_backward(dy, cache), expected_dx, atol=1e-14)


@pytest.mark.parametrize("case", CASES)
def test_max_pooling_agrees_with_central_differences(case):
    N, H, W, C, K, S = case
    check_layer(MaxPool2d(K, S), normal(N, H, W, C)).raise_for_failure()


def test_of_equal_values_only_the_first_gets_the_gradient():
    y, cache = F.max_pool2d_forward(np.zeros((1, 4, 4, 1)))
    dx = F.max_pool2d_backward(np.ones((1, 2, 2, 1)), cache)
    assert dx[0, :, :, 0].tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    x = np.zeros((1, 2, 2, 1))
    x[0, 0, 1] = x[0, 1, 0] = 5.0
    _, cache = F.max_pool2d_forward(x)
    assert F.max_pool2d_backward(np.ones((1, 1, 1, 1)), cache)[0, :, :, 0].tolist() == [[0, 1], [0, 0]]


def test_a_pixel_in_several_windows_adds_up_what_each_gives():
    x = np.zeros((1, 3, 3, 1))
    x[0, 1, 1] = 1.0
    _, cache = F.max_pool2d_forward(x, 2, 1)
    dx = F.max_pool2d_backward(np.ones((1, 2, 2, 1)), cache)
    assert dx[0, 1, 1, 0] == 4 and dx.sum() == 4


def test_stride_is_the_kernel_size_by_default():
    assert F.max_pool2d_forward(np.zeros((1, 9, 9, 1)), 3)[0].shape == (1, 3, 3, 1)


def test_negative_values_and_minus_infinity_are_pooled():
    x = np.full((1, 2, 2, 1), -np.inf)
    assert F.max_pool2d_forward(x)[0] == -np.inf
    x[0, 1, 1] = -3.0
    y, cache = F.max_pool2d_forward(x)
    assert y == -3.0 and F.max_pool2d_backward(np.ones_like(y), cache)[0, 1, 1] == 1


@pytest.mark.parametrize("position", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_nan_comes_through_as_in_pytorch(position):
    x = normal(1, 2, 2, 1)
    x[0][position] = np.nan
    assert np.isnan(F.max_pool2d_forward(x)[0]).all()


def test_the_cache_is_one_byte_a_window_and_not_the_input():
    x = normal(2, 8, 8, 4)
    y, cache = F.max_pool2d_forward(x)
    arrays = [part for part in cache if isinstance(part, np.ndarray)]
    assert [part.nbytes for part in arrays] == [y.size]


@pytest.mark.parametrize("shape", [(2, 3, 4, 2), (1, 1, 1, 1), (3, 5, 1, 2)])
def test_global_average_agrees_with_central_differences_and_the_mean(shape):
    x = normal(*shape)
    np.testing.assert_allclose(F.global_avg_pool2d_forward(x)[0], x.mean(axis=(1, 2)), atol=1e-14)
    check_layer(GlobalAvgPool2d(), x).raise_for_failure()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtype_is_preserved_and_inputs_are_not_written_to(dtype):
    x = normal(2, 4, 4, 2, dtype=dtype)
    x.flags.writeable = False
    for forward, backward in (
        (F.max_pool2d_forward, F.max_pool2d_backward),
        (F.global_avg_pool2d_forward, F.global_avg_pool2d_backward),
    ):
        y, cache = forward(x)
        y.flags.writeable = False
        dx = backward(y, cache)
        assert y.dtype == dx.dtype == dtype and dx.shape == x.shape


@pytest.mark.parametrize("view", [np.asfortranarray, lambda a: a[:, ::-1].copy()[:, ::-1]])
def test_memory_layout_does_not_matter(view):
    x = normal(2, 7, 6, 2)
    expected, dy, expected_dx = by_loops(x, 3, 2)
    y, cache = F.max_pool2d_forward(view(x), 3, 2)
    assert (y == expected).all()
    np.testing.assert_allclose(F.max_pool2d_backward(view(dy), cache), expected_dx, atol=1e-14)
    np.testing.assert_allclose(F.global_avg_pool2d_forward(view(x))[0], x.mean(axis=(1, 2)), atol=1e-14)


def test_pooling_with_kernel_one_is_not_the_input_itself():
    x = normal(1, 2, 2, 1)
    y, _ = F.max_pool2d_forward(x, 1)
    y += 1
    assert not (y == x).any()
