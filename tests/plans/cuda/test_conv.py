"""What the convolutions of a GPU's plan leave out, and how they cut their work."""

import numpy as np
import pytest

from scratchnet import backend, plans
from scratchnet.layers import BatchNorm1d, BatchNorm2d, Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential
from scratchnet.plans.cuda import conv
from scratchnet.plans.cuda.matmul import Matmul
from tests.fakes import cuda_runtime
from tests.fakes.comparing import assert_close, batch
from tests.fakes.cuda_networks import assert_plan_equals_layers

SHAPE = (4, 6, 6, 3)


def with_biases(bias=True):
    """A convolution and a linear layer before a batch normalisation, and one before a ReLU."""
    net = Sequential(
        Conv2d(3, 8, bias=bias), BatchNorm2d(8), ReLU(), MaxPool2d(2),
        Conv2d(8, 8), ReLU(), BatchNorm2d(8),
        Flatten(), Linear(72, 12, bias=bias), BatchNorm1d(12), ReLU(), Linear(12, 5),
    )  # fmt: skip
    for k, (name, p) in enumerate(net.parameters().items()):
        if name.endswith("bias"):
            p.data = np.random.default_rng(k).standard_normal(p.shape).astype("float32")
    return net


def test_a_bias_before_a_batch_normalisation_moves_the_running_mean_alone(device):
    assert_plan_equals_layers(device, with_biases, SHAPE)
    net = with_biases().to(device)
    plan = plans.compile(net, SHAPE, training=True)
    net.parameters()["0.bias"].grad = device.asarray(np.ones(8, "float32"))
    for _ in range(3):
        y = plan.forward(device.asarray(batch(*SHAPE)))
        plan.backward(device.asarray(batch(*y.shape, seed=3)))
    for name in ("0.bias", "8.bias"):
        np.testing.assert_array_equal(device.to_numpy(net.parameters()[name].grad), 0.0)
    assert np.abs(device.to_numpy(net.parameters()["4.bias"].grad)).max() > 0


def test_such_a_bias_costs_no_pass_over_the_map(stand_in):
    launches = {}
    for bias in (True, False):
        plan = plans.compile(with_biases(bias).to("cupy"), SHAPE, training=True)
        dy = stand_in.zeros((4, 5), "float32")
        for name, run in (("forward", plan.launch_forward), ("backward", lambda p=plan: p.launch_backward())):
            plan.forward(stand_in.zeros(SHAPE, "float32"))
            plan._buffer.allocate_grad()
            with cuda_runtime.counted() as traffic:
                run()
            launches[name, bias] = traffic.launches
        assert dy.size
    assert launches["forward", True] == launches["forward", False]
    assert launches["backward", True] == launches["backward", False] + 2, "two gradients become zero"


def test_a_frozen_normalisation_keeps_the_bias(device):
    def make():
        net = with_biases()
        net.freeze("1")
        return net

    plan = plans.compile(make().to(device), SHAPE, training=True)
    twin, x = make(), batch(*SHAPE)
    assert_close(device.to_numpy(plan.forward(device.asarray(x))), twin.forward(x), 2e-5)


def test_the_first_layers_27_columns_become_32(stand_in):
    net = Sequential(Conv2d(3, 64), ReLU(), Conv2d(64, 64)).to("cupy").eval()
    first, second = plans.compile(net, SHAPE).kernels
    assert first.columns.shape[1] == first.padded.shape[0] == 32
    assert second.columns.shape[1] == 576


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_padded_columns_change_nothing(device, precision):
    def make():
        return Sequential(Conv2d(3, 8), Conv2d(8, 5, kernel_size=5, padding=2), Conv2d(5, 7), Flatten())

    assert_plan_equals_layers(device, make, SHAPE, precision)


def test_padding_is_zero_whatever_the_weights_become(device):
    """Not the memory after them: there an infinity times zero would be NaN."""
    net = Sequential(Conv2d(3, 8), Conv2d(8, 8)).to(device).eval()
    net[1].weight.data = device.asarray(np.full((3, 3, 8, 8), np.inf, "float32"))
    plan = plans.compile(net, SHAPE)
    for _ in range(3):
        plan.forward(device.asarray(batch(*SHAPE)))
        assert np.isfinite(device.to_numpy(plan.maps[1].data)).all()


def test_a_plan_that_moves_keeps_what_recorded_graphs_read(stand_in):
    net = Sequential(Conv2d(3, 8), Flatten()).to("cupy").eval()
    plan = plans.compile(net, SHAPE)
    before = plan.kernels[0].padded
    plan.bind()
    assert plan.kernels[0].padded is before


def test_a_matrix_may_be_the_first_columns_of_a_wider_one(device):
    a, b = batch(64, 32, seed=1), batch(64, 16, seed=2)
    out = device.xp.empty((27, 16), "float32")
    Matmul(device.xp, "fp32")(device.asarray(a)[:, :27], device.asarray(b), out, transpose_a=True)
    assert_close(device.to_numpy(out), a[:, :27].T @ b, 1e-6)


@pytest.mark.parametrize(
    "l2, megabytes",  # an RTX 3070 Ti, an A100, an H100, an RTX 4090
    [(4 << 20, 32), (40 << 20, 32), (50 << 20, 33), (72 << 20, 48)],
)
def test_the_column_matrix_fits_the_cache(stand_in, monkeypatch, l2, megabytes):
    monkeypatch.setattr(stand_in.cuda.runtime, "deviceGetAttribute", lambda attribute, device: l2)
    assert conv.column_bytes(stand_in) >> 20 == megabytes
    net = Sequential(Conv2d(64, 8)).to("cupy").eval()
    (kernel,) = plans.compile(net, (64, 32, 32, 64)).kernels
    assert kernel.columns.nbytes <= megabytes << 20 < 2 * kernel.columns.nbytes
    monkeypatch.setattr(conv, "COLUMN_BYTES", 1 << 20)
    assert conv.column_bytes(stand_in) == 1 << 20
    assert backend.get("cupy").xp is stand_in
