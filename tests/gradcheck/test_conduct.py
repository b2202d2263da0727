"""Mistakes of a layer other than its gradients are named, and a check changes no bit of it."""

import copy
import pickle

import numpy as np
import pytest

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
from tests.gradcheck.test_check import Scale, normal


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


class Residual(Sequential):
    """A composite whose chain leaves out what its forward adds."""

    def chain(self):
        return self.layers

    def forward(self, x):
        return x + super().forward(x)

    def backward(self, dy):
        return dy + super().backward(dy)


def test_a_chain_that_is_not_what_forward_computes_is_named_wherever_it_stands():
    x = normal(2, 4, 4, 3)
    for net in (Residual(Conv2d(3, 3), ReLU()), Sequential(Residual(Conv2d(3, 3)), Flatten())):
        report = check_layer(net, x)
        assert not report and "forward computes something else than the layers of chain()" in str(report)


def test_a_chain_that_draws_and_normalises_is_what_forward_computes():
    net = Sequential(Conv2d(3, 4), BatchNorm2d(4), Dropout(0.3), Sequential(ReLU(), MaxPool2d()))
    check_layer(net, normal(2, 4, 4, 3)).raise_for_failure()


def test_an_output_shape_that_is_not_that_of_the_output_is_named():
    class Wider(Scale):
        def output_shape(self, shape):
            return (*shape[:-1], 2 * shape[-1])

    report = check_layer(Wider(3), normal(2, 3))
    assert not report and "forward returns (2, 3), and output_shape() says (2, 6)" in str(report)
