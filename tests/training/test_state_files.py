"""State files: resuming goes on bit for bit, with layers of the user's own and with frozen parts."""

import numpy as np
import pytest

from scratchnet import checkpoint
from scratchnet.layers import BatchNorm1d, Dropout, Layer, Linear, ReLU, Sequential
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import SGD
from scratchnet.training import RunDirectory

PROGRESS = {"log": [], "best_accuracy": 0.0}


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
    return Sequential(
        Linear(6, 5), BatchNorm1d(5), Noise(np.random.default_rng(4)), ReLU(), Dropout(0.5), Linear(5, 3)
    )


def train(net, optimizer, steps):
    loss, rng = SoftmaxCrossEntropy(), np.random.default_rng(1)
    for _ in range(steps):
        loss.forward(net.forward(rng.standard_normal((8, 6)).astype("float32")), rng.integers(0, 3, 8))
        net.backward(loss.backward(), need_input_gradient=False)
        optimizer.step()


@pytest.mark.parametrize("frozen", [(), ("0",), ("0", "1"), ("5.bias",)])
def test_resuming_goes_on_bit_for_bit(tmp_path, frozen):
    run, net = RunDirectory(tmp_path / "run"), network()
    checkpoint.save(run.best, Sequential(Linear(1, 1)))
    for path in frozen:
        net.freeze(path)
    optimizer = SGD(net.parameters(), 0.1, momentum=0.9)
    train(net, optimizer, 2)
    run.write_state(net, optimizer, PROGRESS)
    train(net, optimizer, 2)

    twin = network()
    other = SGD(twin.parameters(), 0.1, momentum=0.9)
    run.read_state(twin, other)
    assert list(other.trainable()) == list(optimizer.trainable())
    train(twin, other, 2)
    for name, p in net.parameters().items():
        assert (p.data == twin.parameters()[name].data).all()
    for name, array in net.buffers().items():
        assert (array == twin.buffers()[name]).all()
    assert (optimizer.momentum_buffer == other.momentum_buffer).all()


def test_an_optimizer_of_some_parameters_resumes(tmp_path):
    run, net = RunDirectory(tmp_path / "run"), network()
    checkpoint.save(run.best, Sequential(Linear(1, 1)))
    optimizer = SGD({"5.weight": net[5].weight}, 0.1, momentum=0.9)
    train(net, optimizer, 2)
    run.write_state(net, optimizer, PROGRESS)
    twin = network()
    other = SGD({"5.weight": twin[5].weight}, 0.1, momentum=0.9)
    run.read_state(twin, other)
    assert (other.momentum_buffer == optimizer.momentum_buffer).all()
