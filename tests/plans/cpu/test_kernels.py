"""Each technique of plans/cpu/ on its own, against functional/ in float64."""

from __future__ import annotations

import numpy as np
import pytest

from scratchnet import functional as F
from scratchnet import layers, models, plans
from scratchnet.plans.cpu import blocks, choosing, layouts, toeplitz, winograd
from scratchnet.plans.cpu.steps import Steps, in_blocks, relu_, split_evenly
from scratchnet.plans.memory import Arena, in_planes, room_for

EPSILON = 1e-5  # relative error of one layer, which the project allows


def error(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def one_layer(conv, shape, *, pool=False, relu=False, algorithm="auto", seed=0):
    """Run one convolution (and what follows) through a plan and in float64; return both sides' results."""
    rng = np.random.default_rng(seed)
    rest = [layers.ReLU()] * relu + [layers.MaxPool2d(2)] * pool
    net = layers.Sequential(conv, *rest)
    x = rng.standard_normal(shape).astype(np.float32)
    if conv.bias is not None:
        conv.bias.data[...] = rng.standard_normal(conv.bias.shape)
    plan = plans.compile(net, shape, training=True, algorithm=algorithm)
    y = plan.forward(x)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    dx = plan.backward(dy, need_input_gradient=True)
    got = {"y": y, "dx": dx} | {name: p.grad.copy() for name, p in net.parameters().items()}

    bias = None if conv.bias is None else conv.bias.data.astype(float)
    z, cache = F.conv2d_forward(
        x.astype(float), conv.weight.data.astype(float), bias, conv.stride, conv.padding
    )
    caches = []
    if relu:
        z, kept = F.relu_forward(z)
        caches.append((F.relu_backward, kept))
    if pool:
        z, kept = F.max_pool2d_forward(z, 2)
        caches.append((F.max_pool2d_backward, kept))
    g = dy.astype(float)
    for backward, kept in reversed(caches):
        g = backward(g, kept)
    dx, dweight, dbias = F.conv2d_backward(g, cache)
    expected = {"y": z, "dx": dx, "0.weight": dweight}
    if bias is not None:
        expected["0.bias"] = dbias
    return plan, got, expected


def assert_accurate(got, expected):
    assert got.keys() == expected.keys()
    for name in expected:
        assert error(got[name], expected[name]) < EPSILON, name


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


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("images", [1, 2, 7])
def test_toeplitz_is_accurate_forward_and_backward(images, pool):
    plan, *results = one_layer(layers.Conv2d(96, 80), (images, 2, 2, 96), relu=pool, pool=pool)
    assert plan.kernels[0].algorithm == "toeplitz"
    assert_accurate(*results)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 5, "padding": 2},
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": 1, "padding": 0},
        {"kernel_size": 3, "padding": 0, "bias": False},
        {"kernel_size": 2, "stride": 3, "padding": 1},
    ],
)
def test_im2col_takes_any_kernel_stride_and_padding(settings):
    plan, *results = one_layer(layers.Conv2d(6, 10, **settings), (5, 11, 14, 6), relu=True)
    assert plan.kernels[0].algorithm == "im2col"
    assert_accurate(*results)


