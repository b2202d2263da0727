"""The optimizer."""

import numpy as np
import pytest

from scratchnet import optim
from scratchnet.parameters import Parameter
from scratchnet.plans.cuda.launch.images import advance
from scratchnet.plans.cuda.launch.sgd import sgd
from tests.fakes.device_arrays import as_operands, numbers


def check_sgd(k, size, offset=0, steps=3, **settings):
    rates = np.float32([0.1, 0.5, 0.01])
    weight = Parameter(numbers(size))
    ours = optim.SGD({"w": weight}, lr=0.0, **settings)
    values, velocity = k.put(weight.data, offset), k.put(np.zeros(size, "float32"), offset)
    batch, operands = k.put(np.zeros(1, "int64")), k.empty(size, "uint16")
    for step in range(steps):
        gradient = numbers(size, seed=step + 1)
        ours.lr, weight.grad = float(rates[step]), gradient
        ours.step()
        v = velocity if settings.get("momentum") else None
        sgd(values, k.put(gradient), v, k.put(rates), batch, operands=operands, **settings)
        advance(batch)
        np.testing.assert_allclose(k.get(values), weight.data, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(k.get(operands), as_operands(k.get(values), "uint16"))
    if v is not None:
        np.testing.assert_allclose(k.get(velocity), ours.momentum_buffer, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size, offset", [(1, 0), (9, 0), (1024, 0), (1024, 1), (5000, 0)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
def test_sgd(k, size, offset, settings, decay):
    check_sgd(k, size, offset, weight_decay=decay, **settings)


def test_sgd_on_a_part_of_the_flat_buffers(k):
    values, gradients = k.put(numbers(20)), k.put(numbers(20, seed=1))
    rates, batch = k.put(np.float32([1.0])), k.put(np.zeros(1, "int64"))
    sgd(values[4:12], gradients[4:12], None, rates, batch)
    expected = numbers(20)
    expected[4:12] -= numbers(20, seed=1)[4:12]
    np.testing.assert_array_equal(k.get(values), expected)


FAULTS = {
    "momentum of the step before": (
        "sgd.cu", "((Pack*)velocity)[k] = v;",
        "((Pack*)velocity)[k] = g;", lambda k: check_sgd(k, 9, momentum=0.9),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(plant, fault):
    plant(*FAULTS[fault])
