"""Batch normalisation: which statistics it uses, and which it tracks."""

import numpy as np
import pytest

from scratchnet.functional import Across
from scratchnet.layers import BatchNorm1d, BatchNorm2d, ReLU, Sequential
from tests.fakes.processes import Meeting


def normal(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def test_running_statistics_follow_the_batches_with_the_unbiased_variance():
    layer = BatchNorm2d(2, momentum=0.3, dtype="float64")
    mean, var = np.zeros(2), np.ones(2)
    for seed in range(3):
        x = normal(2, 3, 4, 2, seed=seed, dtype="float64") * 2 + 5
        layer.forward(x)
        mean += 0.3 * (x.mean(axis=(0, 1, 2)) - mean)
        var += 0.3 * (x.var(axis=(0, 1, 2), ddof=1) - var)
    np.testing.assert_allclose(layer.running_mean, mean)
    np.testing.assert_allclose(layer.running_var, var)


def test_running_statistics_are_tracked_once_per_forward_and_never_in_evaluation_or_backward():
    layer, x = BatchNorm2d(2), normal(2, 5, 4, 2)
    y = layer.forward(x)
    before = layer.running_mean.copy()
    layer.backward(y)
    layer.eval().forward(x)
    with layer.recording():
        layer.backward(layer.forward(x))
    assert (layer.running_mean == before).all()


def test_running_statistics_are_updated_in_place_and_listed_as_buffers():
    net = Sequential(ReLU(), BatchNorm2d(2))
    mean = net[1].running_mean
    assert list(net.buffers()) == ["1.running_mean", "1.running_var"]
    net.forward(normal(2, 3, 3, 2))
    assert net.buffers()["1.running_mean"] is mean and mean.any()
    assert not any("running" in name for name in net.parameters())


def test_evaluation_uses_the_running_statistics():
    layer = BatchNorm2d(1, eps=0.0).eval()
    layer.running_mean[...], layer.running_var[...] = 3, 4
    assert layer.forward(np.full((1, 1, 1, 1), 7, "float32")) == 2


def test_one_value_per_channel_is_refused_in_training_only():
    layer, x = BatchNorm2d(3), normal(1, 1, 1, 3)
    with pytest.raises(ValueError, match="one value per channel has no variance to train with"):
        layer.forward(x)
    assert (layer.running_mean == 0).all()
    layer.eval().forward(x)


def test_rows_are_normalised_as_maps_of_one_pixel_are():
    rows, maps = BatchNorm1d(5), BatchNorm2d(5)
    x, dy = normal(6, 5), normal(6, 5, seed=1)
    for layer in (rows, maps):
        layer.weight.data[...], layer.bias.data[...] = normal(5, seed=2), normal(5, seed=3)
    assert (rows.forward(x) == maps.forward(x[:, None, None])[:, 0, 0]).all()
    assert (rows.backward(dy) == maps.backward(dy[:, None, None])[:, 0, 0]).all()
    assert (rows.weight.grad == maps.weight.grad).all() and (rows.bias.grad == maps.bias.grad).all()
    assert (rows.running_var == maps.running_var).all() and (rows.running_mean == maps.running_mean).all()


def test_a_frozen_layer_uses_and_keeps_its_running_statistics_in_training():
    layer, x = BatchNorm2d(2), normal(8, 3, 3, 2)
    layer.forward(x)
    mean, var = layer.running_mean.copy(), layer.running_var.copy()
    y = layer.freeze().forward(x + 1)
    dx = layer.backward(np.ones_like(y))
    assert layer.training and (layer.running_mean == mean).all() and (layer.running_var == var).all()
    assert (y == layer.eval().forward(x + 1)).all()
    np.testing.assert_allclose(dx, np.broadcast_to(1 / np.sqrt(var + layer.eps), x.shape), rtol=1e-6)
    layer.unfreeze().train().forward(x + 1)
    assert (layer.running_mean != mean).any()


def test_a_frozen_layer_takes_one_value_per_channel():
    assert BatchNorm2d(3).freeze().forward(normal(1, 1, 1, 3)).shape == (1, 1, 1, 3)


class Parts(Across):
    """Rank 0 has three rows of five, rank 1 has two."""

    def __init__(self, meeting, rank):
        self.meeting, self.rank = meeting, rank

    def sum(self, x):
        return self.meeting.sum(self.rank, x)

    def count(self, M):
        return M // (3, 2)[self.rank] * 5


def test_parts_of_a_batch_that_add_up_their_sums_are_normalised_as_the_whole_forward_and_backward():
    x, dy = (np.random.default_rng(seed).standard_normal((5, 3, 2, 4)) for seed in (0, 1))
    rows, meeting = (slice(0, 3), slice(3, 5)), Meeting(2)

    def layer():
        made = BatchNorm2d(4, dtype="float64")
        made.weight.data = np.array([1.0, 2.0, -1.0, 0.5])
        return made

    whole, parts = layer(), [layer(), layer()]
    y = whole.forward(x)
    dx = whole.backward(dy)

    def part(rank):
        parts[rank].across = Parts(meeting, rank)
        return parts[rank].forward(x[rows[rank]]), parts[rank].backward(dy[rows[rank]])

    for rank, (y_part, dx_part) in enumerate(meeting.run(part)):
        np.testing.assert_allclose(y_part, y[rows[rank]], rtol=1e-12)
        np.testing.assert_allclose(dx_part, dx[rows[rank]], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(parts[rank].running_var, whole.running_var, rtol=1e-12)
    for name in ("weight", "bias"):
        total = sum(getattr(some, name).grad for some in parts)
        np.testing.assert_allclose(total, getattr(whole, name).grad, rtol=1e-12)
