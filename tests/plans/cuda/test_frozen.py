"""Frozen parts on a GPU: no gradients, no steps, no new statistics, and no work for any of them."""

import numpy as np
import pytest

from scratchnet import backend, losses, optim, plans
from scratchnet.layers import BatchNorm1d, Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential
from scratchnet.plans.cuda.training_step import TrainingSteps
from tests.fakes import cuda_runtime
from tests.fakes.comparing import batch
from tests.fakes.cuda_networks import assert_plan_equals_layers, normalised, plain

FROZEN = {
    "a convolution in the middle": (plain, ["2"]),
    "a weight, not its bias": (plain, ["0.weight", "9.weight"]),
    "a bias, not its weight": (plain, ["0.bias", "2.bias", "9.bias"]),
    "everything but the last layer": (plain, ["0", "2", "5", "9"]),
    "a normalisation with pooling": (normalised, ["4"]),
    "all normalisations": (normalised, ["1", "4", "8"]),
    "a scale, not its shift": (normalised, ["1.weight"]),
}


@pytest.mark.parametrize("name", FROZEN)
@pytest.mark.parametrize("need_input_gradient", [False, True])
def test_a_plan_of_a_partly_frozen_network_equals_the_layers(device, name, need_input_gradient):
    make, prefixes = FROZEN[name]

    def frozen():
        net = make()
        for prefix in prefixes:
            net.freeze(prefix)
        return net

    assert_plan_equals_layers(device, frozen, (3, 8, 9, 3), need_input_gradient=need_input_gradient)


def test_steps_of_a_partly_frozen_network_are_those_of_the_layers(device):
    x, labels = batch(4, 8, 9, 3), np.arange(4)
    net, twin = plain().to(device), plain()
    settings = {"momentum": 0.9, "weight_decay": 1e-2}
    sgd, right = (optim.SGD(n.parameters(), 0.02, **settings) for n in (net, twin))
    loss = losses.SoftmaxCrossEntropy()
    steps = TrainingSteps(net, sgd, losses.SoftmaxCrossEntropy(), 4)
    before = twin[0].weight.data.copy()
    for prefix in ("", "0", "5"):
        for n in (net, twin):
            n.unfreeze()
            if prefix:
                n.freeze(prefix)
        steps.begin(np.full(4, 0.02))
        for _ in range(4):
            steps.step(4, device.asarray(x), device.asarray(labels))
            loss.forward(twin.forward(x), labels)
            twin.backward(loss.backward())
            right.step()
        for (key, a), b in zip(net.parameters().items(), twin.parameters().values(), strict=True):
            np.testing.assert_allclose(device.to_numpy(a.data), b.data, rtol=1e-3, atol=5e-6, err_msg=key)
    assert np.abs(twin[0].weight.data - before).max() > 1e-3
    net.freeze()
    with pytest.raises(RuntimeError, match="all parameters are frozen"):
        steps.step(4, device.asarray(x), device.asarray(labels))


def test_nothing_is_launched_below_the_lowest_layer_that_is_trained(stand_in):
    launches = []
    for frozen in ((), ("0",), ("0", "2", "5", "9"), ("0", "2", "5", "9", "11")):
        net = plain().to("cupy")
        for prefix in frozen:
            net.freeze(prefix)
        plan = plans.compile(net, (3, 8, 9, 3), training=True)
        plan.graphs = False
        y = plan.forward(backend.get("cupy").asarray(batch(3, 8, 9, 3)))
        with cuda_runtime.counted() as traffic:
            plan.backward(y)
        launches.append(traffic.launches)
    assert launches == sorted(launches, reverse=True) and len(set(launches)) == 4 and launches[-1] == 0


def test_normalisation_of_rows(device):
    def make():
        return Sequential(Conv2d(3, 4), MaxPool2d(2), Flatten(), Linear(48, 8), BatchNorm1d(8), ReLU())

    plan = assert_plan_equals_layers(device, make, (5, 8, 6, 3))
    assert "fallback" not in plan.describe()
