"""Plans of networks that have changed, and what a plan refuses."""

from __future__ import annotations

import numpy as np
import pytest

from scratchnet import layers, plans
from scratchnet.layers import Conv2d, Flatten, Linear, ReLU, Sequential
from tests.fakes.comparing import (
    assert_close,
    batch,
    small_vgg,
)


def test_a_stale_plan_says_why():
    net = small_vgg()
    x = batch(2, 32, 32, 3)

    def fresh():
        return plans.compile(net.train(), x.shape, training=True)

    plan = fresh()
    net.eval()
    with pytest.raises(RuntimeError, match="no longer in training mode"):
        plan.forward(x)
    plan = fresh()
    last = net.classifier.layers.pop()
    with pytest.raises(RuntimeError, match="layers have changed"):
        plan.forward(x)
    net.classifier.layers.append(last)
    plan = fresh()
    net.classifier[2].p = 0.1
    with pytest.raises(RuntimeError, match=r"classifier.2 \(Dropout\) has other settings"):
        plan.forward(x)
    plan = fresh()
    buffer = next(iter(net.parameters().values())).buffer
    buffer.data = buffer.data.copy()  # what to() does
    with pytest.raises(RuntimeError, match="moved"):
        plan.forward(x)
    fresh().forward(x)


def test_the_mode_must_be_the_networks():
    net = small_vgg()
    with pytest.raises(
        ValueError, match="is in training mode, but this plan is for evaluation: call net.eval"
    ):
        plans.compile(net, (2, 32, 32, 3))
    with pytest.raises(
        ValueError, match="is in evaluation mode, but this plan is for training: call net.train"
    ):
        plans.compile(net.eval(), (2, 32, 32, 3), training=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"input_shape": (2, 32, 32, 4)}, "features.0"),
        ({"input_shape": (2, 16, 16, 3)}, "features"),
        ({"input_shape": (2, 64, 64, 3)}, "classifier.0"),
        ({"precision": "fp16"}, "precision"),
        ({"algorithm": "fft"}, "algorithm"),
    ],
)
def test_what_cannot_be_compiled(arguments, message):
    with pytest.raises(ValueError, match=message):
        plans.compile(small_vgg(), **{"input_shape": (2, 32, 32, 3), "training": True} | arguments)


def test_what_cannot_be_run():
    net = small_vgg()
    plan = plans.compile(net, (2, 32, 32, 3), training=True)
    other = plans.compile(net, (1, 32, 32, 3), training=True)
    with pytest.raises(RuntimeError, match="forward"):
        plan.backward(batch(2, 10))
    with pytest.raises(ValueError, match="shape"):
        plan.forward(batch(3, 32, 32, 3))
    with pytest.raises(ValueError, match="float32"):
        plan.forward(batch(2, 32, 32, 3, dtype="float64"))
    plan.forward(batch(2, 32, 32, 3))
    other.forward(batch(1, 32, 32, 3))
    with pytest.raises(RuntimeError, match="another plan"):
        plan.backward(batch(2, 10))
    plan.forward(batch(2, 32, 32, 3))
    plan.backward(batch(2, 10))
    with pytest.raises(RuntimeError, match="once for each backward"):
        plan.backward(batch(2, 10))


@pytest.mark.parametrize("width", [0.25, 1.0])  # by rows of tiles, by phases
def test_an_inference_plan_notices_new_weights(width):
    net = small_vgg("vgg11", width=width).eval()
    x = batch(2, 32, 32, 3)
    plan = plans.compile(net, x.shape)
    before = plan.forward(x)
    for parameter in net.parameters().values():
        parameter.data = parameter.data * np.float32(1.1)
    assert_close(plan.forward(x), net.forward(x), 1e-5)
    for parameter in net.parameters().values():
        parameter.data[...] *= np.float32(1.1)
    after = plan.forward(x)
    assert_close(after, net.forward(x), 1e-5)
    assert np.abs(after - before).max() > 0.1 * np.abs(before).max()


def test_gradients_are_none_before_the_first_backward():
    net = small_vgg()
    plan = plans.compile(net, (2, 32, 32, 3), training=True)
    plan.forward(batch(2, 32, 32, 3))
    assert all(p.grad is None for p in net.parameters().values())
    plan.backward(batch(2, 10))
    assert all(p.grad is not None for p in net.parameters().values())


def test_a_wrapped_pass_of_one_layer_is_called():
    net = Sequential(Conv2d(3, 8), ReLU(), Conv2d(8, 8), ReLU()).eval()
    x, calls = batch(2, 8, 8, 3), []

    def wrap(layer):
        forward = layer.forward

        def wrapped(x):
            calls.append(layer)
            return forward(x)

        layer.forward = wrapped

    expected = net.forward(x)
    plan = plans.compile(net, x.shape)
    wrap(net[1])
    with pytest.raises(RuntimeError, match=r"stale.*1 \(ReLU\) has other settings"):
        plan.forward(x)
    np.testing.assert_allclose(plans.compile(net, x.shape).forward(x), expected, rtol=1e-3, atol=1e-5)
    assert calls == [net[1]]
    wrap(net)
    with pytest.raises(RuntimeError, match="stale.*its layers have changed"):
        plan.forward(x)
    np.testing.assert_allclose(plans.compile(net, x.shape).forward(x), expected, rtol=1e-3, atol=1e-5)
    assert calls == [net[1], net, net[1]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda net: setattr(net[0], "stride", 2), r"0 \(Conv2d\) has other settings"),
        (lambda net: setattr(net[0], "padding", 0), r"0 \(Conv2d\) has other settings"),
        (lambda net: setattr(net[1], "kernel_size", 3), r"1 \(MaxPool2d\) has other settings"),
        (lambda net: setattr(net[4], "p", 0.1), r"4 \(Dropout\) has other settings"),
        (lambda net: setattr(net[0], "bias", None), r"0 \(Conv2d\) has other settings"),
    ],
)
def test_a_plan_notices_another_setting_of_a_layer(change, reason):
    net = Sequential(Conv2d(3, 8), layers.MaxPool2d(2), layers.Flatten(), ReLU(), layers.Dropout(0.5))
    plan = plans.compile(net, (2, 8, 8, 3), training=True)
    change(net)
    with pytest.raises(RuntimeError, match=f"stale.*{reason}"):
        plan.forward(batch(2, 8, 8, 3))


def test_weights_are_derived_once_where_layers_without_a_kernel_read_theirs(monkeypatch):
    class Own(Linear):
        def forward(self, x):
            return super().forward(x)

    net = Sequential(Conv2d(3, 8), ReLU(), Flatten(), Own(8 * 8 * 8, 4)).eval()
    with pytest.warns(UserWarning, match="Own"):
        plan = plans.compile(net, (1, 8, 8, 3))
    x, derived, run = batch(1, 8, 8, 3), [], plan._run_forward
    monkeypatch.setattr(plan, "_run_forward", lambda x, derive: (derived.append(derive), run(x, derive))[1])
    for _ in range(3):
        plan.forward(x)
    assert derived == [True, False, False]
