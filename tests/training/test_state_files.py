"""State files: resuming goes on bit for bit, with layers of the user's own and with frozen parts."""

import numpy as np
import pytest

from scratchnet.data import Loader
from scratchnet.layers import BatchNorm1d, Dropout, Flatten, Layer, Linear, ReLU, Sequential
from scratchnet.optim import SGD, Constant
from scratchnet.training import Trainer


class Noise(Layer):
    """A layer of the user's own that draws from ``self.rng`` in every forward."""

    def __init__(self, rng):
        super().__init__()
        self.rng = rng

    def forward(self, x):
        return self.save_for_backward(x + self.rng.standard_normal(x.shape).astype(x.dtype), None)

    def backward(self, dy):
        self.saved(dy)
        return dy


def network():
    noise, size = Noise(np.random.default_rng(4)), 6
    layers = Linear(size, 5), BatchNorm1d(5), noise, ReLU(), Dropout(0.5), Linear(5, 3)
    return Sequential(Flatten(), *layers)


def prepare(folder, frozen=(), of=None):
    net, rng = network(), np.random.default_rng(1)
    for path in frozen:
        net.freeze(path)
    parameters = net.parameters()
    optimizer = SGD({name: parameters[name] for name in of or parameters}, 0.1, momentum=0.9)
    images = rng.standard_normal((24, 1, 2, 3)).astype("float32")
    loader = Loader(images, rng.integers(0, 3, 24), 8, shuffle=True)
    how = {"engine": "layers", "observers": ()}
    return Trainer(net, optimizer, Constant(0.1), loader, loader, folder, **how)


def assert_equal(ours, theirs):
    for name, p in ours.net.parameters().items():
        assert (p.data == theirs.net.parameters()[name].data).all()
    for name, array in ours.net.buffers().items():
        assert (array == theirs.net.buffers()[name]).all()
    assert (ours.optimizer.momentum_buffer == theirs.optimizer.momentum_buffer).all()


@pytest.mark.parametrize("frozen", [(), ("1",), ("1", "2"), ("6.bias",)])
def test_resuming_goes_on_bit_for_bit(tmp_path, frozen):
    trainer = prepare(tmp_path, frozen)
    trainer.fit(1)
    twin = prepare(tmp_path)
    twin.resume()
    assert list(twin.optimizer.trainable()) == list(trainer.optimizer.trainable())
    twin.fit(2)
    whole = prepare(None, frozen)
    whole.fit(2)
    assert_equal(twin, whole)


@pytest.mark.parametrize("of", [["6.weight"], ["6.weight", "6.bias"], ["1.weight", "6.weight"]])
def test_an_optimizer_of_some_parameters_resumes(tmp_path, of):
    prepare(tmp_path, of=of).fit(1)
    twin = prepare(tmp_path, of=of)
    twin.resume()
    twin.fit(2)
    whole = prepare(None, of=of)
    whole.fit(2)
    assert_equal(twin, whole)
