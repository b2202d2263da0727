"""Softmax and cross-entropy."""

import numpy as np
import pytest

from scratchnet import functional as F
from scratchnet.gradcheck import check_network
from scratchnet.layers import Sequential
from scratchnet.losses import SoftmaxCrossEntropy


def normal(*shape, seed=0, dtype="float64"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize(("N", "K"), [(1, 1), (1, 2), (5, 3), (3, 10)])
def test_gradients_agree_with_central_differences(N, K, smoothing):
    labels = np.random.default_rng(1).integers(0, K, N)
    check_network(
        Sequential(), SoftmaxCrossEntropy(smoothing), normal(N, K), labels, tier="elements"
    ).raise_for_failure()


def test_probabilities_are_those_of_the_definition():
    z = normal(4, 5)
    p = F.softmax(z)
    np.testing.assert_allclose(p, np.exp(z) / np.exp(z).sum(axis=1, keepdims=True), rtol=1e-13)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-14)
    assert F.softmax(normal(2, 3, 4)).shape == (2, 3, 4)


def test_loss_is_the_mean_of_minus_log_p():
    z, labels = normal(4, 5), np.array([0, 4, 2, 2])
    loss, _ = F.softmax_cross_entropy_forward(z, labels)
    assert float(loss) == pytest.approx(-np.log(F.softmax(z)[np.arange(4), labels]).mean(), rel=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient_of_the_definition_with_smoothing(smoothing):
    z, labels = normal(4, 5), np.array([0, 4, 2, 2])
    t = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
    loss, cache = F.softmax_cross_entropy_forward(z, labels, smoothing)
    assert float(loss) == pytest.approx(-(t * np.log(F.softmax(z))).sum(axis=1).mean(), rel=1e-13)
    dlogits = F.softmax_cross_entropy_backward(cache)
    np.testing.assert_allclose(dlogits, (F.softmax(z) - t) / 4, atol=1e-15)
    np.testing.assert_allclose(dlogits.sum(axis=1), 0, atol=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1e4, -1e4, 1e30])
def test_huge_logits_overflow_nothing(size, dtype):
    z = np.array([[size, 0.0, -size], [size, size, size], [0.0, 0.0, size]], dtype)
    labels = np.array([0, 1, 0])
    for smoothing in (0.0, 0.1):
        loss, cache = F.softmax_cross_entropy_forward(z, labels, smoothing)
        dlogits = F.softmax_cross_entropy_backward(cache)
        assert np.isfinite(loss) and np.isfinite(dlogits).all() and np.isfinite(F.softmax(z)).all()
        assert loss.dtype == dlogits.dtype == dtype
    np.testing.assert_allclose(F.softmax(z).sum(axis=1), 1, rtol=1e-6)


def test_a_loss_of_ten_thousand_is_exact():
    loss, cache = F.softmax_cross_entropy_forward(np.array([[1e4, 0.0]], "float32"), np.array([1]))
    assert float(loss) == 1e4
    assert F.softmax_cross_entropy_backward(cache).tolist() == [[1.0, -1.0]]


def test_inputs_are_not_written_to_and_backward_may_be_called_twice():
    z, labels = normal(3, 4), np.array([0, 1, 2])
    z.flags.writeable = labels.flags.writeable = False
    _, cache = F.softmax_cross_entropy_forward(z, labels, 0.1)
    assert (F.softmax_cross_entropy_backward(cache) == F.softmax_cross_entropy_backward(cache)).all()


@pytest.mark.parametrize("kind", ["uint8", "int32", "int64"])
def test_labels_of_any_integer_type(kind):
    loss, _ = F.softmax_cross_entropy_forward(np.zeros((3, 10)), np.array([1, 9, 0], kind))
    assert float(loss) == pytest.approx(np.log(10))
