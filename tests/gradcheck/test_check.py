"""The gradient check: it accepts right gradients and finds planted faults."""

import numpy as np
import pytest

from scratchnet import functional as F
from scratchnet.gradcheck import GradientError, check_layer, check_network
from scratchnet.layers import (
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    Layer,
    Linear,
    MaxPool2d,
    Parameter,
    ReLU,
    Sequential,
)
from scratchnet.losses import SoftmaxCrossEntropy


def normal(*shape, seed=0, dtype="float64"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


class Scale(Layer):
    """The layer of the docstring of ``layers.py``."""

    def __init__(self, channels):
        super().__init__()
        self.weight = Parameter(np.ones(channels, "float32"))

    def forward(self, x):
        return self.save_for_backward(x * self.weight.data, x)

    def backward(self, dy):
        x = self.saved(dy)
        self.weight.grad = (dy * x).sum(axis=(0, 1, 2))
        return dy * self.weight.data


# What is right passes


def test_the_layer_of_the_documentation_passes():
    report = check_layer(Scale(3), normal(2, 4, 5, 3, dtype="float32"))
    assert report and report.ok and not report.problems
    assert [row.name for row in report.rows] == ["input", "weight"]
    assert report.raise_for_failure() is report


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4), (2, 2, 2, 2, 2)])
def test_any_rank_of_input_can_be_checked(shape):
    report = check_layer(ReLU(), normal(*shape) + 3.0)
    assert report.ok and report.rows[0].checked == int(np.prod(shape))


def test_input_may_be_a_list_or_integers():
    assert check_layer(ReLU(), [[1, -2], [3, 4]]).ok
    assert check_layer(ReLU(), np.arange(-3, 3)).ok


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 1e4])
def test_values_of_any_size_can_be_checked(scale):
    assert check_layer(Linear(4, 3), scale * normal(5, 4)).ok
    assert check_layer(ReLU(), scale * normal(5, 4)).ok
    assert check_layer(BatchNorm2d(2), scale * normal(3, 4, 4, 2)).ok


def test_large_arrays_are_checked_along_directions_and_small_ones_by_element():
    tiers = {row.name: row.tier for row in check_layer(Linear(60, 50), normal(4, 60)).rows}
    assert tiers == {"input": "elements", "weight": "directions", "bias": "elements"}
    assert {row.tier for row in check_layer(Linear(3, 2), normal(4, 3), tier="directions").rows} == {
        "directions"
    }
    with pytest.raises(ValueError, match="tier must be"):
        check_layer(ReLU(), normal(2), tier="all")


def test_dropout_draws_the_same_mask_in_every_forward():
    assert check_layer(Dropout(0.5), normal(40, 3)).ok


def test_a_layer_with_random_numbers_of_its_own_can_be_checked():
    class Noise(Layer):
        def __init__(self):
            super().__init__()
            self.source = np.random.default_rng(1)

        def forward(self, x):
            noise = self.source.standard_normal(x.shape).astype(x.dtype)
            return self.save_for_backward(x * noise, noise)

        def backward(self, dy):
            return dy * self.saved(dy)

    assert check_layer(Noise(), normal(3, 4)).ok


def test_a_layer_with_plain_arrays_of_its_own_can_be_checked():
    class Standardise(Layer):
        """Keeps arrays, a reused buffer and a counter, as a beginner might."""

        def __init__(self):
            super().__init__()
            self.mean = np.float32([0.5, -0.5])
            self.buffer = np.empty((3, 2), np.float32)
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            self.mean = self.mean * 0.9  # not in place, and the output depends on it
            np.subtract(x, self.mean, out=self.buffer)
            return self.save_for_backward(self.buffer**2 / self.calls, (self.buffer.copy(), self.calls))

        def backward(self, dy):
            difference, calls = self.saved(dy)
            return 2 * dy * difference / calls

    layer = Standardise()
    assert check_layer(layer, normal(3, 2)).ok, check_layer(layer, normal(3, 2))
    assert layer.calls == 0 and layer.mean.dtype == np.float32 and layer.mean[0] == 0.5


def test_a_class_that_is_no_layer_can_be_checked():
    class Plain:
        def forward(self, x):
            self.x = x
            return x**3

        def backward(self, dy):
            return 3 * dy * self.x**2

    assert check_layer(Plain(), normal(2, 3)).ok


@pytest.mark.parametrize("training", [True, False])
def test_both_modes_are_checked(training):
    layer = BatchNorm2d(3).train(training)
    report = check_layer(layer, normal(2, 3, 3, 3))
    assert report.ok and layer.training is training
    assert ("in evaluation" in str(report)) is not training


def test_a_part_of_a_network_can_be_checked():
    net = Sequential(Conv2d(2, 3), ReLU(), Flatten(), Linear(48, 2))
    assert check_layer(net[0], normal(2, 4, 4, 2)).ok
    assert check_layer(net, normal(2, 4, 4, 2)).ok


def test_frozen_parameters_have_no_gradient_to_check():
    net = Sequential(Conv2d(2, 3), BatchNorm2d(3), ReLU(), Flatten(), Linear(48, 3)).freeze("0").freeze("1")
    report = check_layer(net, normal(2, 4, 4, 2))
    assert report.ok and [row.name for row in report.rows] == ["input", "4.weight", "4.bias"]
    labels = np.array([0, 2])
    assert check_network(net, SoftmaxCrossEntropy(), normal(2, 4, 4, 2), labels).ok


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_alone_can_be_checked(smoothing):
    report = check_network(Sequential(), SoftmaxCrossEntropy(smoothing), normal(4, 5), np.array([0, 4, 2, 2]))
    assert report.ok and report.rows[0].name == "input"


