"""Plans for inference: folded normalisations, and weights that are transformed once."""

from __future__ import annotations

import numpy as np
import pytest

from scratchnet import layers, plans
from scratchnet.layers import Conv2d, Linear, ReLU, Sequential
from tests.fakes.comparing import (
    assert_close,
    batch,
    small_vgg,
)


@pytest.mark.parametrize("image_size", [32, 50])
@pytest.mark.parametrize("algorithm", ["auto", "im2col"])
def test_normalisation_is_folded_into_convolutions(image_size, algorithm):
    net = small_vgg(batch_norm=True, image_size=image_size, head="gap")
    rng = np.random.default_rng(0)
    for name, statistics in net.buffers().items():  # as different as training makes them
        statistics[...] = rng.random(statistics.shape) + 0.5 * name.endswith("var")
    for parameter in net.parameters().values():
        parameter.data = parameter.data + 0.1 * rng.standard_normal(parameter.shape).astype("float32")
    net.eval()
    x = batch(3, image_size, image_size, 3)
    plan = plans.compile(net, x.shape, algorithm=algorithm)
    assert not any(isinstance(group.main, layers.BatchNorm2d) for group in plan.groups)
    assert_close(plan.forward(x), net.forward(x), 2e-5)


def test_a_normalisation_without_a_convolution_before_it():
    net = Sequential(layers.BatchNorm2d(3), ReLU(), Conv2d(3, 4), ReLU(), layers.BatchNorm2d(4)).eval()
    net[4].running_mean[...] = 0.5
    x = batch(2, 8, 8, 3)
    assert_close(plans.compile(net, x.shape).forward(x), net.forward(x), 1e-5)


def test_folded_statistics_follow_training():
    net = small_vgg(batch_norm=True, dropout=0.0)
    x = batch(4, 32, 32, 3)
    training = plans.compile(net, x.shape, training=True)
    inference = plans.compile(net.eval(), x.shape)
    before = inference.forward(x)
    for forward in (training.forward, net.forward):  # statistics move, though no parameter does
        net.train()
        forward(x)
        net.eval()
        after = inference.forward(x)
        assert not np.allclose(before, after)
        assert_close(after, net.forward(x), 2e-5)
        before = after


def test_statistics_that_are_written_in_place_are_noticed():
    net = small_vgg(batch_norm=True).eval()
    x = batch(2, 32, 32, 3)
    plan = plans.compile(net, x.shape)
    plan.forward(x)
    for change in (lambda a: a + 0.3, lambda a: a * 2):
        for statistics in net.buffers().values():
            statistics[...] = change(statistics)
        assert_close(plan.forward(x), net.forward(x), 2e-5)
    next(layer for layer in net.layers if isinstance(layer, layers.BatchNorm2d)).eps = 0.1
    with pytest.raises(RuntimeError, match="other settings"):
        plan.forward(x)


def test_an_interruption_while_a_plan_moves_leaves_it_usable(monkeypatch):
    net = small_vgg().eval()
    x = batch(2, 32, 32, 3)
    plan = plans.compile(net, x.shape)
    expected = plan.forward(x)
    plans.compile(net, (9, 32, 32, 3))  # the workspace grows, so the next forward moves
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(plan.kernels[2], "record_forward", interrupt)
        plan.forward(x)
    assert (plan.forward(x) == expected).all()


def interrupt():
    raise KeyboardInterrupt


def test_how_much_memory_transformed_weights_take(monkeypatch):
    net = small_vgg(width=0.5, classifier_width=64).eval()
    x = batch(3, 32, 32, 3)
    size = 4 * sum(p.size for p in net.parameters().values())
    kept, outputs = {}, []
    for megabytes in ("", "0", "1", "1000"):
        monkeypatch.setenv("SCRATCHNET_PLAN_MEMORY", megabytes)
        plan = plans.compile(net, x.shape)
        outputs += [plan.forward(x), plan.forward(x)]  # twice: the workspace has been used in between
        kept[megabytes] = sum(kernel.weight_bytes for kernel in plan.kernels if kernel.keeps_weights)
    assert all((y == outputs[0]).all() for y in outputs)
    assert 0 == kept["0"] < kept["1"] <= 1_000_000 and 0 < kept[""] <= size / 4 < kept["1000"]


@pytest.mark.parametrize("megabytes", ["-1", "much", "1.5"])
def test_a_budget_that_makes_no_sense(monkeypatch, megabytes):
    monkeypatch.setenv("SCRATCHNET_PLAN_MEMORY", megabytes)
    with pytest.raises(ValueError, match="whole number of megabytes"):
        plans.compile(small_vgg().eval(), (1, 32, 32, 3))


@pytest.mark.parametrize("megabytes", ["0", "1000"])
def test_transformed_weights_follow_the_parameters(monkeypatch, megabytes):
    monkeypatch.setenv("SCRATCHNET_PLAN_MEMORY", megabytes)
    net = small_vgg().eval()
    x = batch(2, 32, 32, 3)
    plan = plans.compile(net, x.shape)
    for _ in range(2):
        assert_close(plan.forward(x), net.forward(x), 2e-5)
        for parameter in net.parameters().values():
            parameter.data = parameter.data * np.float32(1.1)


def test_a_cpu_has_one_precision():
    with pytest.raises(ValueError, match="precision must be fp32 on a CPU, not 'bf16'"):
        plans.compile(Linear(4, 2), (8, 4), precision="bf16")
