"""Networks for plans on a GPU, and the comparison of a plan with the layers on NumPy."""

import numpy as np

from scratchnet import backend, plans
from scratchnet.layers import (
    BatchNorm2d,
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
)
from tests.fakes.comparing import assert_close, away_from_kinks, batch

# Largest difference of a result, as a share of its norm: float32 sums in another order; 11 and 8 significant
# bits in each product, through a few layers.
TOLERANCE = {"fp32": 2e-5, "tf32": 1e-2, "bf16": 6e-2}


def plain():
    return Sequential(
        Conv2d(3, 8), ReLU(), Conv2d(8, 8), ReLU(), MaxPool2d(2), Conv2d(8, 5), ReLU(), MaxPool2d(2),
        Flatten(), Linear(20, 12), ReLU(), Linear(12, 10),
    )  # fmt: skip


def normalised():
    return Sequential(
        Conv2d(3, 8, bias=False), BatchNorm2d(8), ReLU(), Conv2d(8, 6), BatchNorm2d(6), ReLU(), MaxPool2d(2),
        Conv2d(6, 8, kernel_size=1, padding=0), BatchNorm2d(8), GlobalAvgPool2d(), Linear(8, 10, bias=False),
    )  # fmt: skip


def copy_of(net, make):
    """Return a twin with the same parameters and statistics, on the host."""
    twin = make()
    for ours, theirs in zip(net.parameters().values(), twin.parameters().values(), strict=True):
        theirs.data = backend.to_numpy(ours.data)
    for ours, theirs in zip(net.buffers().values(), twin.buffers().values(), strict=True):
        theirs[...] = backend.to_numpy(ours)
    return twin


def assert_plan_equals_layers(
    device, make, shape, precision="fp32", dtype="float32", need_input_gradient=True
):
    """Run a plan beside the layers on NumPy: output, gradients and statistics, three times; then evaluation.

    The first time launches are made, the second time they are recorded, the third time only replayed.
    """
    tolerance = TOLERANCE[precision] if dtype == "float32" else 1e-10
    x = away_from_kinks(make, shape, dtype, seed=2)
    planned, layered = make().to(device), make()
    plan = plans.compile(planned, shape, training=True, precision=precision)
    for _ in range(3):
        y, expected = plan.forward(device.asarray(x)), layered.forward(x)
        assert_close(device.to_numpy(y), expected, tolerance)
        dy = batch(*y.shape, dtype=dtype, seed=3)
        dx, right = plan.backward(device.asarray(dy), need_input_gradient), layered.backward(dy)
        assert (dx is not None) == need_input_gradient
        if dx is not None:
            assert_close(device.to_numpy(dx), right, 4 * tolerance)
        assert_same_gradients(device, planned, layered, 4 * tolerance)
    for (name, a), b in zip(planned.buffers().items(), layered.buffers().values(), strict=True):
        assert_close(device.to_numpy(a), b, tolerance), name
    plan = plans.compile(planned.eval(), shape, precision=precision)
    for _ in range(3):
        y = plan.forward(device.asarray(x))
        assert_close(device.to_numpy(y), layered.eval().forward(x), 2 * tolerance)
    return plan


def assert_same_gradients(device, net, twin, tolerance):
    """Compare the gradients of a network on the device with those of its twin on the host."""
    largest = max(np.linalg.norm(p.grad) for p in twin.parameters().values() if p.trainable)
    for (name, a), b in zip(net.parameters().items(), twin.parameters().values(), strict=True):
        assert (a.grad is None) == (b.grad is None) == (not b.trainable), name
        if b.trainable:
            # A bias in front of a batch normalisation has no gradient but what rounding makes of it.
            scale = max(np.linalg.norm(b.grad), 0.02 * largest)
            assert np.linalg.norm(device.to_numpy(a.grad) - b.grad) <= tolerance * scale, name