@pytest.mark.parametrize("workers", ["1", "2", "5"])
@pytest.mark.parametrize(
    "settings, shape",
    [
        ({}, (1, 11, 14, 6)),
        ({}, (1, 2, 9, 6)),
        ({"kernel_size": 5, "padding": 2}, (3, 8, 7, 6)),
        ({"kernel_size": 3, "stride": 2}, (2, 9, 9, 6)),
        ({"kernel_size": 3, "padding": 0}, (1, 9, 8, 6)),
    ],
)
@pytest.mark.parametrize("pool", [False, True])
def test_few_images_are_divided_by_rows(monkeypatch, settings, shape, pool, workers):
    monkeypatch.setenv("SCRATCHNET_THREADS", workers)
    conv = layers.Conv2d(6, 10, **settings)
    pooling = [layers.MaxPool2d(2)] if pool else []
    net = layers.Sequential(conv, layers.ReLU(), *pooling, layers.Conv2d(10, 4)).eval()
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    plan = plans.compile(net, shape, algorithm="im2col")
    assert error(plan.forward(x), net.forward(x)) < EPSILON


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_a_single_picture_gives_all_workers_the_same_work(monkeypatch, workers):
    monkeypatch.setenv("SCRATCHNET_THREADS", str(workers))
    net = models.vgg16(2, image_size=64).eval()
    plan = plans.compile(net, (1, 64, 64, 3))
    assert [kernel.algorithm for kernel in plan.kernels[:6]] == ["few channels"] + 5 * ["winograd"]
    for kernel in plan.kernels[:6]:
        steps = [len(worker) for worker in kernel.forward()[0].workers]
        assert min(steps) > 0
        if kernel.algorithm == "winograd":
            rows = [sum(kernel.parts[k].R for k in some) for some in split_evenly(len(kernel.parts), workers)]
            assert max(rows) - min(rows) <= 1


def test_a_single_small_picture_is_not_worth_winograds_larger_weights():
    net = layers.Sequential(layers.Conv2d(16, 16), layers.ReLU(), layers.Conv2d(16, 16))
    algorithms = [
        [kernel.algorithm for kernel in plans.compile(net.train(training), shape, training=training).kernels]
        for training, shape in [(True, (1, 8, 8, 16)), (False, (1, 8, 8, 16)), (False, (9, 8, 8, 16))]
    ]
    assert algorithms == [["winograd"] * 2, ["im2col"] * 2, ["winograd"] * 2]


def test_im2col_on_request():
    plan, *results = one_layer(layers.Conv2d(64, 32), (3, 8, 8, 64), relu=True, pool=True, algorithm="im2col")
    assert plan.kernels[0].algorithm == "im2col"
    assert_accurate(*results)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(12, 8), (9, 7)])
@pytest.mark.parametrize("images, workers", [(5, "2"), (1, "1"), (1, "2"), (2, "3"), (1, "10")])
def test_first_layer_with_few_channels(monkeypatch, channels, size, images, workers):
    monkeypatch.setenv("SCRATCHNET_THREADS", workers)
    first, second = layers.Conv2d(channels, 20), layers.Conv2d(20, 8)
    net = layers.Sequential(first, layers.ReLU(), second)
    x = np.random.default_rng(0).standard_normal((images, *size, channels)).astype(np.float32)
    plan = plans.compile(net, x.shape, training=True)
    assert [kernel.algorithm for kernel in plan.kernels] == ["few channels", "winograd"]
    y = plan.forward(x)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    dx = plan.backward(dy, need_input_gradient=True)
    got = [y, dx] + [p.grad.copy() for p in net.parameters().values()]
    expected = [net.forward(x), net.backward(dy)] + [p.grad for p in net.parameters().values()]
    assert max(error(a, b) for a, b in zip(got, expected, strict=True)) < EPSILON


def test_winograds_matrices_compute_a_convolution_of_one_dimension():
    rng = np.random.default_rng(0)
    d, g = rng.standard_normal(6), rng.standard_normal(3)
    y = np.array(winograd._AT) @ ((np.array(winograd._G) @ g) * (np.array(winograd._BT) @ d))
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


def test_toeplitz_matrices_compute_a_padded_convolution_of_two_pixels():
    x, g = np.array([2.0, 5.0]), np.array([3.0, 7.0, 11.0])
    expand, contract = np.array([[1, 1], [0, 1], [1, 0]]), np.array([[1, 1, 0], [1, 0, 1]])
    y = contract @ ((toeplitz.K @ g) * (expand @ x))
    np.testing.assert_allclose(y, np.correlate(np.pad(x, 1), g, "valid"))


