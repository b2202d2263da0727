"""Plans as their users see them: the same as the layers, and what they tell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scratchnet import layers, losses, optim, plans
from scratchnet.layers import Conv2d, Dropout, Flatten, Linear, ReLU, Sequential
from tests.fakes.comparing import (
    Scale,
    assert_plan_equals_layers,
    batch,
    small_vgg,
)


@pytest.mark.parametrize("name", ["vgg11", "vgg13", "vgg16", "vgg19", "article"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_architecture_is_planned_without_fallback(name, batch_norm):
    plan = assert_plan_equals_layers(lambda: small_vgg(name, batch_norm=batch_norm), (5, 32, 32, 3))
    assert "fallback" not in plan.describe()


@pytest.mark.parametrize("images, size, width", [(1, 32, 0.016), (3, 44, 0.25), (2, 50, 0.1), (1, 224, 0.05)])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_any_size_width_and_batch(images, size, width, batch_norm):
    def make():
        return small_vgg(image_size=size, width=width, batch_norm=batch_norm, head="gap")

    if batch_norm and size < 44:
        images = 3  # one value a channel has no variance
    plan = assert_plan_equals_layers(make, (images, size, size, 3), tolerance=2e-4)
    assert "fallback" not in plan.describe()


def test_the_plainest_algorithm_on_request():
    plan = assert_plan_equals_layers(small_vgg, (4, 32, 32, 3), algorithm="im2col", tolerance=5e-6)
    assert "winograd" not in plan.describe()


def test_a_float64_network():
    make = lambda: small_vgg(batch_norm=True, dtype="float64")  # noqa: E731
    assert_plan_equals_layers(make, (4, 32, 32, 3), dtype="float64", tolerance=1e-10)


class Twice(layers.Layer):
    """A composite of the user's own, whose list of layers is no chain."""

    def __init__(self):
        super().__init__()
        self.layers = [Conv2d(8, 8), Conv2d(8, 8)]

    def forward(self, x):
        return self.save_for_backward(self.layers[0].forward(x) + self.layers[1].forward(x), None)

    def backward(self, dy):
        self.saved(dy)
        return self.layers[0].backward(dy) + self.layers[1].backward(dy)


def test_layers_of_the_users_own_run_by_their_own_passes():
    def make():
        return Sequential(
            Scale(3), Conv2d(3, 8), ReLU(), Scale(8), Conv2d(8, 8), Twice(), ReLU(),
            layers.MaxPool2d(3, 2), Dropout(0.3), Flatten(), Dropout(0.0), Linear(8 * 4 * 4, 5),
        )  # fmt: skip

    plan = assert_plan_equals_layers(make, (3, 10, 10, 3))
    described = [line for line in plan.describe().splitlines() if "fallback" in line]
    assert [line.split()[1] for line in described] == ["Scale", "Scale", "Twice"]


def test_layers_and_plan_can_be_used_in_turn():
    net, twin = (small_vgg(seed=1) for _ in range(2))
    x, labels = batch(6, 32, 32, 3), np.arange(6)
    plan = plans.compile(net, x.shape, training=True)
    short = plans.compile(net, (2, 32, 32, 3), training=True)  # the last batch of an epoch
    values = []
    for network, engines in ((net, (plan, net, short, plan)), (twin, (twin,) * 4)):
        loss, sgd = losses.SoftmaxCrossEntropy(), optim.SGD(network.parameters(), 0.01, momentum=0.9)
        values.append([])
        for step, engine in enumerate(engines):
            n = 2 if step == 2 else 6
            values[-1].append(float(loss.forward(engine.forward(x[:n]), labels[:n])))
            engine.backward(loss.backward(), need_input_gradient=False)
            sgd.step()
    np.testing.assert_allclose(values[0], values[1], rtol=1e-4)


