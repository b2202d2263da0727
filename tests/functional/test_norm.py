"""Batch normalisation."""

import numpy as np
import pytest

from scratchnet import functional as F
from scratchnet.functional.sums import channel_sum
from scratchnet.gradcheck import check_layer
from scratchnet.layers import BatchNorm2d


def normal(*shape, seed=0, dtype="float64"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def layer(C, training=True):
    norm = BatchNorm2d(C, dtype="float64").train(training)
    norm.weight.data, norm.bias.data = normal(C, seed=1), normal(C, seed=2)
    norm.running_mean[...] = normal(C, seed=3)
    norm.running_var[...] = normal(C, seed=4) ** 2 + 0.1
    return norm


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 4, 3), (4, 1, 1, 2), (1, 5, 2, 1), (2, 1, 1, 1)])
def test_gradients_agree_with_central_differences(shape, training):
    check_layer(layer(shape[3], training), normal(*shape)).raise_for_failure()


def test_a_batch_is_normalised_with_its_biased_variance():
    x = normal(3, 4, 5, 2) * 3 + 7
    y, cache = F.batch_norm_forward(x, np.ones(2), np.zeros(2), eps=0.0)
    np.testing.assert_allclose(y.mean(axis=(0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(y.var(axis=(0, 1, 2)), 1, atol=1e-12)
    np.testing.assert_allclose(cache.mean, x.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(cache.var, x.var(axis=(0, 1, 2)))


def test_given_statistics_are_used_as_they_are():
    x = normal(2, 3, 3, 2)
    mean, var = np.array([1.0, 2.0]), np.array([4.0, 9.0])
    y, cache = F.batch_norm_forward(x, np.full(2, 2.0), np.full(2, 5.0), mean, var, eps=0.0)
    np.testing.assert_allclose(y, 2 * (x - mean) / np.sqrt(var) + 5, atol=1e-14)
    dx, _, _ = F.batch_norm_backward(np.ones_like(y), cache)
    np.testing.assert_allclose(dx, np.broadcast_to(2 / np.sqrt(var), x.shape))


def test_a_large_mean_with_a_small_variance_keeps_its_digits_in_float32():
    x = (1e3 + 0.01 * normal(32, 8, 8, 2)).astype("float32")
    exact = x.astype("float64")
    ones, zeros = np.ones(2, "float32"), np.zeros(2, "float32")
    y, cache = F.batch_norm_forward(x, ones, zeros)
    expected, exact_cache = F.batch_norm_forward(exact, np.ones(2), np.zeros(2))
    np.testing.assert_allclose(cache.var, exact_cache.var, rtol=1e-2)
    np.testing.assert_allclose(y, expected, atol=0.02)
    dy = normal(*x.shape, seed=1, dtype="float32")
    dx = F.batch_norm_backward(dy, cache)[0]
    expected_dx = F.batch_norm_backward(dy.astype("float64"), exact_cache)[0]
    np.testing.assert_allclose(dx, expected_dx, atol=0.02 * abs(expected_dx).max())


@pytest.mark.parametrize("value", [0.0, 5.0, -1e4])
def test_a_constant_channel_gives_the_bias_and_finite_gradients(value):
    x = np.full((4, 3, 3, 1), value, "float32")
    y, cache = F.batch_norm_forward(x, np.ones(1, "float32"), np.full(1, 0.5, "float32"))
    np.testing.assert_allclose(y, 0.5, atol=1e-5)
    assert all(np.isfinite(g).all() for g in F.batch_norm_backward(normal(*x.shape, dtype="float32"), cache))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("of_batch", [True, False])
def test_dtype_is_preserved_and_inputs_are_not_written_to(dtype, of_batch):
    x, weight, bias = (normal(*s, dtype=dtype) for s in ((2, 3, 3, 2), (2,), (2,)))
    statistics = () if of_batch else (normal(2, dtype=dtype), normal(2, dtype=dtype) ** 2)
    dy = normal(2, 3, 3, 2, seed=1, dtype=dtype)
    for array in (x, weight, bias, dy, *statistics):
        array.flags.writeable = False
    y, cache = F.batch_norm_forward(x, weight, bias, *statistics)
    assert {a.dtype for a in (y, *F.batch_norm_backward(dy, cache))} == {np.dtype(dtype)}
    assert cache.mean.dtype == cache.var.dtype == dtype


@pytest.mark.parametrize("view", [np.asfortranarray, lambda a: a[:, ::-1].copy()[:, ::-1]])
def test_memory_layout_does_not_matter(view):
    x, dy = normal(2, 4, 3, 2), normal(2, 4, 3, 2, seed=1)
    y, cache = F.batch_norm_forward(x, np.ones(2), np.zeros(2))
    y2, cache2 = F.batch_norm_forward(view(x), np.ones(2), np.zeros(2))
    np.testing.assert_allclose(y2, y, atol=1e-13)
    for a, b in zip(F.batch_norm_backward(dy, cache), F.batch_norm_backward(view(dy), cache2), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)


def test_sums_over_a_large_feature_map_keep_their_digits_in_float32():
    x = np.random.default_rng(0).random((64, 48, 48, 3), dtype="float32")
    np.testing.assert_allclose(channel_sum(x), x.sum(axis=(0, 1, 2), dtype="float64"), rtol=1e-6)
