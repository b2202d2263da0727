"""Every kernel of ``plans/cuda/kernels``, against ``functional/`` and whoever else says what is right.

Without a GPU they run on the emulator (``cuda_emulator/``), from the same source, with threads in random
order; ``python -m pytest -m gpu`` runs the same tests on a real one. Arrays that a kernel writes are full of
NaN before, and have their exact size, so that the sanitizers (``test_cuda_emulator.py``) notice the first
byte beyond.
"""

import mmap
from itertools import pairwise

import numpy as np
import pytest

from scratchnet import data, optim
from scratchnet import functional as F
from scratchnet.parameters import Parameter
from scratchnet.plans.cuda import modules
from tests.fakes import cuda_emulator, cupy_stand_in

BOTH = pytest.mark.parametrize("operand", ["float32", "uint16"])


class Kernels:
    """The kernels with NumPy arrays in and out, on the device that is being tested."""

    def __init__(self, device):
        self.device = device

    def put(self, x, offset=0):
        """Copy to the device; with an offset of so many elements, so that packs of four are not aligned."""
        xp = self.device.xp
        x = np.ascontiguousarray(x)
        if not offset:
            return self.device.asarray(x)
        whole = xp.empty(x.size + offset, dtype=x.dtype)
        there = whole[offset:].reshape(x.shape)
        there[...] = self.device.asarray(x)
        return there

    def empty(self, shape, dtype="float32", offset=0):
        """Return an array that nobody has written to: floats are NaN."""
        dtype = np.dtype(dtype)
        filler = np.nan if dtype.kind == "f" else 0xAA if dtype.itemsize == 1 else 0x7FAA
        return self.put(np.full(shape, filler, dtype), offset)

    def get(self, *arrays):
        found = [self.device.to_numpy(array) for array in arrays]
        return found[0] if len(found) == 1 else found


@pytest.fixture
def k(device):
    cuda_emulator.order.set(1)
    return Kernels(device)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype="float32")


def as_operands(x, dtype):
    """Round as the kernels should: to the nearer of the two bfloat16 around x, of equals to the even one."""
    if dtype == "float32":
        return x
    lower = x.view("uint32") & 0xFFFF0000
    upper = lower + 0x10000
    with np.errstate(invalid="ignore"):
        below, above, exact = (bits.view("float32").astype("float64") for bits in (lower, upper, x))
        above = np.where(np.isinf(above), np.copysign(2.0**128, below), above)  # as if exponents went on
        to_above, to_below = np.abs(above - exact), np.abs(exact - below)
    up = ((to_above < to_below) | (to_above == to_below) & (lower >> 16 & 1 == 1)) & np.isfinite(x)
    return (np.where(up, upper, lower) >> 16).astype("uint16")


def from_operands(x):
    return x if x.dtype == np.float32 else (x.astype("uint32") << 16).view("float32")


# Convolution

GEOMETRIES = [  # shape of x, kernel, stride, padding
    ((2, 5, 4, 3), 3, 1, 1),
    ((2, 5, 4, 8), 3, 1, 1),
    ((1, 7, 6, 4), 3, 2, 1),
    ((3, 4, 5, 2), 2, 2, 0),
    ((1, 3, 3, 1), 5, 1, 2),
    ((1, 9, 8, 5), 3, 3, 2),
    ((2, 3, 2, 132), 3, 1, 1),
    ((4, 6, 1, 12), 1, 1, 0),
]


def check_im2col(k, shape, kernel, stride, padding, operand="float32", offset=0):
    x = numbers(*shape)
    expected = F.im2col(x, kernel, stride, padding)
    columns = k.empty(expected.shape, operand, offset)
    modules.im2col(k.put(x), columns, kernel, stride, padding)
    np.testing.assert_array_equal(k.get(columns), as_operands(expected, operand))


def check_col2im(k, shape, kernel, stride, padding, offset=0):
    columns = numbers(*F.im2col(np.zeros(shape, "float32"), kernel, stride, padding).shape)
    dx = k.empty(shape, offset=offset)
    modules.col2im(k.put(columns), dx, kernel, stride, padding)
    # Both add in the order of the kernel's places, from zero: the same bits.
    np.testing.assert_array_equal(k.get(dx), F.col2im(columns, shape, kernel, stride, padding))


@BOTH
@pytest.mark.parametrize("shape, kernel, stride, padding", GEOMETRIES)
def test_im2col(k, shape, kernel, stride, padding, operand):
    check_im2col(k, shape, kernel, stride, padding, operand)


@pytest.mark.parametrize("shape, kernel, stride, padding", GEOMETRIES)
def test_col2im(k, shape, kernel, stride, padding):
    check_col2im(k, shape, kernel, stride, padding)