def test_gradients_stay_within_ten_times_the_rounding_of_the_layers():
    x, labels = batch(4, 32, 32, 3), np.arange(4)
    gradients = []
    for dtype, planned in (("float32", True), ("float32", False), ("float64", False)):
        net = small_vgg("vgg16", width=0.5, dropout=0.0)
        if dtype == "float64":
            net.parameters()["features.0.weight"].buffer.cast("float64")
            for _, layer in net.walk():
                layer.dtype = np.dtype("float64")
        engine = plans.compile(net, x.shape, training=True) if planned else net
        loss = losses.SoftmaxCrossEntropy()
        loss.forward(engine.forward(x.astype(dtype)), labels)
        engine.backward(loss.backward(), need_input_gradient=False)
        gradients.append(net.parameters()["features.0.weight"].buffer.grad.astype(float))
    plan, layer, exact = gradients
    # Winograd rounds four to six times as much as one sum does, where no ReLU or pooling decides otherwise.
    assert np.linalg.norm(plan - exact) < 10 * np.linalg.norm(layer - exact) < 1e-4 * np.linalg.norm(exact)


def test_results_are_the_callers_and_inputs_are_left_alone():
    net = small_vgg(dropout=0.0)
    plan = plans.compile(net, (2, 32, 32, 3), training=True)
    x, dy = batch(2, 32, 32, 3), batch(2, 10)
    kept = x.copy(), dy.copy()
    y = plan.forward(x)
    before = y.copy()
    dx = plan.backward(dy, need_input_gradient=True)
    kept_dx = dx.copy()
    plan.forward(x + 1)
    plan.backward(dy)
    np.testing.assert_array_equal(y, before)
    np.testing.assert_array_equal(dx, kept_dx)
    np.testing.assert_array_equal(x, kept[0])
    np.testing.assert_array_equal(dy, kept[1])


def test_same_bits_every_time():
    results = []
    for _ in range(2):
        net = small_vgg(batch_norm=True)
        plan = plans.compile(net, (9, 32, 32, 3), training=True)
        y = plan.forward(batch(9, 32, 32, 3))
        plan.backward(y)
        results.append((y, net.parameters()["features.0.weight"].buffer.grad.copy()))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("threads", ["1", "3", "5"])
def test_any_number_of_workers(monkeypatch, threads):
    monkeypatch.setenv("SCRATCHNET_THREADS", threads)
    assert_plan_equals_layers(lambda: small_vgg(batch_norm=True), (4, 32, 32, 3))
    assert_plan_equals_layers(lambda: small_vgg(width=0.5), (1, 32, 32, 3))


@pytest.mark.parametrize("architecture", ["Haswell"])
def test_a_machine_without_kernels_for_small_matrices(architecture):
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests.fakes.comparing import *\n"
        "assert_plan_equals_layers(lambda: small_vgg(width=0.5), (4, 32, 32, 3))\n"
    )
    environment = {**os.environ, "OPENBLAS_CORETYPE": architecture}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=root, timeout=120)


# Telling


def test_describe_has_a_line_for_each_group_and_their_share_of_the_time():
    plan = plans.compile(small_vgg(dropout=0.0), (4, 32, 32, 3), training=True)
    plan.backward(plan.forward(batch(4, 32, 32, 3)))
    lines = plan.describe().splitlines()
    assert len(lines) == 3 + len(plan.groups)
    assert "mean over 1 forward and 1 backward passes" in lines[-1] and "plan.clock.reset()" in lines[-1]
    assert "features.0-2" in lines[2] and "winograd" in lines[3] and lines[3].endswith("%")


def test_describe_lists_every_buffer_with_its_bytes_on_request():
    plan = plans.compile(small_vgg(), (2, 32, 32, 3), training=True)
    told = [line for line in plan.describe(buffers=True).splitlines() if " bytes at " in line]
    last = plan.maps[-1]  # the output is no group's input
    expected = [b for b in plan.arena.buffers if b not in last.buffers.values()]
    assert len(told) == len(expected)
    assert sum(int(line.split(" bytes")[0].split()[-1].replace(",", "")) for line in told) == sum(
        buffer.nbytes for buffer in expected
    )
