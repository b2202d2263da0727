"""Layers and networks from outside the package: planned like its own, or named in a warning."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from scratchnet import gradcheck, layers, plans
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
from scratchnet.plans.cpu.im2col import Im2col
from scratchnet.plans.registry import kernels_for
from tests.fakes.comparing import assert_plan_equals_layers, batch
from tests.plans.avg_pool import AvgPool2d, AvgPoolKernel
from tests.plans.leaky_relu import LeakyReLU, LeakyReLUKernel


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def titles(plan):
    return [group.title for group in plan.groups]


# LeakyReLU and AvgPool2d


@pytest.mark.parametrize("layer", [LeakyReLU(0.1, dtype="float64"), AvgPool2d(3, 2, dtype="float64")])
def test_gradients_of_outside_layers_are_right(layer):
    x = np.random.default_rng(0).standard_normal((2, 7, 6, 3))
    gradcheck.check_layer(layer, x).raise_for_failure()


def test_an_outside_activation_is_part_of_the_convolution_before_it():
    make = lambda: Sequential(Conv2d(3, 8), LeakyReLU(0.1), Conv2d(8, 8), LeakyReLU(0.1))  # noqa: E731
    plan = assert_plan_equals_layers(make, (3, 10, 10, 3))
    assert titles(plan) == ["Conv2d+LeakyReLU", "Conv2d+LeakyReLU"]


@pytest.mark.parametrize("size", [8, 9, 10])
@pytest.mark.parametrize("algorithm", ["auto", "im2col", "winograd"])
def test_and_so_is_the_pooling_after_it_since_it_increases(size, algorithm):
    def make():
        return Sequential(
            Conv2d(3, 8), LeakyReLU(0.2), MaxPool2d(2), Conv2d(8, 8), LeakyReLU(0.2), MaxPool2d(2), Flatten()
        )

    plan = assert_plan_equals_layers(make, (5, size, size, 3), algorithm=algorithm)
    assert titles(plan) == ["Conv2d+LeakyReLU+MaxPool2d"] * 2 + ["Flatten"]


@pytest.mark.parametrize("size", [8, 10])
def test_batch_normalisation_takes_it_along(size):
    def make():
        return Sequential(
            Conv2d(4, 8), BatchNorm2d(8), LeakyReLU(), Conv2d(8, 8), BatchNorm2d(8), LeakyReLU(), MaxPool2d(2)
        )

    plan = assert_plan_equals_layers(make, (3, size, size, 4))  # in evaluation here
    assert titles(plan) == ["Conv2d+BatchNorm2d+LeakyReLU", "Conv2d+BatchNorm2d+LeakyReLU+MaxPool2d"]


def test_a_linear_layer_takes_it_along_but_not_a_dropout_that_its_output_cannot_tell():
    make = lambda: Sequential(Flatten(), Linear(12, 7), LeakyReLU(0.3), Dropout(0.4))  # noqa: E731
    plan = assert_plan_equals_layers(make, (6, 2, 2, 3))
    assert titles(plan)[1] == "Linear+LeakyReLU"
    plan = plans.compile(make(), (6, 2, 2, 3), training=True)
    assert titles(plan) == ["Flatten", "Linear+LeakyReLU", "Dropout"]


@pytest.mark.parametrize("kernel_size, stride", [(2, 2), (3, 2), (2, 1), (3, 5)])
@pytest.mark.parametrize("kind", [AvgPool2d, MaxPool2d])
def test_pooling_windows_of_any_size_are_planned(kind, kernel_size, stride):
    make = lambda: Sequential(Conv2d(3, 8), ReLU(), kind(kernel_size, stride), Conv2d(8, 4))  # noqa: E731
    plan = assert_plan_equals_layers(make, (5, 9, 10, 3))
    fused = kind is MaxPool2d and kernel_size == stride == 2
    assert len(plan.groups) == (2 if fused else 3)


def test_a_layer_on_its_own_is_planned_too():
    for layer in (LeakyReLU(0.1), AvgPool2d(2), ReLU(), MaxPool2d(2), MaxPool2d(3, 1), Dropout(0.4)):
        x = batch(5, 6, 8, 3)
        plan = plans.compile(layer, x.shape, training=True)
        state = [rng.bit_generator.state for rng in layer.generators().values()]
        y = plan.forward(x)
        dx = plan.backward(y, need_input_gradient=True)
        for rng, before in zip(layer.generators().values(), state, strict=True):
            rng.bit_generator.state = before
        expected = layer.forward(x)
        np.testing.assert_allclose(y, expected, rtol=1e-6)
        np.testing.assert_allclose(dx, layer.backward(expected), rtol=1e-6)


@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("layer", [ReLU(), MaxPool2d(2), MaxPool2d(3, 2), Dropout(0.4)])
def test_layers_of_the_package_have_the_same_bits_alone(monkeypatch, threads, layer):
    monkeypatch.setenv("SCRATCHNET_THREADS", threads)
    x = np.round(batch(4, 60, 40, 16))  # ties
    plan = plans.compile(layer, x.shape, training=True)
    state = [rng.bit_generator.state for rng in layer.generators().values()]
    y = plan.forward(x)
    dy = batch(*y.shape, seed=7)
    dx = plan.backward(dy, need_input_gradient=True)
    for rng, before in zip(layer.generators().values(), state, strict=True):
        rng.bit_generator.state = before
    assert y.tobytes() == layer.forward(x).tobytes()
    assert dx.tobytes() == layer.backward(dy).tobytes()


# Registering


def test_what_changes_a_pass_is_not_computed_by_the_kernel_of_its_class():
    class Shifted(LeakyReLU):
        def forward(self, x):
            return super().forward(x + 1)

    class Steeper(LeakyReLU):
        def __init__(self):
            super().__init__(0.5)

    assert kernels_for(Steeper(), "cpu") == (LeakyReLUKernel,)
    assert kernels_for(Shifted(), "cpu") == ()
    wrapped = AvgPool2d()
    assert kernels_for(wrapped, "cpu") == (AvgPoolKernel,)
    wrapped.forward = lambda x: x
    assert kernels_for(wrapped, "cpu") == ()


def test_a_kernel_can_be_forced_by_its_name():
    net = Sequential(Conv2d(3, 3), LeakyReLU(), Conv2d(3, 3), AvgPool2d()).eval()
    x = batch(1, 6, 6, 3)
    found = {}
    for algorithm in ("auto", "im2col", "winograd", "average"):
        plan = plans.compile(net, x.shape, algorithm=algorithm)
        found[algorithm] = [kernel.algorithm for kernel in plan.kernels]
        np.testing.assert_allclose(plan.forward(x), net.forward(x), rtol=1e-3, atol=1e-5)
    assert found["auto"] == found["im2col"] == found["average"] == ["im2col", "im2col", "average"]
    assert found["winograd"] == ["winograd4", "winograd4", "average"]
    with pytest.raises(
        ValueError,
        match="algorithm must be one of auto, average, .*winograd, winograd4, winograd6, not 'fft'",
    ):
        plans.compile(net, x.shape, algorithm="fft")


def test_a_kernel_needs_a_name():
    class Nameless(plans.Elementwise):
        pass

    with pytest.raises(ValueError, match="Nameless needs an `algorithm`"):
        plans.register(Layer, cpu=Nameless)


def test_a_kernel_is_only_chosen_for_a_group_all_of_which_it_takes():
    class MyConv(Conv2d):
        pass

    class Alone(Im2col):
        algorithm, takes = "alone", ()

    class Activated(Im2col):
        algorithm, takes = "activated", ("activation",)

    plans.register(MyConv, cpu=Activated)
    plans.register(MyConv, cpu=Alone)
    net = Sequential(MyConv(3, 4), MyConv(4, 4), ReLU()).eval()
    plan = plans.compile(net, (1, 4, 4, 3))
    assert [kernel.algorithm for kernel in plan.kernels] == ["alone", "activated"]
    Activated.supports = lambda groups, i, context: False
    with pytest.raises(ValueError, match=r"1-2 \(MyConv\+ReLU\): none of Alone, Activated supports all"):
        plans.compile(net, (1, 4, 4, 3))


# Networks of a user's own


class MyNet(Layer):
    def __init__(self):
        super().__init__()
        self.body = Sequential(Conv2d(3, 8), ReLU(), MaxPool2d(2))
        self.head = Sequential(Flatten(), Linear(8 * 4 * 4, 5))
        layers.assemble(self)

    def forward(self, x):
        return self.save_for_backward(self.head.forward(self.body.forward(x)), None)

    def backward(self, dy):
        self.saved(dy)
        return self.body.backward(self.head.backward(dy))


class MyChain(MyNet):
    def chain(self):
        return [self.body, self.head]


class MyChainFromTheStart(Layer):
    def __init__(self):
        super().__init__()
        self.body = Sequential(Conv2d(3, 8), ReLU(), MaxPool2d(2), Flatten(), Linear(8 * 4 * 4, 5))
        layers.assemble(self)

    def forward(self, x):
        return self.save_for_backward(self.body.forward(x), None)

    def backward(self, dy):
        self.saved(dy)
        return self.body.backward(dy)

    def chain(self):
        return [self.body]


@pytest.mark.parametrize("kind", [MyChain, MyChainFromTheStart])
def test_a_network_with_a_chain_is_planned_fully(kind):
    plan = assert_plan_equals_layers(kind, (3, 8, 8, 3))
    assert titles(plan) == ["Conv2d+ReLU+MaxPool2d", "Flatten", "Linear"]


def test_a_network_without_a_chain_is_named_with_its_share():
    with pytest.warns(UserWarning, match=r"MyNet with 100\.0% .*chain\(\)") as caught:
        plan = plans.compile(MyNet(), (3, 8, 8, 3), training=True, algorithm="im2col")
    assert len(caught) == 1 and caught[0].filename == __file__
    assert titles(plan) == ["MyNet"]
    with pytest.raises(
        ValueError, match=r"define output_shape in MyNet, or chain\(\) if it applies its layers"
    ):
        plan.forward(batch(3, 8, 8, 3))


class Scale(Layer):
    def __init__(self, channels, counted):
        super().__init__()
        self.weight = Parameter(np.ones(channels, "float32"))
        if counted:
            self.multiply_adds = lambda shape: int(np.prod(shape))

    def forward(self, x):
        return self.save_for_backward(x * self.weight.data, x)

    def backward(self, dy):
        x = self.saved(dy)
        self.weight.grad = (dy * x).sum(axis=(0, 1, 2))
        return dy * self.weight.data


class Square(Layer):
    def forward(self, x):
        return self.save_for_backward(x * x, x)

    def backward(self, dy):
        return 2 * dy * self.saved(dy)


def test_the_warning_names_every_layer_without_a_kernel_with_its_share():
    net = Sequential(Scale(3, True), Conv2d(3, 1, kernel_size=1, padding=0), Square(), Scale(1, False))
    message = r"0 \(Scale\) with 50\.0%, 2 \(Square\) with 0\.0%, 3 \(Scale\) with an unknown share of"
    with pytest.warns(UserWarning, match=message):
        plans.compile(net, (2, 4, 4, 3), training=True)


class Doubles(Layer):
    """Twice as many channels, which it does not say."""

    def forward(self, x):
        return np.concatenate([x, x], axis=-1)


def test_a_layer_without_output_shape_is_blamed_and_not_the_one_after_it():
    net = Sequential(Conv2d(3, 4), Doubles(), ReLU(), Conv2d(8, 4)).eval()
    with pytest.raises(ValueError, match=r"^1 \(Doubles\) has no output_shape.*expected \(N, H, W, 8\)"):
        plans.compile(net, (2, 8, 8, 3))
    with pytest.raises(ValueError, match=r"^0 \(Conv2d\): expected \(N, H, W, 3\), got \(2, 8, 8, 4\)"):
        plans.compile(net, (2, 8, 8, 4))
