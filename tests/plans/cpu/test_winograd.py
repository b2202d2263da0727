"""Winograd's algorithm: its matrices, its accuracy, and how it divides its work."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchnet import layers, models, plans
from scratchnet.plans.cpu import blocks, winograd
from scratchnet.plans.cpu.calls import Calls
from scratchnet.plans.cpu.winograd.base import WinogradBase, own_columns
from scratchnet.plans.cpu.winograd.transforms import TRANSFORMS
from tests.fakes.one_layer import EPSILON, assert_accurate, assert_plan_equals_layers, error, one_layer

sizes_of_tiles = st.sampled_from([4, 6])
sizes = pytest.mark.parametrize("size", [4, 6])


@sizes
@pytest.mark.parametrize(
    "channels, outputs, shape, order",
    [
        (64, 64, (4, 16, 16), "rows"),
        (192, 192, (3, 8, 8), "phases"),
        (256, 256, (2, 4, 4), "phases"),  # one tile in a row
        (8, 70, (5, 9, 13), "rows"),  # not whole tiles, and a last narrow block of columns
        (5, 6, (1, 3, 3), "rows"),
        (16, 16, (2, 40, 5), "rows"),
        (4, 4, (17, 6, 7), "rows"),
    ],
)
def test_winograd_is_accurate_forward_and_backward(channels, outputs, shape, order, size):
    name = f"winograd{size}"
    plan, *results = one_layer(layers.Conv2d(channels, outputs), (*shape, channels), algorithm=name)
    assert plan.kernels[0].algorithm == name and plan.kernels[0].describe().startswith(f"by {order}")
    assert_accurate(*results)


@sizes
def test_the_error_that_is_told_is_the_error(size):
    shape = 2, 6 * size, 6 * size, 256
    plan, got, expected = one_layer(layers.Conv2d(256, 256), shape, algorithm=f"winograd{size}")
    told = float(plan.kernels[0].describe().split("error ")[1])
    assert 0.7 * told < error(got["dx"], expected["dx"]) < 1.1 * told < EPSILON
    assert error(got["y"], expected["y"]) < told


@given(
    *[st.integers(1, 9)] * 5, st.integers(1, 4), st.booleans(), st.booleans(), st.booleans(), sizes_of_tiles
)
@settings(max_examples=100, deadline=None)
def test_any_image_in_either_order_on_any_number_of_workers(
    N, H, W, C, O, workers, training, pool, rows, size
):
    pooled = pool and min(H, W) >= 2
    net = layers.Sequential(layers.Conv2d(C, O), layers.ReLU(), *[layers.MaxPool2d(2)] * pooled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scratchnet.plans.cpu.winograd.LARGEST_WEIGHTS", 1 << 20 if rows else 0)
        plan = assert_plan_equals_layers(net, (N, H, W, C), workers, training, algorithm=f"winograd{size}")
    assert plan.kernels[0].describe().startswith("by rows" if rows else "by phases")


@sizes
@pytest.mark.parametrize("shape", [(8, 8), (10, 6), (9, 11)])
def test_winograd_with_relu_and_pooling(shape, size):
    conv, name = layers.Conv2d(16, 24), f"winograd{size}"
    plan, *results = one_layer(conv, (3, *shape, 16), relu=True, pool=True, algorithm=name)
    assert plan.kernels[0].algorithm == name and len(plan.kernels) == 1
    assert_accurate(*results)


def test_winograd_without_a_bias():
    _, *results = one_layer(layers.Conv2d(16, 24, bias=False), (3, 8, 8, 16), relu=True)
    assert_accurate(*results)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_a_single_image_gives_all_workers_the_same_work(monkeypatch, workers):
    monkeypatch.setenv("SCRATCHNET_THREADS", str(workers))
    net = models.vgg16(2, image_size=64).eval()
    plan = plans.compile(net, (1, 64, 64, 3))
    assert [kernel.algorithm for kernel in plan.kernels[:6]] == ["first_conv"] + 5 * ["winograd4"]
    for kernel in plan.kernels[:6]:
        calls = [len(worker) for worker in kernel.record_forward()[0].workers]
        assert min(calls) > 0
        if kernel.algorithm == "winograd4":
            rows = [sum(part.R for part in parts) for parts in kernel.parts_evenly()]
            assert max(rows) - min(rows) <= 1


@pytest.mark.parametrize("points", [(0, 1, -1), *winograd.POINTS.values()])
def test_matrices_of_any_points_compute_a_convolution_of_one_dimension(points):
    rng = np.random.default_rng(0)
    d, g = rng.standard_normal(len(points) + 1), rng.standard_normal(3)
    BT, G, AT = winograd.matrices(points)
    np.testing.assert_allclose(AT @ ((G @ g) * (BT @ d)), np.correlate(d, g, "valid"), rtol=1e-11)


def recorded(transform, *arguments, **flags):
    """Record a transform and run it, with scratch that is large enough and full of other numbers."""
    do = Calls()
    transform(do, *arguments, **flags)
    do.run()


def scratch():
    return np.full(100_000, np.nan, np.float32)


@sizes
@pytest.mark.parametrize("TW", [1, 2, 3])
def test_transforms_are_those_of_the_definition(TW, size):
    R, n, C, m, P, of = 2, 2, 3, size, size + 2, TRANSFORMS[size]
    rng = np.random.default_rng(0)
    L = TW * n * C
    image = np.zeros((m * R + 2, m * TW + 2, n, C), np.float32)  # with a border of zeros
    image[1:-1, 1:-1] = rng.standard_normal((m * R, m * TW, n, C))
    x = np.ascontiguousarray(image[:, 1:-1].reshape(-1, TW, m, n, C).swapaxes(1, 2))  # (rows, m, TW, n, C)
    windows = np.lib.stride_tricks.sliding_window_view(image, (P, P), axis=(0, 1))[::m, ::m]
    V, expected = np.empty((P, P, R, L), np.float32), of.BT @ windows @ of.BT.T
    recorded(of.input_transform, x, scratch(), V, clear=True)
    np.testing.assert_allclose(V, expected.transpose(4, 5, 0, 1, 2, 3).reshape(V.shape), rtol=1e-4, atol=1e-4)

    M, y = rng.standard_normal((P, P, R, L)).astype(np.float32), np.empty((R, m, m, L), np.float32)
    recorded(of.output_transform, M, scratch(), y)
    expected = np.einsum("ip,jq,pqrl->rijl", of.AT, of.AT, M)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-3)


@sizes
@pytest.mark.parametrize("TW", [1, 2, 3])
def test_backward_transforms_are_adjoint(TW, size):
    R, n, C, m, P, of = 2, 2, 3, size, size + 2, TRANSFORMS[size]
    rng = np.random.default_rng(0)
    L = TW * n * C

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    M, y, dy, dM = draw(P, P, R, L), draw(R, m, m, L), draw(R, m, m, L), draw(P, P, R, L)
    recorded(of.output_transform, M, scratch(), y)
    recorded(of.dy_transform, dy, scratch(), dM)
    assert np.vdot(y, dy) == pytest.approx(np.vdot(M, dM), rel=1e-4)

    x, V = np.zeros((m * R + 2, m, TW, n, C), np.float32), draw(P, P, R, L)
    x[1:-1] = draw(m * R, m, TW, n, C)
    recorded(of.input_transform, x, scratch(), V, clear=True)
    dV = draw(P, P if TW == 1 else P + 2, R, L)
    inner = own_columns(dV).copy()
    half_dx, dx = np.zeros((P * R + 2, m, L), np.float32), draw(m * R, m, TW, n, C)
    recorded(of.dV_columns, dV, TW, half_dx[1:-1], clear=True)
    recorded(of.dV_rows, half_dx, dx)
    assert np.vdot(x[1:-1], dx) == pytest.approx(np.vdot(V, inner), rel=1e-4)


def test_winograds_points_lose_less_than_half_of_what_the_usual_ones_lose():
    rng = np.random.default_rng(0)
    d = rng.standard_normal((6, 6, 50, 64)).astype(np.float32)  # 50 tiles of 64 channels
    g = rng.standard_normal((3, 3, 64, 8)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(d.astype(np.float64), (3, 3), axis=(0, 1))
    expected = np.einsum("yxtcij,ijco->yxto", windows, g.astype(np.float64), optimize=True)

    def lost(points):
        BT, G, AT = (m.astype(np.float32) for m in winograd.matrices(points))
        both = lambda m, x: np.einsum("ip,jq,pq...->ij...", m, m, x, optimize=True)  # noqa: E731
        y = both(AT, both(BT, d) @ both(G, g))
        assert y.dtype == np.float32
        return error(y, expected)

    assert lost(winograd.POINTS[4]) < 0.5 * lost((0, 1, -1, 2, -2))


def test_kept_weights_are_read_once_for_a_single_image(monkeypatch):
    net = layers.Sequential(layers.Conv2d(512, 128)).eval()
    x = np.random.default_rng(0).standard_normal((1, 28, 28, 512)).astype(np.float32)
    monkeypatch.setenv("SCRATCHNET_PLAN_MEMORY", "100")
    monkeypatch.setattr("scratchnet.plans.cpu.measuring.block_limit", lambda: blocks.SMALL)
    results, widths = [], []
    for _ in range(2):
        plan = plans.compile(net, x.shape)
        results.append(plan.forward(x).copy())
        widths.append({U.shape[-1] for U in plan.kernels[0].kept_U})
        monkeypatch.setattr(WinogradBase, "_columns_at_once", lambda kernel: blocks.COLUMNS)
    assert widths == [{32}, {64}]
    assert error(*results) < EPSILON
