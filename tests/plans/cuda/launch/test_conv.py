"""Convolution between cuBLAS's products: im2col, col2im."""

import mmap

import numpy as np
import pytest

from scratchnet import functional as F
from scratchnet.plans.cuda.launch import compiling
from scratchnet.plans.cuda.launch.common import check_pixels
from scratchnet.plans.cuda.launch.conv import col2im, geometry, im2col
from scratchnet.plans.cuda.launch.epilogue import epilogue
from scratchnet.plans.cuda.launch.mask import mask
from scratchnet.plans.cuda.launch.sums import finish_sums, sums_shape
from tests.fakes import cupy_stand_in
from tests.fakes.device_arrays import BOTH_OPERANDS, as_operands, numbers

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
    im2col(k.put(x), columns, kernel, stride, padding)
    np.testing.assert_array_equal(k.get(columns), as_operands(expected, operand))


def check_col2im(k, shape, kernel, stride, padding, offset=0):
    columns = numbers(*F.im2col(np.zeros(shape, "float32"), kernel, stride, padding).shape)
    dx = k.empty(shape, offset=offset)
    col2im(k.put(columns), dx, kernel, stride, padding)
    # Both add in the order of the kernel's places, from zero: the same bits.
    np.testing.assert_array_equal(k.get(dx), F.col2im(columns, shape, kernel, stride, padding))


@BOTH_OPERANDS
@pytest.mark.parametrize("shape, kernel, stride, padding", GEOMETRIES)
def test_im2col(k, shape, kernel, stride, padding, operand):
    check_im2col(k, shape, kernel, stride, padding, operand)


@pytest.mark.parametrize("shape, kernel, stride, padding", GEOMETRIES)
def test_col2im(k, shape, kernel, stride, padding):
    check_col2im(k, shape, kernel, stride, padding)


@BOTH_OPERANDS
@pytest.mark.parametrize(
    "shape, kernel, width", [((2, 5, 4, 3), 3, 32), ((2, 5, 4, 4), 3, 40), ((1, 4, 4, 8), 1, 64)]
)
def test_rows_of_the_column_matrix_may_be_wider_than_a_patch(k, shape, kernel, width, operand):
    """27 numbers become 32, so that tensor cores multiply whole groups; the rest are zeros."""
    x = numbers(*shape)
    expected = F.im2col(x, kernel, 1, kernel // 2)
    columns = k.empty((len(expected), width), operand)
    im2col(k.put(x), columns, kernel, 1, kernel // 2)
    padding = ((0, 0), (0, width - expected.shape[1]))
    np.testing.assert_array_equal(k.get(columns), as_operands(np.pad(expected, padding), operand))


def test_im2col_and_col2im_where_packs_are_not_aligned(k):
    check_im2col(k, (2, 5, 4, 8), 3, 1, 1, offset=1)
    check_im2col(k, (2, 5, 4, 8), 3, 1, 1, operand="uint16", offset=2)
    check_col2im(k, (2, 5, 4, 8), 3, 1, 1, offset=3)


def test_im2col_of_some_images_of_a_batch(k):
    x = numbers(5, 4, 4, 4)
    columns = k.empty((2 * 16, 36))
    im2col(k.put(x)[2:4], columns, 3, 1, 1)
    np.testing.assert_array_equal(k.get(columns), F.im2col(x[2:4], 3, 1, 1))


def test_convolution_from_its_parts(k):
    """Forward and both gradients, with cuBLAS's products made on the host."""
    x, weight = numbers(2, 5, 6, 4), numbers(3, 3, 4, 8, seed=1)
    y, cache = F.conv2d_forward(x, weight, numbers(8, seed=2), padding=1)
    dy = numbers(*y.shape, seed=3)
    expected_dx, expected_dweight, expected_dbias = F.conv2d_backward(dy, cache)

    columns = k.empty((60, 36))
    im2col(k.put(x), columns, 3, 1, 1)
    z = k.put((k.get(columns) @ weight.reshape(36, 8)).reshape(y.shape))
    epilogue(z, z, k.put(numbers(8, seed=2)), relu=False)
    np.testing.assert_allclose(k.get(z), y, rtol=1e-4, atol=1e-5)

    partial, dbias, dx = k.empty(sums_shape(60, 8)), k.empty(8), k.empty(x.shape)
    mask(k.put(dy), None, None, partial)
    finish_sums(partial, dbias)
    np.testing.assert_allclose(k.get(dbias), expected_dbias, rtol=1e-4, atol=1e-5)
    dweight = (k.get(columns).T @ dy.reshape(60, 8)).reshape(weight.shape)
    np.testing.assert_allclose(dweight, expected_dweight, rtol=1e-4, atol=1e-5)
    col2im(k.put(dy.reshape(60, 8) @ weight.reshape(36, 8).T), dx, 3, 1, 1)
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

    def last_block(cupy, file, name, macros):
        kernel = cupy.RawModule(code=compiling.source(file), options=compiling.OPTIONS + macros).get_function(
            name
        )

        def launch(grid, block, arguments):
            blocks = 64 * 224 * 224 // block[1]
            kernel((blocks, *grid[1:]), block, arguments, only_block=blocks - 1)

        return launch

    monkeypatch.setattr(compiling, "kernel", last_block)
    x.array._host[-1] = corner = numbers(1, 224, 224, 80)[0]
    im2col(x.array, columns.array, 3, 1, 1)
    expected = F.im2col(corner[None, -2:, -3:], 3, 1, 1)[-1]
    np.testing.assert_array_equal(columns.array._host[-1], expected)
    x.array._host[-1, -1, -1] = np.nan
    columns.array._host[-1] = 1.0
    col2im(columns.array, x.array, 3, 1, 1)
    # The last pixel is in four patches, of which im2col has only written the last.
    patches = columns.array._host.reshape(64, 224, 224, 3, 3, 80)[-1, -2:, -2:]
    expected = patches[0, 0, 2, 2] + patches[0, 1, 2, 1] + patches[1, 0, 1, 2] + patches[1, 1, 1, 1]
    np.testing.assert_allclose(x.array._host[-1, -1, -1], expected, rtol=1e-6)


def test_too_many_pixels_for_a_kernels_counter(k):
    with pytest.raises(ValueError, match="fewer images at a time"):
        geometry((2**20, 224, 224, 3), 3, 1, 1)
    check_pixels((2**15, 2**8, 2**8 - 1, 7))
    with pytest.raises(ValueError, match="32768 x 256 x 256 pixels has too many of them"):
        check_pixels((2, 3, 3, 1), (2**15, 2**8, 2**8, 1))


FAULTS = {
    "im2col reads a column beyond the border": (
        "conv.cu", "0 <= w && w < W) value",
        "0 <= w && w <= W) value", lambda k: check_im2col(k, (2, 5, 4, 8), 3, 1, 1),
    ),
    "col2im forgets the last row of patches": (
        "conv.cu", "oh >= OH ||",
        "oh >= OH - 1 ||", lambda k: check_col2im(k, (2, 5, 4, 8), 3, 1, 1),
    ),
    "strides of rows and columns swapped": (
        "conv.cu", "image[((long long)h * W + w) * packs]",
        "image[((long long)w * H + h) * packs]", lambda k: check_im2col(k, (2, 5, 4, 8), 3, 1, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(plant, fault):
    plant(*FAULTS[fault])
