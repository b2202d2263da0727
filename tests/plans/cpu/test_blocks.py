"""Matrix products in stacks of small blocks: they are the products."""

from __future__ import annotations

import numpy as np
import pytest

from scratchnet import plans
from scratchnet.layers import Conv2d, Flatten, Linear, ReLU, Sequential
from scratchnet.plans.cpu import blocks, measuring
from scratchnet.plans.cpu.calls import Calls


@pytest.mark.parametrize("limit", [0, 20_000, 1_000_000])
@pytest.mark.parametrize("shape", [(1, 1, 1), (64, 64, 64), (50, 33, 130), (7, 300, 65), (200, 3, 5)])
def test_blocks_of_a_product_are_the_product(shape, limit):
    M, K, N = shape
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3, M, K)), rng.standard_normal((2, 3, K, N))
    for left in (a, np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2)):
        out, do = np.zeros((2, 3, M, N)), Calls()
        blocks.product(do, left, b, out=out, block_shape=blocks.BlockShape(limit))
        do.run()
        np.testing.assert_allclose(out, a @ b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("M, K, N", [(1, 4096, 1024), (3, 4096, 40), (8, 1000, 640), (16, 784, 512)])
def test_a_product_of_few_rows_is_the_product(M, K, N):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((M, K)), rng.standard_normal((K, 2 * N))[:, N:]
    block = blocks.long_block(M, K, N, 1_000_000)
    k, n = block
    assert K % k == N % n == 0 and (M * k * n <= 1_000_000 if M > 1 else n == N)
    out, do = np.zeros((M, 2 * N)), Calls()
    blocks.long_product(do, a, b, out=out[:, :N], scratch=np.empty(K // k * M * N + 5), block=block)
    do.run()
    np.testing.assert_allclose(out[:, :N], a @ b, rtol=1e-9, atol=1e-9)
    assert not out[:, N:].any()


@pytest.mark.parametrize("run", [1, 1000, 70_000])
def test_combine_is_a_product_with_long_runs(run):
    rng = np.random.default_rng(0)
    matrix, x = rng.standard_normal((6, 4)), rng.standard_normal((2, 4, run))
    out, do = np.zeros((2, 6, run)), Calls()
    blocks.small_matmul(do, matrix, x, out=out)
    do.run()
    np.testing.assert_allclose(out, matrix @ x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("limit", [0, blocks.SMALL])
def test_no_measurement_shows_in_a_bit(monkeypatch, limit):
    """Whatever a busy machine makes of it: two runs must compute the same."""
    monkeypatch.setattr(measuring, "block_limit", lambda: limit)
    x = np.random.default_rng(0).standard_normal((4, 20, 20, 8)).astype("float32")
    results = []
    for seed in range(6):
        measuring._fastest_block_shape.cache_clear()
        seconds = np.random.default_rng(seed)
        monkeypatch.setattr(measuring, "_seconds", lambda do, seconds=seconds: seconds.random())
        rng = np.random.default_rng(1)
        layers = [
            Conv2d(8, 40, rng=rng),
            ReLU(),
            Conv2d(40, 16, rng=rng),
            Flatten(),
            Linear(6400, 70, rng=rng),
        ]
        net = Sequential(*layers)
        plan = plans.compile(net, x.shape, training=True)
        y = plan.forward(x)
        plan.backward(y)
        results.append([y.tobytes(), *(p.grad.tobytes() for p in net.parameters().values())])
    measuring._fastest_block_shape.cache_clear()
    assert all(result == results[0] for result in results)


def test_whether_blocks_are_small_is_measured_by_nothing(monkeypatch):
    def measured(do):
        raise AssertionError("a measurement would show in the bits")

    monkeypatch.setattr(measuring, "_seconds", measured)
    assert measuring.block_limit.__wrapped__() in (0, blocks.SMALL)