@pytest.mark.parametrize("limit", [0, 20_000, 1_000_000])
@pytest.mark.parametrize("shape", [(1, 1, 1), (64, 64, 64), (50, 33, 130), (7, 300, 65), (200, 3, 5)])
def test_blocks_of_a_product_are_the_product(shape, limit):
    M, K, N = shape
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3, M, K)), rng.standard_normal((2, 3, K, N))
    for left in (a, np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2)):
        out, do = np.zeros((2, 3, M, N)), Steps()
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
    out, do = np.zeros((M, 2 * N)), Steps()
    blocks.long_product(do, a, b, out=out[:, :N], scratch=np.empty(K // k * M * N + 5), block=block)
    do.run()
    np.testing.assert_allclose(out[:, :N], a @ b, rtol=1e-9, atol=1e-9)
    assert not out[:, N:].any()


# Each of these batches is multiplied in another way, forward, or backward in dW or dx.
@pytest.mark.parametrize("rows", [1, 2, 8, 9, 16, 17, 32, 33, 100])
@pytest.mark.parametrize("features", [4096, 1000, 37])
@pytest.mark.parametrize("blocks_are_faster", [True, False])
def test_linear(monkeypatch, rows, features, blocks_are_faster):
    monkeypatch.setattr(choosing, "block_limit", lambda: 1_000_000 if blocks_are_faster else 0)
    net = layers.Sequential(layers.Linear(features, 530), layers.ReLU())
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, features)).astype(np.float32)
    dy = rng.standard_normal((rows, 530)).astype(np.float32)
    plan = plans.compile(net, x.shape, training=True)
    y, dx = plan.forward(x), plan.backward(dy, need_input_gradient=True)
    weight, bias = (p.data.astype(np.float64) for p in net.parameters().values())
    exact = np.maximum(x @ weight + bias, 0)
    dz = dy * (exact > 0)
    assert error(y, exact) < 1e-6
    assert error(dx, dz @ weight.T) < 1e-6
    assert error(net[0].weight.grad, x.T.astype(np.float64) @ dz) < 1e-6
    assert error(net[0].bias.grad, dz.sum(axis=0)) < 1e-6


@pytest.mark.parametrize("workers", ["1", "2", "3"])
@pytest.mark.parametrize("features", [8192, 4099])  # 4099 is prime
@pytest.mark.parametrize("bias", [True, False])
def test_a_large_linear_layer_of_one_image(monkeypatch, features, bias, workers):
    monkeypatch.setenv("SCRATCHNET_THREADS", workers)
    rng = np.random.default_rng(0)
    x = np.abs(rng.standard_normal((1, features))).astype(np.float32)
    linear = layers.Linear(features, 1030, bias=bias)
    plan = plans.compile(layers.Sequential(linear).eval(), x.shape)
    assert plan.kernels[0].by_rows
    divided = None not in plan.kernels[0].blocks  # then not all rows are added up one by one
    exact = x.astype(np.float64) @ linear.weight.data + (linear.bias.data if bias else 0)
    assert error(plan.forward(x), exact) < (3e-7 if divided else 1e-6)

    dy = rng.standard_normal((1, 1030)).astype(np.float32)
    results = []
    for compiled in True, False:
        net = layers.Sequential(
            layers.Linear(features, 1030, bias=bias, rng=np.random.default_rng(1)),
            layers.ReLU(),
            layers.Dropout(0.5, rng=np.random.default_rng(2)),
        )
        engine = plans.compile(net, x.shape, training=True) if compiled else net
        y = engine.forward(x)
        engine.backward(dy)
        results.append([y, *(p.grad.copy() for p in net.parameters().values())])
    for got, expected in zip(*results, strict=True):
        assert expected.any() and error(got, expected) < EPSILON


