"""Networks of layers: one after the other, forth and back, and all of them at once."""

import numpy as np
import pytest

from scratchnet.gradcheck import check_layer
from scratchnet.layers import (
    BatchNorm2d,
    Chain,
    Conv2d,
    Dropout,
    Flatten,
    Layer,
    Linear,
    Parameter,
    ReLU,
    Sequential,
)


def normal(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def network():
    return Sequential(Conv2d(2, 3), ReLU(), Flatten(), Linear(60, 2))


def test_without_need_of_the_input_gradient_the_parameters_get_the_same():
    def net():
        return Sequential(Dropout(0.0), ReLU(), Sequential(Conv2d(2, 3), ReLU()), Flatten(), Linear(60, 2))

    one, other, x = net(), net(), normal(2, 5, 4, 2)
    y = one.forward(x)
    other.forward(x)
    assert one.backward(y).shape == x.shape
    assert other.backward(y, need_input_gradient=False) is None
    for p, q in zip(one.parameters().values(), other.parameters().values(), strict=True):
        assert (p.grad == q.grad).all()
    assert all(part._saved is None for _, part in other.walk())


def test_without_need_of_the_input_gradient_it_is_not_computed(monkeypatch):
    from scratchnet.functional import conv

    def refuse(*arguments):
        raise AssertionError("col2im was called")

    monkeypatch.setattr(conv, "col2im", refuse)
    net, x = Sequential(ReLU(), Conv2d(2, 3), ReLU()), normal(2, 5, 4, 2)
    net.backward(net.forward(x), need_input_gradient=False)
    with pytest.raises(AssertionError, match="col2im"):
        net.backward(net.forward(x))


@pytest.mark.parametrize(
    "layers", [(), (ReLU(),), (BatchNorm2d(2), ReLU()), (Sequential(), Sequential(BatchNorm2d(2)))]
)
def test_without_need_of_the_input_gradient_any_network_returns_none(layers):
    net, x = Sequential(*layers), normal(2, 5, 4, 2)
    assert net.backward(net.forward(x), need_input_gradient=False) is None
    for p in net.parameters().values():
        assert p.grad is not None


def test_a_layer_of_ones_own_works_first_in_a_network():
    class Scale(Layer):
        def __init__(self, channels):
            super().__init__()
            self.weight = Parameter(np.ones(channels, "float32"))

        def forward(self, x):
            return self.save_for_backward(x * self.weight.data, x)

        def backward(self, dy):
            x = self.saved(dy)
            self.weight.grad = (dy * x).sum(axis=(0, 1, 2))
            return dy * self.weight.data

    net, x = Sequential(Scale(2), Conv2d(2, 3)), normal(2, 5, 4, 2)
    assert net.backward(net.forward(x), need_input_gradient=False) is None
    assert list(net.parameters()) == ["0.weight", "1.weight", "1.bias"]
    assert net[0].weight.grad is not None
    check_layer(net, x).raise_for_failure()


def test_a_sequential_is_a_list_of_its_layers():
    relu, flatten = ReLU(), Flatten()
    net = Sequential(relu, flatten)
    assert len(net) == 2 and net[0] is relu and net[-1] is flatten and list(net) == [relu, flatten]
    assert repr(net) == "Sequential(\n  (0): ReLU()\n  (1): Flatten()\n)"


def test_train_and_eval_reach_every_layer_and_return_the_network():
    net = Sequential(Sequential(Dropout()), BatchNorm2d(2))
    assert all(part.training for _, part in net.walk())
    assert net.eval() is net and not any(part.training for _, part in net.walk())
    assert net.train() is net and all(part.training for _, part in net.walk())


def test_to_numpy_changes_nothing_and_returns_the_network():
    net, x = network(), normal(2, 5, 4, 2)
    y = net.forward(x)
    place = net[0].weight.data.__array_interface__["data"]
    assert net.to("numpy") is net and net.backend.name == "numpy"
    assert net[0].weight.data.__array_interface__["data"] == place and (net.forward(x) == y).all()


def test_a_part_of_a_network_cannot_be_moved_alone():
    net = Sequential(Sequential(Linear(2, 2)), Linear(2, 2))
    with pytest.raises(
        ValueError, match="0 \\(Sequential\\) is part of a network: call to\\(\\) of the whole"
    ):
        net[0].to("numpy")


class Named(Chain):
    """A network whose layers have names of their own."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = Conv2d(2, 3), ReLU()
        self.head = Sequential(Flatten(), Linear(60, 2))

    def chain(self):
        return [self.conv, self.relu, self.head]


def test_a_chain_with_named_layers_computes_as_a_sequential_does():
    named, listed, x = Named(), network(), normal(2, 5, 4, 2)
    y = named.forward(x)
    assert (y == listed.forward(x)).all()
    assert (named.backward(y) == listed.backward(y)).all()
    assert list(named.parameters()) == ["conv.weight", "conv.bias", "head.1.weight", "head.1.bias"]
    assert named.output_shape(x.shape) == (2, 2) and named.multiply_adds(x.shape) == listed.multiply_adds(
        x.shape
    )


# Frozen parts


def gradients(net, x):
    y = net.forward(x)
    net.backward(np.ones_like(y), need_input_gradient=False)
    return {name: p.grad for name, p in net.parameters().items()}


@pytest.mark.parametrize("frozen", ["0", "3", "0.weight"])
def test_a_frozen_part_gets_no_gradient_and_the_others_get_the_same(frozen):
    x, every, some = normal(2, 5, 4, 2), gradients(network(), normal(2, 5, 4, 2)), network().freeze(frozen)
    for name, grad in gradients(some, x).items():
        if name.startswith(frozen):
            assert grad is None
        else:
            assert (grad == every[name]).all()


def test_backward_stops_below_the_lowest_layer_that_is_trained(monkeypatch):
    net, x = network().freeze("0"), normal(2, 5, 4, 2)
    y = net.forward(x)
    monkeypatch.setattr(Conv2d, "backward", lambda *arguments: pytest.fail("backward of a frozen layer"))
    monkeypatch.setattr(ReLU, "backward", lambda *arguments: pytest.fail("backward below what is trained"))
    assert net.backward(y, need_input_gradient=False) is None
    assert all(part._saved is None for _, part in net.walk())


def test_the_gradient_of_the_input_passes_through_frozen_layers():
    net, frozen, x = network(), network().freeze(), normal(2, 5, 4, 2)
    assert (net.backward(net.forward(x)) == frozen.backward(frozen.forward(x))).all()
    assert frozen.layers[0].weight.buffer.grad is None


def test_what_is_unfrozen_learns_again():
    net = network().freeze().unfreeze("3")
    assert [name for name, grad in gradients(net, normal(2, 5, 4, 2)).items() if grad is not None] == [
        "3.weight",
        "3.bias",
    ]


def test_a_layer_of_ones_own_can_be_frozen_as_it_is():
    class Scale(Layer):
        def __init__(self):
            super().__init__()
            self.weight = Parameter(np.ones(2, "float32"))

        def forward(self, x):
            return self.save_for_backward(x * self.weight.data, x)

        def backward(self, dy):
            self.weight.grad = (dy * self.saved(dy)).sum(axis=(0, 1, 2))
            return dy * self.weight.data

    net = Sequential(Conv2d(2, 2), Scale(), Conv2d(2, 2)).freeze("1")
    found = gradients(net, normal(2, 5, 4, 2))
    assert found["1.weight"] is None and found["0.weight"] is not None


def test_a_path_begins_with_whole_names_and_must_be_there():
    net = Sequential(*(Linear(2, 2) for _ in range(11))).freeze("1")
    assert not net[1].weight.trainable and net[10].weight.trainable
    with pytest.raises(ValueError, match="Sequential has no parameters in 'features'"):
        net.freeze("features")
