"""During backward the buffer's observer is told of each gradient when it is final, by layers and by plans."""

import numpy as np
import pytest

from scratchnet import plans
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
from scratchnet.training import make_engine

X = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype("float32")


class Scale(Layer):
    """A layer without a kernel, which a plan runs by its own passes."""

    def __init__(self):
        super().__init__()
        self.weight = Parameter(np.ones(6, "float32"))

    def forward(self, x):
        return self.save_for_backward(x * self.weight.data, x)

    def backward(self, dy):
        self.weight.grad = (dy * self.saved(dy)).sum(axis=(0, 1, 2))
        return dy * self.weight.data


def network():
    rng = np.random.default_rng(1)
    body = Conv2d(3, 6, rng=rng), BatchNorm2d(6), ReLU(), MaxPool2d(), Scale(), Conv2d(6, 5, rng=rng), ReLU()
    return Sequential(*body, Flatten(), Linear(80, 7, rng=rng), ReLU(), Dropout(0.5), Linear(7, 3, rng=rng))


def told(net, engine):
    """Run backward twice; return the names that were told, and fail where a gradient changed afterwards."""
    names, heard, seen = {id(p): name for name, p in net.parameters().items()}, [], {}

    def observe(parameter):
        heard.append(names[id(parameter)])
        seen[names[id(parameter)]] = parameter.grad_view.copy()

    buffer = next(iter(net.parameters().values())).buffer
    for _ in range(2):
        heard.clear()
        y = engine.forward(X)
        buffer.observer = observe
        engine.backward(np.ones_like(y))
        buffer.observer = None
    for name, parameter in net.parameters().items():
        if parameter.trainable:
            np.testing.assert_array_equal(parameter.grad, seen[name])
    return heard


@pytest.mark.filterwarnings("ignore:no kernel is registered")
@pytest.mark.parametrize("engine", ["plan", "layers"])
def test_each_gradient_is_told_once_last_layer_first_and_does_not_change_any_more(engine):
    net = network()
    heard = told(net, make_engine(net, engine))
    assert sorted(heard) == sorted(net.parameters())
    layers = [name.split(".")[0] for name in heard]
    assert layers == sorted(layers, key=int, reverse=True)


@pytest.mark.filterwarnings("ignore:no kernel is registered")
@pytest.mark.parametrize("engine", ["plan", "layers"])
def test_it_is_told_of_nothing_below_what_is_trained(engine):
    net = network()
    for frozen in range(5):
        net.freeze(str(frozen)) if any(net[frozen].parameters()) else None
    heard = told(net, make_engine(net, engine))
    assert {name for name in heard if int(name.split(".")[0]) > 4} == set(heard)
    assert len(heard) == 6


def test_an_error_of_the_observer_ends_backward_and_the_plan_can_be_used_again():
    net = Sequential(Flatten(), Linear(192, 5), ReLU(), Linear(5, 2))
    plan = plans.compile(net, X.shape, training=True)

    def fails(parameter):
        raise RuntimeError("told")

    net[1].weight.buffer.observer = fails
    y = plan.forward(X)
    with pytest.raises(RuntimeError, match="told"):
        plan.backward(y)
    net[1].weight.buffer.observer = None
    plan.backward(plan.forward(X))
