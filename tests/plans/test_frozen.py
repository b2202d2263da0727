"""Plans of networks with frozen parts."""

from __future__ import annotations

import numpy as np
import pytest

from scratchnet import layers, plans
from scratchnet.layers import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential
from tests.fakes.comparing import assert_close, batch


def network():
    net = Sequential(
        Conv2d(3, 8), BatchNorm2d(8), ReLU(), MaxPool2d(2), Conv2d(8, 8), BatchNorm2d(8), ReLU(),
        Flatten(), Linear(8 * 5 * 5, 16), ReLU(), Dropout(0.5), Linear(16, 4),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for name, statistics in net.buffers().items():
        statistics[...] = rng.random(statistics.shape) + 0.5 * name.endswith("var")
    return net


@pytest.mark.parametrize(
    "frozen", [[""], ["0"], ["0", "1"], ["1"], ["4", "5"], ["5"], ["8"], ["8.weight"], ["0.bias", "11"]]
)
@pytest.mark.parametrize("need_input_gradient", [False, True])
def test_the_same_gradients_as_the_layers_and_none_for_what_is_frozen(frozen, need_input_gradient):
    planned, layered = network(), network()
    for prefix in frozen:
        planned.freeze(prefix), layered.freeze(prefix)
    x, dy = batch(4, 10, 10, 3), batch(4, 4, seed=3)
    plan = plans.compile(planned, x.shape, training=True)
    assert_close(plan.forward(x), layered.forward(x), 1e-5)
    results = [net.backward(dy, need_input_gradient=need_input_gradient) for net in (plan, layered)]
    if need_input_gradient:
        assert_close(*results, 1e-4)
    else:
        assert results == [None, None]
    scale = max(np.linalg.norm(p.grad) for p in network_gradients(x, dy))
    for (name, a), b in zip(planned.parameters().items(), layered.parameters().values(), strict=True):
        assert (a.grad is None) == (b.grad is None) == (not a.trainable), name
        if a.grad is not None:
            assert np.linalg.norm(a.grad - b.grad) <= 1e-4 * max(np.linalg.norm(b.grad), 0.02 * scale), name
    for (name, a), b in zip(planned.buffers().items(), layered.buffers().values(), strict=True):
        assert_close(a, b, 1e-5), name


def network_gradients(x, dy):
    net = network()
    net.forward(x)
    net.backward(dy)
    return net.parameters().values()


def test_nothing_runs_below_the_lowest_layer_that_learns():
    net = network().freeze("0").freeze("1").freeze("4").freeze("5")
    x = batch(4, 10, 10, 3)
    plan = plans.compile(net, x.shape, training=True)
    plan.backward(plan.forward(x))
    ran = {group for group, direction, _ in plan.clock.seconds if direction == "backward"}
    assert {plan.groups[i].title for i in ran} == {"Linear+ReLU+Dropout", "Linear"}


def test_frozen_statistics_stay():
    net = network().freeze()
    before = {name: statistics.copy() for name, statistics in net.buffers().items()}
    plan = plans.compile(net, (4, 10, 10, 3), training=True)
    plan.backward(plan.forward(batch(4, 10, 10, 3)))
    for name, statistics in net.buffers().items():
        np.testing.assert_array_equal(statistics, before[name])
    assert net[0].weight.buffer.grad is None


def test_freezing_makes_a_training_plan_stale():
    net = network()
    x = batch(4, 10, 10, 3)
    plan = plans.compile(net, x.shape, training=True)
    net.freeze("0")
    with pytest.raises(RuntimeError, match=r"0 \(Conv2d\) has other settings"):
        plan.forward(x)
    inference = plans.compile(net.eval(), x.shape)
    net.unfreeze()
    inference.forward(x)


@pytest.mark.parametrize("images", [5, 16])
def test_normalisation_of_features_is_planned(images):
    make = lambda: Sequential(Linear(6, 5), layers.BatchNorm1d(5), ReLU(), Dropout(0.2), Linear(5, 3))  # noqa: E731
    planned, layered = make(), make()
    x, dy = batch(images, 6), batch(images, 3, seed=3)
    plan = plans.compile(planned, x.shape, training=True)
    assert "fallback" not in plan.describe()
    assert_close(plan.forward(x), layered.forward(x), 1e-5)
    assert_close(plan.backward(dy, need_input_gradient=True), layered.backward(dy), 2e-4)
    assert_close(plans.compile(planned.eval(), x.shape).forward(x), layered.eval().forward(x), 1e-5)
