"""Planted faults: each is a mistake that is easy to make, and the comparison with the layers must see it."""

from __future__ import annotations

import numpy as np
import pytest

from scratchnet import layers, plans
from scratchnet.layers import Conv2d, ReLU, Sequential
from tests.fakes.comparing import (
    assert_close,
    assert_plan_equals_layers,
    batch,
)


def sees(make, shape):
    try:
        assert_plan_equals_layers(make, shape)
    except AssertionError:
        return True
    return False


def network_for_faults():
    return Sequential(Conv2d(3, 8), ReLU(), Conv2d(8, 8), ReLU(), layers.MaxPool2d(2), Conv2d(8, 8), ReLU())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # it computes with whatever is in memory
def test_fault_a_wrong_border(monkeypatch):
    from scratchnet.plans.cpu import padding

    monkeypatch.setattr(padding, "record_borders", lambda tiles, writer, reader: None)
    assert sees(network_for_faults, (3, 10, 10, 3))


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_fault_something_beyond_the_image(monkeypatch, images):
    from scratchnet.plans.cpu import padding

    assert not sees(network_for_faults, (images, 10, 10, 3))
    monkeypatch.setattr(padding, "clear_beyond", lambda calls, tiles, rows, first=0: None)
    assert sees(network_for_faults, (images, 10, 10, 3))


def test_fault_a_stale_transformed_weight(monkeypatch):
    monkeypatch.setenv("SCRATCHNET_PLAN_MEMORY", "1000")
    net = network_for_faults().eval()
    x = batch(3, 10, 10, 3)
    plan = plans.compile(net, x.shape)
    plan.forward(x)
    net[2].weight.view(net[0].weight.buffer.data)[...] *= np.float32(2)  # which is not counted
    stale = plan.forward(x)
    assert np.abs(stale - net.forward(x)).max() > 1e-3
    plan.refresh()
    assert_close(plan.forward(x), net.forward(x), 1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # it computes with whatever is in memory
def test_fault_a_buffer_freed_too_early(monkeypatch):
    from scratchnet.plans.memory import Arena

    reserve = Arena.reserve

    def early(self, name, shape, dtype, first_use, last_use):
        return reserve(self, name, shape, dtype, first_use, min(last_use, first_use + 1))

    monkeypatch.setattr(Arena, "reserve", early)
    assert sees(network_for_faults, (8, 16, 16, 3))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # it computes with whatever is in memory
def test_fault_a_missing_barrier(monkeypatch):
    from scratchnet.plans.cpu import plan

    def all_at_once(phases, clock, direction):
        for _, phase in sorted(phases, key=lambda p: p[1].name == "input"):  # the product does not wait
            for worker in phase.workers:
                worker.run()

    monkeypatch.setattr(plan, "run", all_at_once)
    assert sees(lambda: Sequential(Conv2d(256, 256), ReLU()), (2, 4, 4, 256))


def test_fault_a_tie_routed_twice(monkeypatch):
    from scratchnet.plans.cpu.epilogue import Epilogue

    def twice(self, do, worker, block, g, dy):
        rows, columns = 2 * g.shape[1], 2 * g.shape[2]
        for i in range(2):
            for j in range(2):
                do.copy(g, out=dy[:, i:rows:2, j:columns:2])

    monkeypatch.setattr(Epilogue, "_unpool", twice)
    assert sees(network_for_faults, (3, 8, 8, 3))


def test_fault_a_gradient_that_is_not_masked(monkeypatch):
    from scratchnet.plans.cpu.masking import Mask

    assert not sees(network_for_faults, (3, 8, 8, 3))
    monkeypatch.setattr(Mask, "record", lambda self, calls, gradient, data, scratch: None)
    assert sees(network_for_faults, (3, 8, 8, 3))
