"""Softmax cross-entropy at the public door: value, gradient, and what it refuses."""

import numpy as np
import pytest

from scratchnet.losses import SoftmaxCrossEntropy, balanced_class_weights


def numeric_gradient(function, x, h=1e-6):
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += h
        down[i] -= h
        gradient[i] = (function(up) - function(down)) / (2 * h)
    return gradient


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_gradient_is_that_of_the_value(smoothing):
    rng = np.random.default_rng(0)
    logits, labels = 3 * rng.standard_normal((4, 5)), rng.integers(0, 5, 4)
    loss = SoftmaxCrossEntropy(smoothing)
    numeric = numeric_gradient(lambda z: float(loss.forward(z, labels)), logits)
    loss.forward(logits, labels)
    np.testing.assert_allclose(loss.backward(), numeric, atol=1e-8)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_value_and_gradient_are_pytorchs(smoothing, scale, weighted):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(1)
    logits, labels = (scale * rng.standard_normal((6, 10))).astype("float32"), rng.integers(0, 10, 6)
    weights = rng.uniform(0.1, 9, 10) if weighted else None
    loss = SoftmaxCrossEntropy(smoothing, weights)
    value = loss.forward(logits, labels)
    z = torch.tensor(logits, requires_grad=True)
    how = {"weight": torch.tensor(weights, dtype=torch.float32)} if weighted else {}
    reference = torch.nn.functional.cross_entropy(z, torch.tensor(labels), label_smoothing=smoothing, **how)
    reference.backward()
    assert float(value) == pytest.approx(reference.item(), rel=1e-6)
    np.testing.assert_allclose(loss.backward(), z.grad.numpy(), atol=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_weighted_gradient_is_the_central_difference(smoothing):
    rng = np.random.default_rng(2)
    logits, labels = rng.standard_normal((5, 4)), rng.integers(0, 4, 5)
    loss = SoftmaxCrossEntropy(smoothing, [0.5, 1, 2, 7])
    numeric = np.empty_like(logits)
    for place in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[place] = 1e-6
        numeric[place] = (loss.forward(logits + step, labels) - loss.forward(logits - step, labels)) / 2e-6
    loss.forward(logits, labels)
    np.testing.assert_allclose(loss.backward(), numeric, atol=1e-8)


def test_equal_weights_are_none_and_balanced_ones_let_each_class_count_alike():
    rng = np.random.default_rng(3)
    labels = np.array([0] * 7 + [1] * 2 + [3])
    logits = rng.standard_normal((10, 4))
    plain = SoftmaxCrossEntropy().forward(logits, labels)
    np.testing.assert_allclose(SoftmaxCrossEntropy(class_weights=[3] * 4).forward(logits, labels), plain)
    weights = balanced_class_weights(labels, 4)
    np.testing.assert_allclose(np.bincount(labels, weights[labels], 4), [10 / 3, 10 / 3, 0, 10 / 3])
    each = [SoftmaxCrossEntropy().forward(logits[labels == k], labels[labels == k]) for k in (0, 1, 3)]
    np.testing.assert_allclose(SoftmaxCrossEntropy(0, weights).forward(logits, labels), np.mean(each))


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, float("inf")], [[1, 2]], 3.0])
def test_impossible_class_weights_are_refused(weights):
    with pytest.raises(ValueError, match="class_weights must be finite numbers above zero"):
        SoftmaxCrossEntropy(class_weights=weights)


def test_class_weights_of_another_number_of_classes_are_refused():
    with pytest.raises(ValueError, match="2 class_weights for logits of 3 classes"):
        SoftmaxCrossEntropy(class_weights=[1, 2]).forward(np.zeros((2, 3)), np.array([0, 1]))


@pytest.mark.parametrize("weights", [None, [1, 2, 3]])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_value_and_gradient_keep_the_dtype(dtype, weights):
    loss = SoftmaxCrossEntropy(0.1, weights)
    value = loss.forward(np.zeros((2, 3), dtype), np.array([0, 2]))
    assert value.dtype == dtype and loss.backward().dtype == dtype


def test_unsigned_and_small_integer_labels_will_do():
    loss = SoftmaxCrossEntropy()
    values = {
        float(loss.forward(np.eye(3), np.array([0, 1, 2], kind))) for kind in ("uint8", "int32", "int64")
    }
    assert len(values) == 1


@pytest.mark.parametrize(
    ("logits", "labels", "sentence"),
    [
        (np.zeros((2, 3)), np.array([0, 3]), "label 3 is not one of the 3 classes"),
        (np.zeros((2, 3)), np.array([-1, 0]), "label -1 is not one of the 3 classes"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), "integer labels"),
        (np.zeros((2, 3)), np.array([0, 1, 2]), "integer labels"),
        (np.zeros((2, 3)), np.eye(3, dtype=int)[:2], "integer labels"),
        (np.zeros(3), np.array([0]), "expected logits"),
        (np.zeros((0, 3)), np.zeros(0, int), "expected logits"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(logits, labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        SoftmaxCrossEntropy().forward(logits, labels)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_impossible_smoothing_is_refused(smoothing):
    with pytest.raises(ValueError, match="label_smoothing"):
        SoftmaxCrossEntropy(smoothing)


def test_backward_needs_a_forward_each_time():
    loss = SoftmaxCrossEntropy()
    with pytest.raises(RuntimeError, match="forward"):
        loss.backward()
    loss.forward(np.zeros((1, 2)), np.array([0]))
    loss.backward()
    with pytest.raises(RuntimeError, match="forward"):
        loss.backward()