@pytest.mark.parametrize("run", [1, 1000, 70_000])
def test_combine_is_a_product_with_long_runs(run):
    rng = np.random.default_rng(0)
    matrix, x = rng.standard_normal((6, 4)), rng.standard_normal((2, 4, run))
    out, do = np.zeros((2, 6, run)), Steps()
    blocks.small_matmul(do, matrix, x, out=out)
    do.run()
    np.testing.assert_allclose(out, matrix @ x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", ["plain", "pixels", "tiles"])
@pytest.mark.parametrize("shape", [(5, 8, 8, 3), (3, 9, 6, 2), (4, 2, 2, 5), (1, 13, 15, 1)])
def test_every_layout_takes_and_returns_a_map(layout, shape):
    chunks = [r for r in split_evenly(shape[0], 3) if r]
    map, arena = layouts.LAYOUTS[layout](shape, chunks, "float32"), Arena()
    map.reserve(arena, "map", 0, 0)
    map.request_grad(arena, "grad", 0, 0)
    arena.assign_offsets()
    arena.bind(np.full(arena.size, 255, np.uint8))
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    map.put(x)
    block = layouts.as_block(np.zeros_like(x))
    for own, part in map.pairs(range(shape[0]), 0, block):
        part[...] = own
    np.testing.assert_array_equal(block, layouts.as_block(x))
    for own, part in map.pairs(range(shape[0]), 0, layouts.as_block(x), grad=True):
        own[...] = part
    np.testing.assert_array_equal(map.take_gradient(), x)


@pytest.mark.parametrize("S", [1, 2, 4])
@pytest.mark.parametrize("layout", ["plain", "pixels", "tiles"])
def test_blocks_of_tiles_find_their_pixels(layout, S):
    N, H, W, C = 4, 11, 9, 2
    map, arena = layouts.LAYOUTS[layout]((N, H, W, C), [range(0, 3), range(3, 4)], "float32"), Arena()
    map.reserve(arena, "map", 0, 0)
    arena.assign_offsets()
    arena.bind(np.zeros(arena.size, np.uint8))
    images, row, R, T = range(1, 4), 4, 5, 4
    block = np.random.default_rng(0).standard_normal((R, S, S, T, len(images), C)).astype(np.float32)
    for own, part in map.pairs(images, row, block):
        own[...] = part
    got = np.zeros((N, H, W, C), np.float32)
    for own, part in map.pairs(range(N), 0, layouts.as_block(got)):
        part[...] = own
    for r, i, t, j in np.ndindex(R, S, T, S):
        h, w = row + S * r + i, S * t + j
        if h < H and w < W:
            np.testing.assert_array_equal(got[1:4, h, w], block[r, i, j, t])
            got[1:4, h, w] = 0
    assert not got.any()


def test_pooling_gives_ties_to_the_first_of_the_window():
    net = layers.Sequential(layers.Conv2d(4, 4, bias=False), layers.ReLU(), layers.MaxPool2d(2))
    net[0].weight.data = np.zeros((3, 3, 4, 4), np.float32)
    net[0].weight.data[1, 1] = np.eye(4)
    for algorithm, size in (("auto", 8), ("im2col", 8), ("auto", 2)):
        x = np.ones((2, size, size, 4), np.float32)  # all four of a window are equal, and positive
        plan = plans.compile(net, x.shape, training=True, algorithm=algorithm)
        plan.forward(x)
        # im2col is exact. With Winograd equal pixels may differ by rounding, but one has to get it all.
        dx = plan.backward(np.ones((2, size // 2, size // 2, 4), np.float32), need_input_gradient=True)
        windows = dx.reshape(2, size // 2, 2, size // 2, 2, 4).sum(axis=(2, 4))
        np.testing.assert_allclose(windows, 1.0, rtol=1e-5)
        if algorithm == "im2col":
            np.testing.assert_array_equal(dx[:, ::2, ::2], 1.0)


@pytest.mark.parametrize("shape", [(7, 4, 4, 5), (3, 9, 6, 70), (4, 2, 2, 5), (1, 5, 5, 1)])
@pytest.mark.parametrize("convolve", [True, False])
def test_batch_norm_in_every_layout(shape, convolve):
    C = shape[-1]
    nets = [
        layers.Sequential(*([layers.Conv2d(C, C)] if convolve else []), layers.BatchNorm2d(C), layers.ReLU())
        for _ in range(2)
    ]
    rng = np.random.default_rng(0)
    x = (3 + rng.standard_normal(shape)).astype(np.float32)
    for net in nets:
        net[-2].weight.data[...] = np.linspace(0.5, 2, C)
        net[-2].bias.data[...] = np.linspace(0.5, -1, C)
    plan = plans.compile(nets[0], shape, training=True)
    y, expected = plan.forward(x), nets[1].forward(x)
    assert error(y, expected) < EPSILON
    dy = rng.standard_normal(shape).astype(np.float32)
    dx = plan.backward(dy, need_input_gradient=True)
    assert error(dx, nets[1].backward(dy)) < 3e-5
    for name in ("weight", "bias"):
        a, b = (getattr(net[-2], name).grad for net in nets)
        assert error(a, b) < EPSILON
    for name in ("running_mean", "running_var"):
        a, b = (getattr(net[-2], name) for net in nets)
        assert error(a, b) < EPSILON
    assert len(plan.kernels) == 1 + convolve


def test_rectify_and_blocks_cover_everything():
    x = np.random.default_rng(0).standard_normal((3, 50_000)).astype(np.float32)
    expected, do = np.maximum(x, 0), Steps()
    relu_(do, x)
    do.run()
    np.testing.assert_array_equal(x, expected)
    assert sum(piece.size for (piece,) in in_blocks(x)) == x.size


def test_buffers_that_live_together_never_overlap():
    rng = np.random.default_rng(0)
    arena = Arena()
    for k in range(60):
        first_use = int(rng.integers(0, 20))
        arena.reserve(
            str(k), (int(rng.integers(1, 5000)),), "float32", first_use, first_use + int(rng.integers(0, 6))
        )
    arena.assign_offsets()
    for a in arena.buffers:
        for b in arena.buffers:
            if a is not b and a.lives_with(b):
                assert a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset
    assert arena.size < 0.6 * sum(b.nbytes for b in arena.buffers)


@pytest.mark.parametrize("shape", [(6, 6, 16, 512), (6, 8, 1, 1), (3, 3, 5, 7), (2, 4, 32), (2, 2, 17, 3)])
def test_planes_lie_apart_for_the_cache_and_fill_no_more_than_their_room(shape):
    rows, columns, *plane = shape
    memory = np.zeros(room_for(rows * columns, int(np.prod(plane))), np.float32)
    planes = in_planes(memory, *shape)
    assert planes.shape == shape
    planes[...] = np.arange(1, planes.size + 1).reshape(shape)
    assert np.count_nonzero(memory) == planes.size, "no two numbers share a place"
    lines, rest = divmod(planes.strides[1], 64)
    assert rest == 0 and lines % 2 == 1 and planes.strides[0] == columns * planes.strides[1]
    with pytest.raises(ValueError, match="reshape"):
        in_planes(memory[:-1], *shape)


def test_kept_weights_are_read_once_for_a_single_picture(monkeypatch):
    net = layers.Sequential(layers.Conv2d(512, 128)).eval()
    x = np.random.default_rng(0).standard_normal((1, 28, 28, 512)).astype(np.float32)
    monkeypatch.setenv("SCRATCHNET_PLAN_MEMORY", "100")
    monkeypatch.setattr("scratchnet.plans.cpu.choosing.block_limit", lambda: blocks.SMALL)
    results, widths = [], []
    for _ in range(2):
        plan = plans.compile(net, x.shape)
        results.append(plan.forward(x).copy())
        widths.append({U.shape[-1] for U in plan.kernels[0].U})
        monkeypatch.setattr(winograd.Winograd, "_columns_at_once", lambda kernel: blocks.COLUMNS)
    assert widths == [{32}, {64}]
    assert error(*results) < EPSILON
