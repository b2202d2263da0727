"""The loss, its gradient, and running totals."""

import numpy as np
import pytest

from scratchnet import functional as F
from scratchnet.plans.cuda.launch.softmax import add_up, softmax_cross_entropy
from tests.fakes.device_arrays import numbers


@pytest.mark.parametrize("N, K", [(1, 1), (5, 10), (9, 33), (2, 1000)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_cross_entropy(k, N, K, smoothing):
    logits, labels = numbers(N, K) * 5, np.random.default_rng(1).integers(0, K, N)
    expected, cache = F.softmax_cross_entropy_forward(logits.astype("float64"), labels, smoothing)
    losses, correct, dlogits = k.empty(N), k.empty(N), k.empty((N, K))
    softmax_cross_entropy(k.put(logits), k.put(labels), losses, correct, dlogits, label_smoothing=smoothing)
    np.testing.assert_allclose(k.get(losses).mean(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(k.get(dlogits), F.softmax_cross_entropy_backward(cache), rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(k.get(correct), logits.argmax(axis=1) == labels)

    in_place, again = k.put(logits), k.empty(N)
    softmax_cross_entropy(in_place, k.put(labels), again, correct, in_place, label_smoothing=smoothing)
    np.testing.assert_array_equal(k.get(in_place), k.get(dlogits))
    np.testing.assert_array_equal(k.get(again), k.get(losses))


def test_of_equal_logits_the_first_counts_and_none_overflows(k):
    logits = np.zeros((4, 40), "float32")
    logits[1:, [3, 35]] = 1e4
    labels = np.array([0, 3, 35, 4])
    losses, correct = k.empty(4), k.empty(4)
    softmax_cross_entropy(k.put(logits), k.put(labels), losses, correct)
    assert k.get(correct).tolist() == [1, 1, 0, 0]
    np.testing.assert_allclose(k.get(losses), [np.log(40), np.log(2), np.log(2), 1e4 + np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_logit_that_is_not_finite_shows_in_the_total(k, bad):
    logits = np.zeros((3, 10), "float32")
    logits[1, 4] = bad
    losses, correct, totals = k.empty(3), k.empty(3), k.put(np.zeros(3))
    softmax_cross_entropy(k.put(logits), k.put(np.zeros(3, "int64")), losses, correct)
    add_up(losses, correct, totals)
    assert np.isnan(k.get(totals)[0])


@pytest.mark.parametrize("N", [1, 5, 600])
def test_totals_go_on_from_batch_to_batch(k, N):
    losses, correct = np.abs(numbers(N)), (numbers(N, seed=1) > 0).astype("float32")
    totals = k.put(np.array([10.0, 20.0, 30.0]))
    for _ in range(2):
        add_up(k.put(losses), k.put(correct), totals)
    expected = np.array([10, 20, 30]) + 2 * np.array([losses.sum(dtype="float64"), correct.sum(), N])
    np.testing.assert_allclose(k.get(totals), expected, rtol=1e-12)