def test_im2col_and_col2im_where_packs_are_not_aligned(k):
    check_im2col(k, (2, 5, 4, 8), 3, 1, 1, offset=1)
    check_im2col(k, (2, 5, 4, 8), 3, 1, 1, operand="uint16", offset=2)
    check_col2im(k, (2, 5, 4, 8), 3, 1, 1, offset=3)


def test_im2col_of_some_images_of_a_batch(k):
    x = numbers(5, 4, 4, 4)
    columns = k.empty((2 * 16, 36))
    modules.im2col(k.put(x)[2:4], columns, 3, 1, 1)
    np.testing.assert_array_equal(k.get(columns), F.im2col(x[2:4], 3, 1, 1))


def test_convolution_from_its_parts(k):
    """Forward and both gradients, with cuBLAS's products made on the host."""
    x, weight = numbers(2, 5, 6, 4), numbers(3, 3, 4, 8, seed=1)
    y, cache = F.conv2d_forward(x, weight, numbers(8, seed=2), padding=1)
    dy = numbers(*y.shape, seed=3)
    expected_dx, expected_dweight, expected_dbias = F.conv2d_backward(dy, cache)

    columns = k.empty((60, 36))
    modules.im2col(k.put(x), columns, 3, 1, 1)
    z = k.put((k.get(columns) @ weight.reshape(36, 8)).reshape(y.shape))
    modules.epilogue(z, z, k.put(numbers(8, seed=2)), relu=False)
    np.testing.assert_allclose(k.get(z), y, rtol=1e-4, atol=1e-5)

    partial, dbias, dx = k.empty(modules.sums_shape(60, 8)), k.empty(8), k.empty(x.shape)
    modules.mask(k.put(dy), None, None, partial)
    modules.finish_sums(partial, dbias)
    np.testing.assert_allclose(k.get(dbias), expected_dbias, rtol=1e-4, atol=1e-5)
    dweight = (k.get(columns).T @ dy.reshape(60, 8)).reshape(weight.shape)
    np.testing.assert_allclose(dweight, expected_dweight, rtol=1e-4, atol=1e-5)
    modules.col2im(k.put(dy.reshape(60, 8) @ weight.reshape(36, 8).T), dx, 3, 1, 1)
    np.testing.assert_allclose(k.get(dx), expected_dx, rtol=1e-4, atol=1e-5)


class Sparse:
    """More zeros than there is memory: pages of which only those that are touched exist."""

    def __init__(self, shape):
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        try:
            self.memory = mmap.mmap(-1, 4 * int(np.prod(shape)), flags=flags)
        except OSError as error:
            pytest.skip(f"no room for addresses: {error}")
        self.array = cupy_stand_in.ndarray(np.frombuffer(self.memory, "float32").reshape(shape))


