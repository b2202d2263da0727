"""Batch normalisation."""

from itertools import pairwise

import numpy as np
import pytest

from scratchnet import functional as F
from scratchnet.plans.cuda.launch.epilogue import epilogue, epilogue_pool
from scratchnet.plans.cuda.launch.norm import (
    norm_backward,
    norm_backward_sums,
    norm_finish,
    norm_fold,
    norm_statistics,
)
from scratchnet.plans.cuda.launch.sums import finish_sums, sums_shape
from tests.fakes.device_arrays import numbers, pooled


def statistics(k, x, weight, momentum=0.1, eps=1e-5):
    C = x.shape[-1]
    rows = x.size // C
    partial = k.empty((2, *sums_shape(rows, C)))
    mean, inv_std, scale = (k.empty(C) for _ in range(3))
    running_mean, running_var = k.put(np.zeros(C, "float32")), k.put(np.ones(C, "float32"))
    norm_statistics(k.put(x), partial)
    norm_finish(partial, rows, k.put(weight), mean, inv_std, scale, running_mean, running_var, eps, momentum)
    return mean, inv_std, scale, running_mean, running_var


def check_norm_statistics(k, shape, mean=0.0):
    C = shape[-1]
    x, weight = numbers(*shape) + np.float32(mean), numbers(C, seed=1)
    exact = x.reshape(-1, C).astype("float64")
    found = k.get(*statistics(k, x, weight))
    inv_std = 1 / np.sqrt(exact.var(axis=0) + 1e-5)
    unbiased = exact.var(axis=0, ddof=1)
    expected = exact.mean(axis=0), inv_std, weight * inv_std, 0.1 * exact.mean(axis=0), 0.9 + 0.1 * unbiased
    for a, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 1), (5, 3), (2, 5, 7, 8), (700, 12), (3000, 4), (131, 132)])
def test_statistics_of_a_batch(k, shape):
    check_norm_statistics(k, shape)


def test_statistics_where_the_mean_is_large_against_the_deviation(k):
    """E[x^2] - E[x]^2 in float32 would have no digit left."""
    check_norm_statistics(k, (700, 4), mean=3000.0)


def check_norm(k, shape, relu=False, pool=False):
    """The normalisation's group forward and backward, against functional/ in float64."""
    C = shape[-1]
    x, weight, bias = numbers(*shape) * 2 + 1, numbers(C, seed=1), numbers(C, seed=2)
    wide = [array.astype("float64") for array in (x, weight, bias)]
    v, cache = F.batch_norm_forward(*wide)
    expected, winner, backward = pooled(v, 0.0, None, None, relu) if pool else (v, None, lambda dy: dy)
    if relu and not pool:
        expected, of_relu = F.relu_forward(v)
        backward = lambda dy: F.relu_backward(dy, of_relu)  # noqa: E731
    dy = numbers(*expected.shape, seed=3)
    expected_dx, expected_dweight, expected_dbias = F.batch_norm_backward(
        backward(dy.astype("float64")), cache
    )

    mean, inv_std, scale, _, _ = statistics(k, x, weight)
    y, there, g = k.empty(expected.shape), k.put(x), k.put(dy)
    passed = {}
    if pool:
        passed["code"] = k.empty(expected.shape, "uint8")
        epilogue_pool(there, y, passed["code"], k.put(bias), mean=mean, scale=scale, relu=relu)
    else:
        epilogue(there, y, k.put(bias), mean=mean, scale=scale, relu=relu)
        if relu:
            passed["y"] = y
    np.testing.assert_allclose(k.get(y), expected, rtol=1e-4, atol=1e-5)

    partial = k.empty((2, *sums_shape(dy.size // C, C)))
    dbias, dweight, dx = k.empty(C), k.empty(C), k.empty(shape)
    norm_backward_sums(g, there, mean, inv_std, partial, **passed)
    finish_sums(partial[0], dbias)
    finish_sums(partial[1], dweight)
    norm_backward(g, there, mean, inv_std, scale, dweight, dbias, dx, **passed)
    np.testing.assert_allclose(k.get(dbias), expected_dbias, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(k.get(dweight), expected_dweight, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(k.get(dx), expected_dx, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 4, 4, 8), (1, 5, 7, 3), (5, 9, 4, 4), (2, 6, 3, 132)])
@pytest.mark.parametrize("relu, pool", [(False, False), (True, False), (True, True), (False, True)])
def test_norm_forward_and_backward(k, shape, relu, pool):
    check_norm(k, shape, relu, pool)


def test_norm_backward_in_place(k):
    x, weight, dy = numbers(70, 8), numbers(8, seed=1), numbers(70, 8, seed=2)
    mean, inv_std, scale, _, _ = statistics(k, x, weight)
    vectors = k.put(numbers(8, seed=3)), k.put(numbers(8, seed=4))
    results = []
    for out in (k.empty((70, 8)), g := k.put(dy), there := k.put(x)):
        a, b = (out if out is g else k.put(dy)), (out if out is there else k.put(x))
        norm_backward(a, b, mean, inv_std, scale, *vectors, out)
        results.append(k.get(out))
    for first, second in pairwise(results):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("C", [1, 8, 300])
def test_norm_folded_into_a_convolution(k, C):
    z, conv_bias, weight, bias, running_mean = (
        numbers(*s, C, seed=i) for i, s in enumerate([(6,), (), (), (), ()])
    )
    running_var = numbers(C, seed=7) ** 2
    mean, scale, y = k.empty(C), k.empty(C), k.empty((6, C))
    there = [k.put(v) for v in (weight, running_mean, running_var)]
    for of_conv in (conv_bias, None):
        norm_fold(*there, None if of_conv is None else k.put(of_conv), mean, scale, 1e-5)
        epilogue(k.put(z), y, k.put(bias), mean=mean, scale=scale, relu=False)
        of_product = z if of_conv is None else z + of_conv
        expected, _ = F.batch_norm_forward(of_product, weight, bias, running_mean, running_var)
        np.testing.assert_allclose(k.get(y), expected, rtol=1e-4, atol=1e-4)


FAULTS = {
    "barrier missing between the channels of a pack": (
        "norm.cu", "        __syncthreads();  // the channel before this one may still be read\n",
        "", lambda k: check_norm_statistics(k, (700, 12)),
    ),
    "barrier missing where partial statistics are joined": (
        "norm.cu", "met[threadIdx.y][threadIdx.x] = mine;\n    __syncthreads();",
        "met[threadIdx.y][threadIdx.x] = mine;", lambda k: check_norm_statistics(k, (700, 12)),
    ),
    "the gradient does not flow through the variance": (
        "norm.cu", "- slope.at[i] * (x - mean.at[i])",
        "", lambda k: check_norm(k, (2, 4, 4, 8)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(plant, fault):
    plant(*FAULTS[fault])
