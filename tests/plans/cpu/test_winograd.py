"""Winograd's algorithm: its matrices, its accuracy, and how it divides its work."""

from __future__ import annotations

import numpy as np
import pytest

from scratchnet import layers, models, plans
from scratchnet.plans.cpu import blocks, winograd
from scratchnet.plans.cpu.calls import split_evenly
from scratchnet.plans.cpu.winograd import transforms
from scratchnet.plans.cpu.winograd.base import WinogradBase
from tests.fakes.one_layer import EPSILON, assert_accurate, error, one_layer


@pytest.mark.parametrize(
    "channels, outputs, shape",
    [
        (64, 64, (4, 16, 16)),  # by rows of tiles
        (128, 192, (3, 8, 8)),  # by phases
        (256, 256, (2, 4, 4)),  # one tile
        (8, 70, (5, 9, 13)),  # not whole tiles, and a last narrow block of columns
        (5, 6, (1, 3, 3)),
        (16, 16, (2, 40, 5)),
        (4, 4, (17, 6, 7)),
    ],
)
def test_winograd_is_accurate_forward_and_backward(channels, outputs, shape):
    plan, *results = one_layer(layers.Conv2d(channels, outputs), (*shape, channels))
    assert plan.kernels[0].algorithm == "winograd"
    assert_accurate(*results)


@pytest.mark.parametrize("size", [(8, 8), (10, 6), (9, 11)])
def test_winograd_with_relu_and_pooling(size):
    plan, *results = one_layer(layers.Conv2d(16, 24), (3, *size, 16), relu=True, pool=True)
    assert plan.kernels[0].algorithm == "winograd" and len(plan.kernels) == 1
    assert_accurate(*results)


def test_winograd_without_a_bias():
    _, *results = one_layer(layers.Conv2d(16, 24, bias=False), (3, 8, 8, 16), relu=True)
    assert_accurate(*results)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_a_single_picture_gives_all_workers_the_same_work(monkeypatch, workers):
    monkeypatch.setenv("SCRATCHNET_THREADS", str(workers))
    net = models.vgg16(2, image_size=64).eval()
    plan = plans.compile(net, (1, 64, 64, 3))
    assert [kernel.algorithm for kernel in plan.kernels[:6]] == ["first_conv"] + 5 * ["winograd"]
    for kernel in plan.kernels[:6]:
        calls = [len(worker) for worker in kernel.record_forward()[0].workers]
        assert min(calls) > 0
        if kernel.algorithm == "winograd":
            rows = [sum(kernel.parts[k].R for k in some) for some in split_evenly(len(kernel.parts), workers)]
            assert max(rows) - min(rows) <= 1


def test_winograds_matrices_compute_a_convolution_of_one_dimension():
    rng = np.random.default_rng(0)
    d, g = rng.standard_normal(6), rng.standard_normal(3)
    y = np.array(transforms._AT) @ ((np.array(transforms._G) @ g) * (np.array(transforms._BT) @ d))
    np.testing.assert_allclose(y, np.correlate(d, g, "valid"), rtol=1e-12)


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

    assert lost(winograd.POINTS) < 0.5 * lost((0, 1, -1, 2, -2))


def test_kept_weights_are_read_once_for_a_single_picture(monkeypatch):
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