@pytest.mark.parametrize("tier", ["elements", "directions"])
@pytest.mark.parametrize("training", [True, False])
def test_a_whole_network_can_be_checked(tier, training):
    layers = Conv2d(1, 2), BatchNorm2d(2), ReLU(), MaxPool2d(), Flatten(), Dropout(), Linear(8, 3)
    net = Sequential(*layers).train(training)
    report = check_network(net, SoftmaxCrossEntropy(), normal(3, 4, 4, 1), np.array([0, 1, 2]), tier=tier)
    assert report.ok, report
    assert len(report.rows) == 1 + 6


# Planted faults


class FaultyConv(Conv2d):
    fault = None

    def backward(self, dy):
        dx = super().backward(dy)
        if self.fault == "one weight":
            self.weight.grad[0, 1, 0, 1] *= 1.01
        elif self.fault == "bias missed":
            self.bias.grad = self.bias.grad * 0
        elif self.fault == "transposed":
            self.weight.grad = self.weight.grad.transpose(1, 0, 2, 3).copy()
        elif self.fault == "turned":
            self.weight.grad = self.weight.grad[::-1, ::-1].copy()
        elif self.fault == "mean":
            self.weight.grad = self.weight.grad / dy.shape[0]
        elif self.fault == "one pixel":
            dx[1, 2, 0, 1] += 1e-4
        return dx


@pytest.mark.parametrize("tier", ["elements", "directions"])
@pytest.mark.parametrize(
    ("fault", "row"),
    [
        ("one weight", "weight"),
        ("bias missed", "bias"),
        ("transposed", "weight"),
        ("turned", "weight"),
        ("mean", "weight"),
        ("one pixel", "input"),
    ],
)
def test_a_fault_in_a_convolution_is_found(fault, row, tier):
    layer = FaultyConv(2, 3)
    layer.fault = fault
    report = check_layer(layer, normal(2, 4, 4, 2), tier=tier)
    assert not report and report.worst.name == row
    assert [r.name for r in report.rows if not r.ok] == [row]
    if tier == "elements" and fault == "one weight":
        assert report.worst.where == (0, 1, 0, 1) and report.worst.wrong == 1
    if tier == "elements" and fault == "one pixel":
        assert report.worst.where == (1, 2, 0, 1)


class FaultyNorm(BatchNorm2d):
    fault = None

    def backward(self, dy):
        cache = self.saved(dy)
        if self.fault == "statistics are constants":
            cache = cache._replace(of_batch=False)
        if self.fault == "no eps":
            cache = cache._replace(inv_std=1 / np.sqrt(cache.var))
        dx, self.weight.grad, self.bias.grad = F.batch_norm_backward(dy, cache)
        return dx - dx.mean(axis=0) if self.fault == "mean taken off twice" else dx


@pytest.mark.parametrize("fault", ["statistics are constants", "no eps", "mean taken off twice"])
def test_a_fault_in_batch_normalisation_is_found(fault):
    layer = FaultyNorm(3)
    layer.fault = fault
    assert not check_layer(layer, normal(4, 3, 3, 3)).ok


def test_a_fault_deep_in_a_network_is_found_and_named():
    conv = FaultyConv(2, 3)
    conv.fault = "turned"
    net = Sequential(Conv2d(1, 2), ReLU(), conv, ReLU(), Flatten(), Linear(48, 3))
    report = check_network(net, SoftmaxCrossEntropy(), normal(2, 4, 4, 1), np.array([0, 2]))
    assert [row.name for row in report.rows if not row.ok] == ["2.weight"]
    with pytest.raises(GradientError, match="The gradient of 2.weight is wrong"):
        report.raise_for_failure()


def test_a_loss_that_sums_where_it_should_average_is_found():
    class Sum(SoftmaxCrossEntropy):
        def backward(self):
            return 3 * super().backward()

    assert not check_network(Sequential(), Sum(), normal(3, 4), np.array([0, 1, 2])).ok


def test_a_report_names_the_worst_element_and_both_values():
    class Twice(Layer):
        def forward(self, x):
            return self.save_for_backward(2 * x, x)

        def backward(self, dy):
            dx = 2 * dy
            dx[self.saved(dy) > 10] *= 1.5
            return dx

    x = normal(3, 4)
    x[2, 1] = 11.0
    report = check_layer(Twice(), x)
    worst = report.worst
    assert (worst.name, worst.where, worst.wrong, worst.checked) == ("input", (2, 1), 1, 12)
    assert worst.worst.analytic == pytest.approx(1.5 * worst.worst.numeric)
    assert report.kinks == 0 and worst.error == pytest.approx(1 / 3)
    text = str(report)
    assert "gradient check of Twice" in text and "FAILED" in text and "WRONG" in text
    assert "wrong in 1 of 12 elements: at (2, 1)" in text
    with pytest.raises(AssertionError) as error:
        report.raise_for_failure()
    assert str(error.value) == text


def test_the_table_is_aligned():
    head, *rows = str(check_layer(Linear(3, 2), normal(4, 3))).splitlines()[1:]
    for word in ("shape", "checked", "kinks", "max rel. error", "worst at", "analytic", "numeric"):
        column = head.index(word)
        assert all(row[column - 1] == " " != row[column] for row in rows)
