"""The slices of the gradients: which there are, when they are sent, and in which order."""

import numpy as np
import pytest

from scratchnet.distributed.reduction import Reduction
from scratchnet.layers import Conv2d, Flatten, Linear, ReLU, Sequential
from scratchnet.training import make_engine


class Twins:
    """Two ranks that have the same: a sum is twice the value, and is there when all are waited for."""

    def __init__(self):
        self.begun, self.finished = [], 0

    def begin_sum(self, x):
        self.begun.append((x, x.copy()))

    def finish_sums(self):
        for x, before in self.begun:
            np.testing.assert_array_equal(x, before)  # nothing wrote there any more
            x *= 2
        self.finished += 1


def network():
    rng = np.random.default_rng(0)
    return Sequential(
        Conv2d(3, 8, rng=rng), ReLU(), Conv2d(8, 8, rng=rng), ReLU(), Flatten(), Linear(512, 4, rng=rng)
    )


def backward(net, engine, reduction):
    x = np.random.default_rng(1).standard_normal((5, 8, 8, 3)).astype("float32")
    y = engine.forward(x)
    with reduction.while_backward():
        engine.backward(np.ones_like(y))
        return len(reduction.ranks.begun)  # sent before backward had ended


def test_slices_are_cut_from_the_end_and_hold_everything_once():
    buffer = network()[0].weight.buffer
    for size in (4, 100, 1000, 1 << 20):
        slices = Reduction(buffer, Twins(), size).slices
        assert slices[0].stop == buffer.size and slices[-1].start == 0
        assert all(a.start == b.stop for a, b in zip(slices, slices[1:], strict=False))
        assert all(part.stop - part.start == max(1, size // 4) for part in slices[:-1])


@pytest.mark.parametrize("engine", ["plan", "layers"])
def test_gradients_are_added_up_each_slice_as_soon_as_its_layers_are_done(engine):
    net, twins = network(), Twins()
    engine = make_engine(net, engine)
    y = engine.forward(np.random.default_rng(1).standard_normal((5, 8, 8, 3)).astype("float32"))
    engine.backward(np.ones_like(y))
    alone = net[0].weight.buffer.grad.copy()
    reduction = Reduction(net[0].weight.buffer, twins, slice_bytes=4 * 100)
    early = backward(net, engine, reduction)
    np.testing.assert_array_equal(net[0].weight.buffer.grad, 2 * alone)
    assert [x.size for x, _ in twins.begun] == [s.stop - s.start for s in reduction.slices]
    assert early == len(reduction.slices) and twins.finished == 1  # every slice was sent by its layers


def test_frozen_parameters_lie_in_no_slice_also_when_frozen_later():
    net, twins = network(), Twins()
    engine = make_engine(net)
    reduction = Reduction(net[0].weight.buffer, twins, slice_bytes=400)
    net.freeze("2")
    backward(net, engine, reduction)
    inside = {i for part in reduction.slices for i in range(part.start, part.stop)}
    frozen = {i for p in net[2].parameters().values() for i in range(p.span.start, p.span.stop)}
    assert not inside & frozen and len(inside) == net[0].weight.buffer.size - len(frozen)


def test_where_backward_fails_nothing_is_observed_any_more():
    net = network()
    reduction = Reduction(net[0].weight.buffer, Twins())
    with pytest.raises(RuntimeError, match="midway"), reduction.while_backward():
        raise RuntimeError("midway")
    assert net[0].weight.buffer.observer is None
