"""A network's state is put back, whatever is done to it meanwhile."""

import numpy as np
import pytest

from scratchnet.layers import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, ReLU, Sequential
from scratchnet.optim import SGD
from scratchnet.state import preserved


def network():
    return Sequential(
        Conv2d(3, 4), BatchNorm2d(4), ReLU(), Sequential(Dropout(0.5), Flatten(), Linear(64, 2))
    )


def images(seed=0):
    return np.random.default_rng(seed).standard_normal((6, 4, 4, 3)).astype("float32")


def everything(net):
    """All that a network holds: arrays by identity and contents, generators by state, attributes by value."""
    found = {}
    for path, layer in net.walk():
        for name, value in vars(layer).items():
            if name == "_recording":
                continue
            if name == "_recording":
                continue
            if isinstance(value, np.ndarray):
                value = id(value), value.tobytes()
            elif isinstance(value, np.random.Generator):
                value = str(value.bit_generator.state)
            elif name == "_saved":
                value = id(value)
            found[path, name] = value
    for name, p in net.parameters().items():
        found[name] = p.data.tobytes(), None if p.grad is None else p.grad.tobytes(), p.buffer.version
        found[name, "places"] = id(p.buffer.data), id(p.buffer.grad)
    return found


def used():
    net = network()
    net.backward(net.forward(images()))
    net.forward(images(1))  # and so all layers have saved something
    return net


@pytest.mark.parametrize("make", [network, used])
@pytest.mark.parametrize("training", [True, False])
def test_training_within_leaves_nothing_behind(make, training):
    net = make().train(training)
    before = everything(net)
    with preserved(net, values=True) as same:
        assert same is net
        optimizer = SGD(net.parameters(), 0.5)
        for seed in range(2):
            net.train().backward(net.forward(images(seed)))
            optimizer.step()
        net[0].note = "new"
        net[3][0].p = 0.9
        assert everything(net) != before
    assert everything(net) == before


def test_what_was_saved_for_backward_is_still_there():
    net, other = used(), used()
    with preserved(net):
        net.eval().forward(images(5))
    dy = np.ones((6, 2), "float32")
    assert (net.backward(dy) == other.backward(dy)).all()


def test_it_is_put_back_after_an_error_and_within_recording():
    net = used()
    before = everything(net)
    with pytest.raises(KeyError), preserved(net), net.eval().recording():
        net.backward(net.forward(images(3)))
        raise KeyError
    assert everything(net) == before
    assert not any(layer._recording for _, layer in net.walk())


def test_the_context_begins_without_gradients_and_copies_no_weights():
    net = used()
    place = net[0].weight.data.__array_interface__["data"]
    with preserved(net):
        assert net[0].weight.grad is None
        assert net[0].weight.data.__array_interface__["data"] == place
    assert net[0].weight.grad is not None
