"""Kinks of ReLU and pooling are told from mistakes, and excuse none."""

import numpy as np
import pytest

from scratchnet.gradcheck import check_layer, check_network
from scratchnet.layers import (
    Conv2d,
    Flatten,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
)
from scratchnet.losses import SoftmaxCrossEntropy
from tests.gradcheck.test_check import normal


def relued(*shape):
    """Mostly exact zeros: ties for a pooling, kinks for a ReLU."""
    return np.maximum(normal(*shape) - 1.0, 0)


def test_a_kink_at_the_point_is_counted_not_failed():
    report = check_layer(ReLU(), np.zeros((2, 3)))
    assert report.ok and report.kinks == 6


def test_a_kink_near_the_point_is_counted_not_failed():
    report = check_layer(ReLU(), np.array([1.0, -1.0, 3e-7, -3e-7]))
    assert report.ok and report.kinks == 2


@pytest.mark.parametrize("tier", ["elements", "directions"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (ReLU(), (6, 30)),
        (MaxPool2d(2), (2, 6, 6, 3)),
        (MaxPool2d(3, 2), (2, 7, 7, 3)),
        (MaxPool2d(2, 1), (2, 5, 5, 2)),
    ],
)
def test_ties_and_exact_zeros_are_kinks(layer, shape, tier):
    report = check_layer(layer, relued(*shape), tier=tier)
    assert report.ok and report.kinks, report


def test_several_kinks_in_a_row_are_kinks():
    net = Sequential(ReLU(), MaxPool2d(3, 2), Conv2d(2, 2), ReLU())
    assert check_layer(net, relued(2, 7, 7, 2)).ok
    images = relued(2, 6, 6, 2)
    images[0] = 0.0  # a black image and zero biases: every ReLU exactly at its kink
    net = Sequential(Conv2d(2, 2), ReLU(), MaxPool2d(2), Flatten(), Linear(18, 3))
    report = check_network(net, SoftmaxCrossEntropy(), images, np.array([1, 2]), tier="elements")
    assert report.ok and report.kinks, report


@pytest.mark.parametrize("tier", ["elements", "directions"])
@pytest.mark.parametrize("factor", [0.5, 0.0, 0.999, 2.0, -1.0])
def test_a_wrong_gradient_is_not_excused_by_kinks(factor, tier):
    class WrongReLU(ReLU):
        def backward(self, dy):
            return factor * super().backward(dy)

    for x in (np.zeros((2, 5)), relued(6, 5), normal(6, 5), 1e-7 * normal(6, 5)):
        assert not check_layer(WrongReLU(), x, tier=tier).ok


class PoolOfTwo(Layer):
    """The larger one of two neighbours; ``backward`` says how its gradient is divided between equal ones."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, x):
        return self.save_for_backward(np.maximum(x[:, 0::2], x[:, 1::2]), x)

    def backward(self, dy):
        x = self.saved(dy)
        left, right = x[:, 0::2], x[:, 1::2]
        dx = np.zeros_like(x)
        dx[:, 0::2] = dy * np.where(left == right, self.share[0], left > right)
        dx[:, 1::2] = dy * np.where(left == right, self.share[1], right > left)
        return dx


@pytest.mark.parametrize("tier", ["elements", "directions"])
@pytest.mark.parametrize(
    "x", [np.ones((3, 4)), np.zeros((3, 4)), relued(5, 8)], ids=["ones", "zeros", "relued"]
)
def test_a_tie_is_paid_once(x, tier):
    for share in ((1, 0), (0, 1), (0.5, 0.5)):
        assert check_layer(PoolOfTwo(share), x, tier=tier).ok
    for share in ((1, 1), (0, 0)):
        report = check_layer(PoolOfTwo(share), x, tier=tier)
        assert not report.ok
        assert tier == "directions" or "wrong where values are equal or zero" in str(report)


def test_a_pooling_that_pays_every_maximum_is_found_in_a_network():
    net = Sequential(ReLU(), PoolOfTwo((1, 1)), Linear(4, 3))
    assert not check_network(net, SoftmaxCrossEntropy(), np.ones((2, 8)), np.array([0, 2])).ok


@pytest.mark.parametrize("wrong", [0.0, 1e-6])
def test_a_jump_of_the_curvature_alone_is_no_mistake(wrong):
    class SquaredReLU(Layer):
        def forward(self, x):
            return self.save_for_backward(np.maximum(x, 0) ** 2, x)

        def backward(self, dy):
            return dy * (2 * np.maximum(self.saved(dy), 0) + wrong)

    assert check_layer(SquaredReLU(), np.array([0.0, 0.0, 1.0])).ok is (wrong == 0.0)


@pytest.mark.parametrize("cast", ["input", "output", "middle"])
def test_a_layer_that_casts_to_float32_gets_a_hint(cast):
    class Cast(Layer):
        def forward(self, x):
            y = np.sin(np.float32(x) if cast == "input" else x)
            y = np.float32(y).astype(x.dtype) * 1.1 if cast == "middle" else 1.1 * y
            return self.save_for_backward(np.float32(y) if cast == "output" else y, x)

        def backward(self, dy):
            return 1.1 * dy * np.cos(self.saved(dy))

    report = check_layer(Cast(), normal(4, 5))
    assert not report.ok and "forward rounds to float32" in str(report)


def test_nonsense_at_a_kink_is_not_excused():
    class Nonsense(ReLU):
        def forward(self, x):
            return self.save_for_backward(np.maximum(x, 0), x)

        def backward(self, dy):
            x = self.saved(dy)
            return dy * np.where(x == 0, 100.0, x > 0)

    assert not check_layer(Nonsense(), relued(4, 4)).ok


def test_a_leak_in_a_relu_is_found():
    class Leaky(ReLU):
        def backward(self, dy):
            return super().backward(dy) + 1e-3 * dy

    assert not check_layer(Leaky(), relued(4, 4)).ok
    assert not check_layer(Leaky(), -1 - relued(4, 4)).ok
