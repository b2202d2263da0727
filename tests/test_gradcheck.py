"""The gradient check itself: it accepts what is right, finds planted faults, and changes nothing."""

import copy
import pickle

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


def relued(*shape):
    """Mostly exact zeros: ties for a pooling, kinks for a ReLU."""
    return np.maximum(normal(*shape) - 1.0, 0)


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


# Kinks


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


# What else a layer may do wrong


class Wrong(Layer):
    """y = weight * x, with a choice of mistakes."""

    def __init__(self, mistake):
        super().__init__()
        self.mistake = mistake
        self.weight = Parameter(np.float32([1.0, 2.0, 3.0]))

    def forward(self, x):
        y = x * self.weight.data
        if self.mistake == "forward writes x":
            x *= 2
        if self.mistake == "forward float64":
            y = y.astype("float64")
        if self.mistake == "forward random":
            y = y * np.random.default_rng().random()
        if self.mistake == "forward list":
            return y.tolist()
        if self.mistake == "forward nan":
            y = y * np.nan
        return self.save_for_backward(y, x)

    def backward(self, dy):
        x = self.saved(dy)
        dx, dweight = dy * self.weight.data, (dy * x).sum(axis=0)
        if self.mistake == "no weight gradient":
            dweight = None
        if self.mistake == "weight gradient shape":
            dweight = dweight[None]
        if self.mistake == "no dx":
            dx = None
        if self.mistake == "dx shape":
            dx = dx[:1]
        if self.mistake == "dx float64":
            dx = dx * np.ones(1)
        if self.mistake == "backward writes dy":
            dy *= 2
        if self.mistake == "backward writes x":
            x[...] = 0
        if self.mistake == "backward writes weight":
            self.weight.data[...] -= dweight
        if self.mistake == "raises":
            raise KeyError("oops")
        if self.mistake == "adds" and self.weight.grad is not None:
            dweight = dweight + self.weight.grad
        if self.mistake == "nan":
            dx = dx * np.nan
        self.weight.grad = dweight
        return dx


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ("forward writes x", "forward writes into its input"),
        ("forward float64", "forward turns float32 into float64"),
        ("forward random", "different outputs: random numbers should come from"),
        ("forward list", "forward returns a list"),
        ("forward nan", "NaN or infinity"),
        ("no weight gradient", "leaves weight.grad at None"),
        ("weight gradient shape", "has the shape \\(3,\\), the array \\(1, 3\\)"),
        ("no dx", "backward returns None: it should return dx"),
        ("dx shape", "gradient of input has the shape \\(1, 3\\), and input itself \\(4, 3\\)"),
        ("dx float64", "backward turns float32 into float64"),
        ("backward writes dy", "backward writes into dy"),
        ("backward writes x", "backward writes into the input"),
        ("backward writes weight", "changes weight.data"),
        ("raises", "backward raises KeyError"),
        ("adds", "should set the gradient, not add to it"),
        ("nan", "gradient of the input is wrong in 12 of 12"),
    ],
)
def test_a_mistake_is_named_in_a_sentence(mistake, sentence):
    report = check_layer(Wrong(mistake), normal(4, 3, dtype="float32"))
    assert not report.ok
    with pytest.raises(GradientError, match=sentence):
        report.raise_for_failure()


def test_the_layer_without_mistakes_passes():
    assert check_layer(Wrong(None), normal(4, 3, dtype="float32")).ok


def test_a_layer_that_accumulates_into_none_is_told():
    class Adds(Scale):
        def backward(self, dy):
            x = self.saved(dy)
            self.weight.grad += (dy * x).sum(axis=(0, 1, 2))
            return dy * self.weight.data

    report = check_layer(Adds(3), normal(2, 2, 2, 3))
    assert "backward raises TypeError" in str(report)


# Nothing changes


def fingerprint(net):
    """Everything that a network consists of, to the bit."""
    return pickle.dumps(
        [
            (
                path,
                sorted((k, v) for k, v in vars(layer).items() if not isinstance(v, (Parameter, Layer, list))),
            )
            for path, layer in net.walk()
        ]
        + [
            (name, p.data.tobytes(), None if p.grad is None else p.grad.tobytes(), p.buffer.version, p.dtype)
            for name, p in net.parameters().items()
        ]
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("used", [True, False])
def test_a_check_changes_no_bit(training, used):
    net = Sequential(Conv2d(2, 2), BatchNorm2d(2), ReLU(), MaxPool2d(), Dropout(), Flatten(), Linear(8, 3))
    loss, labels = SoftmaxCrossEntropy(), np.array([0, 1])
    x = normal(2, 4, 4, 2, dtype="float32")
    if used:  # gradients, running statistics, and a forward whose backward is still to come
        net.backward(np.ones_like(net.forward(x)))
        y = net.forward(x)
        loss.forward(y, labels)
    net.train(training) if training else None
    for part in () if training or used else [net.eval()]:
        assert not part.training
    buffer = net[0].weight.buffer
    state = [id(p.buffer) for p in net.parameters().values()]
    before, x_before = fingerprint(net), x.copy()
    check_network(net, loss, x, labels)
    check_layer(net, x)
    check_layer(net[1], x)
    assert fingerprint(net) == before and (x == x_before).all()
    assert net[0].weight.buffer is buffer and [id(p.buffer) for p in net.parameters().values()] == state
    if used:  # the backward still comes
        net.backward(loss.backward())


def test_a_check_before_first_use_draws_no_weights():
    rng = np.random.default_rng(5)
    layer = Linear(4, 3, rng=rng)
    twin = copy.deepcopy(layer)
    state = rng.bit_generator.state
    assert check_layer(layer, normal(2, 4)).ok
    assert rng.bit_generator.state == state and layer.weight.buffer.data is None
    assert (layer.weight.data == twin.weight.data).all()


def test_read_only_input_can_be_checked():
    x = normal(3, 4)
    x.flags.writeable = False
    assert check_layer(ReLU(), x).ok


def test_same_seed_same_report():
    reports = [str(check_layer(Conv2d(2, 3), normal(2, 4, 4, 2), seed=s)) for s in (1, 1, 2)]
    assert reports[0] == reports[1] != reports[2]


def test_a_network_on_a_gpu_can_be_checked(device):
    layers = Conv2d(2, 3), BatchNorm2d(3), ReLU(), MaxPool2d(), Dropout(), Flatten(), Linear(12, 4)
    net = Sequential(*layers).to(device)
    x, labels = device.asarray(normal(2, 4, 4, 2, dtype="float32")), device.asarray(np.array([0, 3]))
    for tier in ("elements", "directions"):
        check_layer(net, x, tier=tier).raise_for_failure()
        check_network(net, SoftmaxCrossEntropy(), x, labels, tier=tier).raise_for_failure()
    assert check_layer(ReLU(), device.asarray(np.zeros((2, 3), "float32"))).kinks == 6
    assert net[0].backend.name == "cupy" and net[0].weight.dtype == np.float32
