"""Softmax cross-entropy at the public door: value, gradient, and what it refuses."""

import numpy as np
import pytest

from scratchnet.losses import SoftmaxCrossEntropy


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


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_value_and_gradient_are_pytorchs(smoothing, scale):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(1)
    logits, labels = (scale * rng.standard_normal((6, 10))).astype("float32"), rng.integers(0, 10, 6)
    loss = SoftmaxCrossEntropy(smoothing)
    value = loss.forward(logits, labels)
    z = torch.tensor(logits, requires_grad=True)
    reference = torch.nn.functional.cross_entropy(z, torch.tensor(labels), label_smoothing=smoothing)
    reference.backward()
    assert float(value) == pytest.approx(reference.item(), rel=1e-6)
    np.testing.assert_allclose(loss.backward(), z.grad.numpy(), atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_value_and_gradient_keep_the_dtype(dtype):
    loss = SoftmaxCrossEntropy(0.1)
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