def test_column_matrices_of_more_than_2_to_the_31_numbers(stand_in, monkeypatch):
    """The last block of 64 images of 224 x 224 x 80: what it reads and writes lies beyond 2**31."""
    shape = (64, 224, 224, 80)
    columns = Sparse((64 * 224 * 224, 9 * 80))
    assert columns.array.size > 2**31
    x = Sparse(shape)
    grids = []

    def last_block(cupy, file, name, macros):
        kernel = cupy.RawModule(code=modules.source(file), options=modules.OPTIONS + macros).get_function(
            name
        )

        def launch(grid, block, arguments):
            grids.append(grid)
            kernel(
                (-(-64 * 224 * 224 // block[1]), *grid[1:]),
                block,
                arguments,
                only_block=64 * 224 * 224 // block[1] - 1,
            )

        return launch

    monkeypatch.setattr(modules, "_kernel", last_block)
    x.array._host[-1] = corner = numbers(1, 224, 224, 80)[0]
    modules.im2col(x.array, columns.array, 3, 1, 1)
    expected = F.im2col(corner[None, -2:, -3:], 3, 1, 1)[-1]
    np.testing.assert_array_equal(columns.array._host[-1], expected)
    x.array._host[-1, -1, -1] = np.nan
    columns.array._host[-1] = 1.0
    modules.col2im(columns.array, x.array, 3, 1, 1)
    # The last pixel is in four patches, of which im2col has only written the last.
    patches = columns.array._host.reshape(64, 224, 224, 3, 3, 80)[-1, -2:, -2:]
    expected = patches[0, 0, 2, 2] + patches[0, 1, 2, 1] + patches[1, 0, 1, 2] + patches[1, 1, 1, 1]
    np.testing.assert_allclose(x.array._host[-1, -1, -1], expected, rtol=1e-6)


# Operands


@pytest.mark.parametrize("size", [1, 7, 8, 5000])
@BOTH
def test_cast(k, size, operand):
    x = numbers(size) * 3
    out = k.empty(size, operand)
    modules.cast(k.put(x), out)
    np.testing.assert_array_equal(k.get(out), as_operands(x, operand))


def test_cast_of_ties_infinities_and_the_smallest_and_largest_numbers(k):
    bits = [
        0x3F808000,
        0x3F818000,
        0x3F808001,
        0x3F807FFF,
        0,
        0x80000000,
        1,
        0x7F800000,
        0xFF800000,
        0x7F7FFFFF,
    ]
    x = np.array(bits, "uint32").view("float32")
    out = k.empty(len(x), "uint16")
    modules.cast(k.put(x), out)
    assert [hex(b) for b in k.get(out)] == [
        hex(b) for b in (0x3F80, 0x3F82, 0x3F81, 0x3F80, 0, 0x8000, 0, 0x7F80, 0xFF80, 0x7F80)
    ]
    np.testing.assert_array_equal(k.get(out), as_operands(x, "uint16"))


def test_cast_keeps_every_nan(k):
    x = np.array([0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0xFF800001], "uint32").view("float32")
    out = k.empty(4, "uint16")
    modules.cast(k.put(x), out)
    assert np.isnan(from_operands(k.get(out))).all()


# What follows a product


def check_epilogue(k, shape, affine=False, relu=True, offset=0):
    z, C = numbers(*shape), shape[-1]
    shift, centre, scale = (numbers(C, seed=s) for s in (1, 2, 3))
    y = k.empty(shape, offset=offset)
    extra = {"centre": k.put(centre), "scale": k.put(scale)} if affine else {}
    modules.epilogue(k.put(z), y, k.put(shift), relu=relu, **extra)
    expected = (z - centre) * scale + shift if affine else z + shift
    expected = np.maximum(expected, 0) if relu else expected
    np.testing.assert_allclose(k.get(y), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(7, 3), (300, 8), (2, 3, 5, 64), (3, 1028), (1, 1)])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_epilogue(k, shape, affine, relu):
    check_epilogue(k, shape, affine, relu)


def test_epilogue_where_packs_are_not_aligned(k):
    check_epilogue(k, (9, 8), offset=1)


def test_epilogue_in_place_and_without_a_shift(k):
    z = k.put(numbers(5, 12))
    modules.epilogue(z, z)
    np.testing.assert_array_equal(k.get(z), np.maximum(numbers(5, 12), 0))


def test_a_nan_passes_relu_and_pooling(k):
    """So that the loss shows it. fmaxf(NaN, 0) is 0."""
    for place in range(4):
        z = numbers(1, 2, 2, 4)
        z[0, place // 2, place % 2, 1] = np.nan
        y, pooled, code = k.empty(z.shape), k.empty((1, 1, 1, 4)), k.empty((1, 1, 1, 4), "uint8")
        modules.epilogue(k.put(z), y)
        modules.epilogue_pool(k.put(z), pooled, code)
        np.testing.assert_array_equal(np.isnan(k.get(y)), np.isnan(z))
        assert np.isnan(k.get(pooled)).ravel().tolist() == [False, True, False, False]


SIZES = [(2, 4, 4, 8), (1, 5, 7, 3), (3, 2, 3, 4), (1, 6, 4, 132), (2, 3, 3, 1)]


def pooled(z, shift, centre, scale, relu):
    """Epilogue and pooling by functional/: y, the winners, what they got back, and how to give it back."""
    v = z + shift if centre is None else (z - centre) * scale + shift
    a, of_relu = F.relu_forward(v) if relu else (v, None)
    y, of_pool = F.max_pool2d_forward(a, 2)

    def backward(dy):
        da = F.max_pool2d_backward(dy, of_pool)
        return F.relu_backward(da, of_relu) if relu else da

    return y, of_pool[0], backward


def check_epilogue_pool(k, shape, affine=False, relu=True):
    N, H, W, C = shape
    # Small whole numbers, so that many windows have ties; scales that turn the order round in some channels.
    z = np.random.default_rng(0).integers(-3, 3, shape).astype("float32")
    shift = np.random.default_rng(1).integers(-1, 2, C).astype("float32")
    centre, scale = (
        (np.ones(C, "float32"), np.resize(np.float32([-2, 1, 0.5]), C)) if affine else (None, None)
    )
    expected, winner, backward = pooled(z, shift, centre, scale, relu)
    y, code = k.empty((N, H // 2, W // 2, C)), k.empty((N, H // 2, W // 2, C), "uint8")
    extra = {"centre": k.put(centre), "scale": k.put(scale)} if affine else {}
    modules.epilogue_pool(k.put(z), y, code, k.put(shift), relu=relu, **extra)
    np.testing.assert_array_equal(k.get(y), expected)
    np.testing.assert_array_equal(k.get(code), np.where(relu & (expected <= 0), 4, winner))
    return k.get(code), backward


def check_unpool(k, shape, relu=True, operand="float32"):
    code, backward = check_epilogue_pool(k, shape, relu=relu)
    dy = numbers(*code.shape, seed=4)
    expected = backward(dy)
    dz = k.empty(shape, operand)
    partial, dbias = k.empty(modules.sums_shape(code.size // shape[3], shape[3])), k.empty(shape[3])
    modules.unpool(k.put(dy), k.put(code), dz, partial)
    modules.finish_sums(partial, dbias)
    found = from_operands(k.get(dz))
    np.testing.assert_array_equal(found, from_operands(as_operands(expected, operand)))
    np.testing.assert_allclose(k.get(dbias), expected.sum(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_pooling_with_ties(k, shape, relu, affine):
    check_epilogue_pool(k, shape, affine, relu)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("relu", [False, True])
@BOTH
def test_back_through_pooling_with_ties(k, shape, relu, operand):
    check_unpool(k, shape, relu, operand)


def test_pooling_without_codes_as_in_inference(k):
    z, y = numbers(2, 4, 4, 8), k.empty((2, 2, 2, 8))
    modules.epilogue_pool(k.put(z), y, None, relu=False)
    np.testing.assert_array_equal(k.get(y), F.max_pool2d_forward(z, 2)[0])


# Sums


def check_mask(k, rows, C, relu=True, operand="float32", factor=1.0):
    dy, y = numbers(rows, C), np.maximum(numbers(rows, C, seed=1), 0)
    expected = (dy * (y > 0) if relu else dy) * np.float32(factor)
    dz, partial, sums = k.empty((rows, C), operand), k.empty(modules.sums_shape(rows, C)), k.empty(C)
    modules.mask(k.put(dy), k.put(y) if relu else None, dz, partial, factor=factor)
    modules.finish_sums(partial, sums)
    found = from_operands(k.get(dz))
    np.testing.assert_array_equal(found, from_operands(as_operands(expected, operand)))
    exact = expected.astype("float64").sum(axis=0)
    np.testing.assert_allclose(k.get(sums), exact, rtol=1e-5, atol=2e-7 * np.abs(expected).sum(axis=0).max())


@pytest.mark.parametrize("rows, C", [(1, 1), (5, 3), (64, 8), (700, 12), (3000, 4), (131, 1028)])
@pytest.mark.parametrize("relu, operand", [(True, "float32"), (False, "float32"), (True, "uint16")])
def test_mask_and_column_sums(k, rows, C, relu, operand):
    check_mask(k, rows, C, relu, operand)


def test_mask_behind_dropout(k):
    check_mask(k, 9, 8, factor=2.0)


def test_mask_in_place_without_sums_and_sums_alone(k):
    dy, y = numbers(70, 8), numbers(70, 8, seed=1)
    there = k.put(dy)
    modules.mask(there, k.put(y), there)
    np.testing.assert_array_equal(k.get(there), dy * (y > 0))
    partial, sums = k.empty(modules.sums_shape(70, 8)), k.empty(8)
    modules.mask(k.put(dy), None, None, partial)
    modules.finish_sums(partial, sums)
    np.testing.assert_allclose(k.get(sums), dy.sum(axis=0), rtol=1e-4, atol=1e-5)


def test_sums_of_chunks_are_those_of_the_batch(k):
    dy = numbers(6, 64, 8)
    partial, sums = k.empty((3 * modules.sums_shape(128, 8)[0], 8)), k.empty(8)
    parts = len(partial) // 3
    for i in range(3):
        there = k.put(dy[2 * i : 2 * i + 2])
        modules.mask(there, None, None, partial[i * parts : (i + 1) * parts])
    modules.finish_sums(partial, sums)
    np.testing.assert_allclose(k.get(sums), dy.sum(axis=(0, 1)), rtol=1e-4, atol=1e-5)


def test_sums_have_the_same_bits_in_whatever_order_warps_run(k):
    dy, found = numbers(3000, 12), set()
    for seed in range(4):
        cuda_emulator.order.set(seed)
        partial, sums = k.empty(modules.sums_shape(3000, 12)), k.empty(12)
        modules.mask(k.put(dy), None, None, partial)
        modules.finish_sums(partial, sums)
        found.add(k.get(sums).tobytes())
    assert len(found) == 1


# Batch normalisation


def statistics(k, x, weight, momentum=0.1, eps=1e-5):
    C = x.shape[-1]
    rows = x.size // C
    partial = k.empty((2, *modules.sums_shape(rows, C)))
    mean, inv_std, scale = (k.empty(C) for _ in range(3))
    running_mean, running_var = k.put(np.zeros(C, "float32")), k.put(np.ones(C, "float32"))
    modules.norm_statistics(k.put(x), partial)
    modules.norm_finish(
        partial, rows, k.put(weight), mean, inv_std, scale, running_mean, running_var, eps, momentum
    )
    return mean, inv_std, scale, running_mean, running_var


def check_norm_statistics(k, shape, mean=0.0):
    C = shape[-1]
    x, weight = numbers(*shape) + np.float32(mean), numbers(C, seed=1)
    exact = x.reshape(-1, C).astype("float64")
    found = k.get(*statistics(k, x, weight))
    inv_std = 1 / np.sqrt(exact.var(axis=0) + 1e-5)
    unbiased = exact.var(axis=0, ddof=1)
    expected = exact.mean(axis=0), inv_std, weight * inv_std, 0.1 * exact.mean(axis=0), 0.9 + 0.1 * unbiased
    for a, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 1), (5, 3), (2, 5, 7, 8), (700, 12), (3000, 4), (131, 132)])
def test_statistics_of_a_batch(k, shape):
    check_norm_statistics(k, shape)


def test_statistics_where_the_mean_is_large_against_the_deviation(k):
    """E[x^2] - E[x]^2 in float32 would have no digit left."""
    check_norm_statistics(k, (700, 4), mean=3000.0)


def check_norm(k, shape, relu=False, pool=False):
    """The normalisation's group forward and backward, against functional/ in float64."""
    C = shape[-1]
    x, weight, bias = numbers(*shape) * 2 + 1, numbers(C, seed=1), numbers(C, seed=2)
    wide = [array.astype("float64") for array in (x, weight, bias)]
    v, cache = F.batch_norm_forward(*wide)
    expected, winner, backward = pooled(v, 0.0, None, None, relu) if pool else (v, None, lambda dy: dy)
    if relu and not pool:
        expected, of_relu = F.relu_forward(v)
        backward = lambda dy: F.relu_backward(dy, of_relu)  # noqa: E731
    dy = numbers(*expected.shape, seed=3)
    expected_dx, expected_dweight, expected_dbias = F.batch_norm_backward(
        backward(dy.astype("float64")), cache
    )

    mean, inv_std, scale, _, _ = statistics(k, x, weight)
    y, there, g = k.empty(expected.shape), k.put(x), k.put(dy)
    passed = {}
    if pool:
        passed["code"] = k.empty(expected.shape, "uint8")
        modules.epilogue_pool(there, y, passed["code"], k.put(bias), centre=mean, scale=scale, relu=relu)
    else:
        modules.epilogue(there, y, k.put(bias), centre=mean, scale=scale, relu=relu)
        if relu:
            passed["y"] = y
    np.testing.assert_allclose(k.get(y), expected, rtol=1e-4, atol=1e-5)

    partial = k.empty((2, *modules.sums_shape(dy.size // C, C)))
    dbias, dweight, dx = k.empty(C), k.empty(C), k.empty(shape)
    modules.norm_backward_sums(g, there, mean, inv_std, partial, **passed)
    modules.finish_sums(partial[0], dbias)
    modules.finish_sums(partial[1], dweight)
    modules.norm_backward(g, there, mean, inv_std, scale, dweight, dbias, dx, **passed)
    np.testing.assert_allclose(k.get(dbias), expected_dbias, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(k.get(dweight), expected_dweight, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(k.get(dx), expected_dx, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 4, 4, 8), (1, 5, 7, 3), (5, 9, 4, 4), (2, 6, 3, 132)])
@pytest.mark.parametrize("relu, pool", [(False, False), (True, False), (True, True), (False, True)])
def test_norm_forward_and_backward(k, shape, relu, pool):
    check_norm(k, shape, relu, pool)


def test_norm_backward_in_place(k):
    x, weight, dy = numbers(70, 8), numbers(8, seed=1), numbers(70, 8, seed=2)
    mean, inv_std, scale, _, _ = statistics(k, x, weight)
    vectors = k.put(numbers(8, seed=3)), k.put(numbers(8, seed=4))
    results = []
    for out in (k.empty((70, 8)), g := k.put(dy), there := k.put(x)):
        a, b = (out if out is g else k.put(dy)), (out if out is there else k.put(x))
        modules.norm_backward(a, b, mean, inv_std, scale, *vectors, out)
        results.append(k.get(out))
    for first, second in pairwise(results):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("C", [1, 8, 300])
def test_norm_folded_behind_a_convolution(k, C):
    z, conv_bias, weight, bias, running_mean = (
        numbers(*s, C, seed=i) for i, s in enumerate([(6,), (), (), (), ()])
    )
    running_var = numbers(C, seed=7) ** 2
    centre, scale, y = k.empty(C), k.empty(C), k.empty((6, C))
    there = [k.put(v) for v in (weight, running_mean, running_var)]
    for of_conv in (conv_bias, None):
        modules.norm_fold(*there, None if of_conv is None else k.put(of_conv), centre, scale, 1e-5)
        modules.epilogue(k.put(z), y, k.put(bias), centre=centre, scale=scale, relu=False)
        of_product = z if of_conv is None else z + of_conv
        expected, _ = F.batch_norm_forward(of_product, weight, bias, running_mean, running_var)
        np.testing.assert_allclose(k.get(y), expected, rtol=1e-4, atol=1e-4)


# Averages


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 1), (3, 2, 2, 300)])
def test_average(k, shape):
    x = numbers(*shape)
    expected, cache = F.global_avg_pool2d_forward(x)
    y, dx, dy = k.empty(expected.shape), k.empty(shape), numbers(*expected.shape, seed=1)
    modules.average(k.put(x), y)
    modules.average_backward(k.put(dy), dx)
    np.testing.assert_allclose(k.get(y), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(k.get(dx), F.global_avg_pool2d_backward(dy, cache), rtol=1e-6)


# Dropout


def philox(counter, key):
    """Philox4x32-10 in whole numbers, as the paper's figure says it."""
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        low = 2**32 - 1
        counter = (b >> 32) ^ counter[1] ^ key[0], b & low, (a >> 32) ^ counter[3] ^ key[1], a & low
        key = (key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low
    return counter


def test_philox_gives_the_known_answers():
    """The known answers that come with the paper's library (Random123, kat_vectors)."""
    ones, low = 2**32 - 1, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert philox((0,) * 4, (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox((ones,) * 4, (ones, ones)) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    assert philox(low, (0xA4093822, 0x299F31D0)) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def check_dropout(k, size, p, seed=(1 << 40) + 7, step=(1 << 33) + 2):
    y = np.arange(1, size + 1, dtype="float32")
    there = k.put(y)
    modules.dropout(there, p, seed, k.put(np.array([step])))
    place = (step & (2**32 - 1), step >> 32)
    key = (seed & (2**32 - 1), seed >> 32)
    random = np.array([philox((i, 0, *place), key) for i in range(-(-size // 4))]).ravel()[:size]
    keep = random < (1 - p) * 2**32
    expected, _ = F.dropout_forward(y, keep, np.float32(p))
    np.testing.assert_allclose(k.get(there), expected, rtol=1e-6)
    return keep


@pytest.mark.parametrize("size, p", [(1, 0.5), (7, 0.25), (2050, 0.5), (3, 0.0), (3, 1.0)])
def test_dropout(k, size, p):
    keep = check_dropout(k, size, p)
    if p in (0.0, 1.0):
        assert (keep == (p == 0.0)).all()


def test_dropout_keeps_the_share_that_it_shall_and_draws_anew_for_each_step_and_seed(k):
    masks = []
    for seed, step in [(1, 0), (1, 1), (2, 0)]:
        y = k.put(np.ones(4096, "float32"))
        modules.dropout(y, 0.3, seed, k.put(np.array([step])))
        masks.append(k.get(y) > 0)
        assert abs(masks[-1].mean() - 0.7) < 4 * np.sqrt(0.21 / 4096)
    for a, b in pairwise([*masks, masks[0]]):  # independent masks agree in 0.7^2 + 0.3^2 of the places
        assert abs((a == b).mean() - 0.58) < 4 * np.sqrt(0.58 * 0.42 / 4096)


# The loss


@pytest.mark.parametrize("N, K", [(1, 1), (5, 10), (9, 33), (2, 1000)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_cross_entropy(k, N, K, smoothing):
    logits, labels = numbers(N, K) * 5, np.random.default_rng(1).integers(0, K, N)
    expected, cache = F.softmax_cross_entropy_forward(logits.astype("float64"), labels, smoothing)
    losses, hits, dlogits = k.empty(N), k.empty(N), k.empty((N, K))
    modules.softmax_cross_entropy(
        k.put(logits), k.put(labels), losses, hits, dlogits, label_smoothing=smoothing
    )
    np.testing.assert_allclose(k.get(losses).mean(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(k.get(dlogits), F.softmax_cross_entropy_backward(cache), rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(k.get(hits), logits.argmax(axis=1) == labels)

    in_place, again = k.put(logits), k.empty(N)
    modules.softmax_cross_entropy(in_place, k.put(labels), again, hits, in_place, label_smoothing=smoothing)
    np.testing.assert_array_equal(k.get(in_place), k.get(dlogits))
    np.testing.assert_array_equal(k.get(again), k.get(losses))


def test_of_equal_logits_the_first_counts_and_none_overflows(k):
    logits = np.zeros((4, 40), "float32")
    logits[1:, [3, 35]] = 1e4
    labels = np.array([0, 3, 35, 4])
    losses, hits = k.empty(4), k.empty(4)
    modules.softmax_cross_entropy(k.put(logits), k.put(labels), losses, hits)
    assert k.get(hits).tolist() == [1, 1, 0, 0]
    np.testing.assert_allclose(k.get(losses), [np.log(40), np.log(2), np.log(2), 1e4 + np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_logit_that_is_not_finite_shows_in_the_total(k, bad):
    logits = np.zeros((3, 10), "float32")
    logits[1, 4] = bad
    losses, hits, totals = k.empty(3), k.empty(3), k.put(np.zeros(3))
    modules.softmax_cross_entropy(k.put(logits), k.put(np.zeros(3, "int64")), losses, hits)
    modules.add_up(losses, hits, totals)
    assert np.isnan(k.get(totals)[0])


@pytest.mark.parametrize("N", [1, 5, 600])
def test_totals_go_on_from_batch_to_batch(k, N):
    losses, hits = np.abs(numbers(N)), (numbers(N, seed=1) > 0).astype("float32")
    totals = k.put(np.array([10.0, 20.0, 30.0]))
    for _ in range(2):
        modules.add_up(k.put(losses), k.put(hits), totals)
    expected = np.array([10, 20, 30]) + 2 * np.array([losses.sum(dtype="float64"), hits.sum(), N])
    np.testing.assert_allclose(k.get(totals), expected, rtol=1e-12)


# The optimizer


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
        modules.sgd(values, k.put(gradient), v, k.put(rates), batch, operands=operands, **settings)
        modules.advance(batch)
        np.testing.assert_allclose(k.get(values), weight.data, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(k.get(operands), as_operands(k.get(values), "uint16"))
    if v is not None:
        np.testing.assert_allclose(k.get(velocity), ours.momentum_buffer, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size, offset", [(1, 0), (9, 0), (1024, 0), (1024, 1), (5000, 0)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.1},
        {"momentum": 0.9, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True},
    ],
    ids=["plain", "decay", "momentum", "nesterov"],
)
def test_sgd(k, size, offset, settings):
    check_sgd(k, size, offset, **settings)


def test_sgd_on_a_part_of_the_flat_buffers(k):
    values, gradients = k.put(numbers(20)), k.put(numbers(20, seed=1))
    rates, batch = k.put(np.float32([1.0])), k.put(np.zeros(1, "int64"))
    modules.sgd(values[4:12], gradients[4:12], None, rates, batch)
    expected = numbers(20)
    expected[4:12] -= numbers(20, seed=1)[4:12]
    np.testing.assert_array_equal(k.get(values), expected)


def test_advance(k):
    counters = k.put(np.array([0, 41, 2**40]))
    modules.advance(counters)
    modules.advance(counters[:1])
    assert k.get(counters).tolist() == [2, 42, 2**40 + 1]


# The data


def check_pictures(k, augmentation, batch_size=4, shape=(7, 6, 5, 3)):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype="uint8")
    labels = np.arange(10, 10 + len(images))
    normalisation = data.Normalisation((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
    augmentation = data.Augmentation.named(augmentation)
    loader = data.Loader(
        images, labels, batch_size, shuffle=True, augmentation=augmentation, normalisation=normalisation
    )
    choices, batch = k.put(loader.choices(3)), k.put(np.zeros(1, "int64"))
    scale, shift = normalisation.affine
    for expected_x, expected_y in loader.epoch(3):
        x, y = k.empty(expected_x.shape), k.empty(expected_y.shape, "int64")
        modules.pictures(
            k.put(images), k.put(labels), choices, batch, x, y,
            batch_size=batch_size, crop=augmentation.crop, cutout=augmentation.cutout,
            fill=normalisation.colour,
            scale=scale, shift=shift,
        )  # fmt: skip
        modules.advance(batch)
        np.testing.assert_array_equal(k.get(y), expected_y)
        np.testing.assert_array_equal(k.get(x), expected_x)


@pytest.mark.parametrize("augmentation", ["none", "crop", "flip", "crop2-flip", "crop-flip-cutout3"])
def test_pictures_are_the_loaders_to_the_last_bit(k, augmentation):
    check_pictures(k, augmentation)


# Wrong arrays, which a kernel would read as something else


@pytest.mark.parametrize(
    "call, said",
    [
        (
            lambda k: modules.im2col(k.empty((1, 4, 4, 3)), k.empty((16, 28)), 3, 1, 1),
            r"\(16, 27\).*\(16, 28\)",
        ),
        (lambda k: modules.im2col(k.empty((1, 4, 4, 3), "float64"), k.empty((16, 27)), 3, 1, 1), "float32"),
        (lambda k: modules.mask(k.empty((8, 4)).T, None, None), "contiguous"),
        (lambda k: modules.epilogue(k.empty((2, 4)), k.empty((2, 4)), centre=k.empty(4)), "together"),
        (lambda k: modules.cast(k.empty(4), k.empty(5, "uint16")), "expected 4 operands"),
        (lambda k: modules.finish_sums(k.empty((3, 4)), k.empty(5)), r"\(4,\)"),
    ],
)
def test_wrong_arrays_are_refused(k, call, said):
    with pytest.raises(ValueError, match=said):
        call(k)


def test_too_many_pixels_for_a_kernels_counter(k):
    with pytest.raises(ValueError, match="fewer images at a time"):
        modules._geometry((2**20, 224, 224, 3), 3, 1, 1)


# Planted faults: the comparisons above have to notice each of them

FAULTS = {
    "barrier missing before threads of a block are added": (
        "parts.cuh",
        "        __syncthreads();\n        if (threadIdx.y < half)",
        "        if (threadIdx.y < half)",
        lambda k: check_mask(k, 700, 12),
    ),
    "barrier missing between the channels of a pack": (
        "norm.cu",
        "        __syncthreads();  // the channel before this one may still be read\n",
        "",
        lambda k: check_norm_statistics(k, (700, 12)),
    ),
    "barrier missing where parts are joined": (
        "norm.cu",
        "met[threadIdx.y][threadIdx.x] = mine;\n    __syncthreads();",
        "met[threadIdx.y][threadIdx.x] = mine;",
        lambda k: check_norm_statistics(k, (700, 12)),
    ),
    "im2col reads a column beyond the border": (
        "conv.cu",
        "0 <= w && w < W) value",
        "0 <= w && w <= W) value",
        lambda k: check_im2col(k, (2, 5, 4, 8), 3, 1, 1),
    ),
    "col2im forgets the last row of patches": (
        "conv.cu",
        "oh >= OH ||",
        "oh >= OH - 1 ||",
        lambda k: check_col2im(k, (2, 5, 4, 8), 3, 1, 1),
    ),
    "strides of rows and columns swapped": (
        "conv.cu",
        "image[((long long)h * W + w) * packs]",
        "image[((long long)w * H + h) * packs]",
        lambda k: check_im2col(k, (2, 5, 4, 8), 3, 1, 1),
    ),
    "a tie in pooling goes to the last": (
        "epilogue.cu",
        "candidate > best.at[i]",
        "candidate >= best.at[i]",
        lambda k: check_epilogue_pool(k, (2, 4, 4, 8)),
    ),
    "odd rows keep what was there": (
        "mask.cu",
        "int down = oh == OH - 1 ? H - 2 * oh : 2",
        "int down = 2",
        lambda k: check_unpool(k, (1, 5, 7, 3)),
    ),
    "the gradient does not flow through the variance": (
        "norm.cu",
        "- slope.at[i] * (x - mean.at[i])",
        "",
        lambda k: check_norm(k, (2, 4, 4, 8)),
    ),
    "momentum of the step before": (
        "sgd.cu",
        "((Pack*)velocity)[k] = v;",
        "((Pack*)velocity)[k] = g;",
        lambda k: check_sgd(k, 9, momentum=0.9),
    ),
    "mirrored the wrong way": (
        "pictures.cu",
        "W - 1 - w : w",
        "W - w : w",
        lambda k: check_pictures(k, "flip"),
    ),
    "a round of Philox less": (
        "dropout.cu",
        "round < 10",
        "round < 9",
        lambda k: check_dropout(k, 7, 0.5),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(stand_in, monkeypatch, tmp_path, fault):
    from scratchnet import backend

    file, right, wrong, check = FAULTS[fault]
    cuda_emulator.order.set(1)
    k = Kernels(backend.get("cupy"))
    check(k)
    for path in modules.FOLDER.iterdir():
        text = path.read_text()
        if path.name == file:
            assert text.count(right) == 1, "the kernel has changed: plant the fault anew"
            text = text.replace(right, wrong)
        (tmp_path / path.name).write_text(text)
    monkeypatch.setattr(modules, "FOLDER", tmp_path)
    monkeypatch.setattr(modules, "_kernel", modules._kernel.__wrapped__)
    monkeypatch.setattr(modules, "_module", modules._module.__wrapped__)
    with pytest.raises(AssertionError):
        check(k)
