"""The convolution, and im2col and col2im underneath it."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchnet import functional as F
from scratchnet.functional import conv as conv_module
from scratchnet.gradcheck import check_layer
from scratchnet.layers import Conv2d


def normal(*shape, seed=0, dtype="float64"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# N, H, W, C, O, kernel, stride, padding: H != W, sizes that round down, batch 1, one channel,
# stride > kernel, padding >= kernel, a kernel as large as the image
CASES = [
    (2, 5, 4, 2, 3, 3, 1, 1),
    (1, 4, 6, 1, 1, 3, 1, 0),
    (2, 4, 5, 3, 2, 1, 1, 0),
    (2, 5, 5, 2, 2, 1, 3, 0),
    (2, 6, 5, 1, 2, 2, 1, 0),
    (1, 7, 6, 2, 1, 2, 3, 1),
    (2, 6, 7, 2, 2, 3, 2, 0),
    (2, 7, 4, 1, 3, 3, 2, 1),
    (3, 6, 8, 1, 1, 3, 3, 2),
    (1, 5, 5, 2, 2, 5, 1, 0),
    (1, 6, 5, 1, 2, 5, 2, 2),
    (2, 5, 6, 1, 1, 5, 3, 3),
    (1, 3, 2, 2, 2, 2, 1, 3),
    (1, 1, 1, 1, 1, 3, 1, 1),
    (1, 1, 1, 2, 2, 1, 1, 3),
    (1, 9, 2, 1, 1, 2, 50, 0),
]


def arguments(case):
    N, H, W, C, O, K, S, P = case
    return normal(N, H, W, C), normal(K, K, C, O, seed=1), normal(O, seed=2), S, P


# The output size


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "expected"),
    [(32, 3, 1, 1, 32), (5, 2, 2, 0, 2), (5, 3, 2, 1, 3), (4, 2, 3, 0, 1), (1, 3, 1, 1, 1), (7, 7, 9, 0, 1)],
)
def test_output_size_rounds_down(size, kernel, stride, padding, expected):
    assert F.conv_output_size(size, kernel, stride, padding) == expected


# im2col and col2im


def test_im2col_rows_are_patches_and_within_a_row_the_order_is_row_column_channel():
    N, H, W, C, KH, KW, S, P = 2, 5, 6, 3, 2, 3, 2, 1
    x = normal(N, H, W, C)
    columns = F.im2col(x, (KH, KW), S, P)
    padded = np.pad(x, ((0, 0), (P, P), (P, P), (0, 0)))
    OH, OW = (H + 2 * P - KH) // S + 1, (W + 2 * P - KW) // S + 1
    assert columns.shape == (N * OH * OW, KH * KW * C)
    for n, oh, ow in np.ndindex(N, OH, OW):
        for i, j, c in np.ndindex(KH, KW, C):
            row, column = (n * OH + oh) * OW + ow, (i * KW + j) * C + c
            assert columns[row, column] == padded[n, oh * S + i, ow * S + j, c]


def test_im2col_of_a_one_by_one_kernel_is_a_reshape():
    x = normal(2, 3, 4, 5)
    assert (F.im2col(x, 1) == x.reshape(24, 5)).all()


def test_im2col_result_is_a_copy_that_may_be_written_to():
    x = normal(1, 3, 3, 1)
    before = x.copy()
    F.im2col(x, 1)[...] = 7
    F.im2col(x, 3)[...] = 7
    F.im2col(x, 2)[...] = 7
    assert (x == before).all()


@st.composite
def geometry(draw):
    N, C = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    KH, KW = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    S, P = draw(st.integers(1, 6)), draw(st.integers(0, 4))
    H = draw(st.integers(max(1, KH - 2 * P), 9))
    W = draw(st.integers(max(1, KW - 2 * P), 9))
    return N, H, W, C, KH, KW, S, P


@given(geometry(), st.integers(0, 1000))
@settings(max_examples=150, deadline=None)
def test_col2im_is_the_adjoint_of_im2col(g, seed):
    N, H, W, C, KH, KW, S, P = g
    x = normal(N, H, W, C, seed=seed)
    columns = F.im2col(x, (KH, KW), S, P)
    c = normal(*columns.shape, seed=seed + 1)
    back = F.col2im(c, x.shape, (KH, KW), S, P)
    assert back.shape == x.shape
    assert (columns * c).sum() == pytest.approx((x * back).sum(), abs=1e-9)


@given(geometry())
@settings(max_examples=50, deadline=None)
def test_col2im_of_ones_counts_how_many_patches_hold_each_pixel(g):
    N, H, W, C, KH, KW, S, P = g
    columns = F.im2col(np.ones((N, H, W, C)), (KH, KW), S, P)
    counts = F.col2im(columns, (N, H, W, C), (KH, KW), S, P)
    assert counts.sum() == columns.sum()
    assert (counts == np.round(counts)).all()


# Forward


@pytest.mark.parametrize("case", CASES)
def test_forward_equals_the_six_loops(case):
    x, weight, bias, S, P = arguments(case)
    y, _ = F.conv2d_forward(x, weight, bias, S, P)
    np.testing.assert_allclose(y, F.conv2d_six_loops(x, weight, bias, S, P), atol=1e-12)
    y, _ = F.conv2d_forward(x, weight, None, S, P)
    np.testing.assert_allclose(y, F.conv2d_six_loops(x, weight, None, S, P), atol=1e-12)


def test_the_kernel_is_not_turned_and_need_not_be_square():
    x = normal(1, 4, 5, 1)
    weight = np.zeros((2, 3, 1, 1))
    weight[1, 2] = 1.0
    y, cache = F.conv2d_forward(x, weight)
    assert (y == x[:, 1:, 2:]).all()
    dx, dweight, dbias = F.conv2d_backward(np.ones_like(y), cache)
    assert dx.shape == x.shape and dweight.shape == weight.shape and dbias is None


# Backward


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_gradients_agree_with_central_differences(case, bias):
    N, H, W, C, O, K, S, P = case
    layer = Conv2d(C, O, K, S, P, bias, dtype="float64", init="pytorch")
    check_layer(layer, normal(N, H, W, C)).raise_for_failure()


def test_gradients_agree_with_central_differences_for_all_kernels_strides_and_paddings():
    for K in (1, 2, 3, 5):
        for S in (1, 2, 3):
            for P in (0, 1, 2, 3):
                layer = Conv2d(2, 2, K, S, P, dtype="float64")
                report = check_layer(layer, normal(2, 6, 5, 2), tier="directions")
                assert report.ok, f"kernel {K}, stride {S}, padding {P}\n{report}"


@pytest.mark.parametrize("need_dx", [True, False])
def test_the_gradient_of_the_input_can_be_left_out(need_dx):
    x, weight, bias, S, P = arguments(CASES[0])
    y, cache = F.conv2d_forward(x, weight, bias, S, P)
    dy = normal(*y.shape, seed=3)
    dx, dweight, dbias = F.conv2d_backward(dy, cache, need_dx)
    full = F.conv2d_backward(dy, cache)
    assert (dx is None) is not need_dx
    assert (dweight == full[1]).all() and (dbias == full[2]).all()


# The walk over chunks of the batch


@pytest.mark.parametrize("images_a_chunk", [1, 2, 3, 5])
@pytest.mark.parametrize("case", CASES[:8])
def test_a_batch_in_several_chunks_gives_the_same(monkeypatch, case, images_a_chunk):
    _, H, W, C, O, K, S, P = case
    x, weight, bias = normal(7, H, W, C), normal(K, K, C, O, seed=1), normal(O, seed=2)
    y, cache = F.conv2d_forward(x, weight, bias, S, P)
    dy = normal(*y.shape, seed=3)
    whole = y, *F.conv2d_backward(dy, cache)

    _, OH, OW, _ = y.shape
    monkeypatch.setattr(conv_module, "COLUMNS_ON_CPU", images_a_chunk * OH * OW * K * K * C * 8)
    chunks = [images for images, _ in conv_module._chunks_of_columns(x, weight, S, P)]
    if weight.nbytes <= conv_module.COLUMNS_ON_CPU:
        assert [c.stop - c.start for c in chunks][0] == images_a_chunk
        assert [c.stop - c.start for c in chunks][-1] == (7 % images_a_chunk or images_a_chunk)
    assert chunks[0].start == 0 and chunks[-1].stop == 7

    y, cache = F.conv2d_forward(x, weight, bias, S, P)
    for part, expected in zip((y, *F.conv2d_backward(dy, cache)), whole, strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-12)


def test_one_image_larger_than_the_buffer_still_works(monkeypatch):
    monkeypatch.setattr(conv_module, "COLUMNS_ON_CPU", 1)
    x, weight, bias, S, P = arguments(CASES[0])
    y, _ = F.conv2d_forward(x, weight, bias, S, P)
    np.testing.assert_allclose(y, F.conv2d_six_loops(x, weight, bias, S, P), atol=1e-12)


def test_the_column_matrix_of_the_whole_batch_is_never_held():
    N, H, C, O = 64, 32, 16, 16
    x, weight = normal(N, H, H, C, dtype="float32"), normal(3, 3, C, O, dtype="float32")
    columns = x.nbytes * 9
    dy = np.ones((N, H, H, O), "float32")
    tracemalloc.start()
    try:
        y, cache = F.conv2d_forward(x, weight, padding=1)
        forward = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        F.conv2d_backward(dy, cache)
        backward = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    buffer = conv_module.COLUMNS_ON_CPU
    assert forward < y.nbytes + 1.5 * buffer < columns
    assert backward < y.nbytes + x.nbytes + 2 * buffer < columns


def test_the_cache_holds_the_input_itself_and_nothing_larger():
    x, weight, bias, S, P = arguments(CASES[0])
    _, cache = F.conv2d_forward(x, weight, bias, S, P)
    arrays = [part for part in cache if isinstance(part, np.ndarray)]
    assert any(part is x for part in arrays)
    assert sum(part.nbytes for part in arrays) <= x.nbytes + weight.nbytes


# Arrays of every kind


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_preserved(dtype):
    x, weight, bias, S, P = arguments(CASES[6])
    x, weight, bias = x.astype(dtype), weight.astype(dtype), bias.astype(dtype)
    y, cache = F.conv2d_forward(x, weight, bias, S, P)
    gradients = F.conv2d_backward(y, cache)
    assert {a.dtype for a in (y, *gradients)} == {np.dtype(dtype)}
    assert F.im2col(x, 2).dtype == dtype
    assert F.col2im(F.im2col(x, 2), x.shape, 2).dtype == dtype
    assert F.conv2d_six_loops(x, weight, bias, S, P).dtype == dtype


@pytest.mark.parametrize("padding", [0, 1])
def test_inputs_are_never_written_to(padding):
    x, weight, bias, _, _ = arguments(CASES[0])
    for array in (x, weight, bias):
        array.flags.writeable = False
    y, cache = F.conv2d_forward(x, weight, bias, 1, padding)
    dy = normal(*y.shape)
    dy.flags.writeable = False
    F.conv2d_backward(dy, cache)
    columns = F.im2col(x, 3)
    columns.flags.writeable = False
    F.col2im(columns, x.shape, 3)


@pytest.mark.parametrize(
    "view",
    [
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=2)[:, :, ::2],
        lambda a: a[:, ::-1].copy()[:, ::-1],
        lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 3, 1)), 1, 3),
    ],
    ids=["fortran", "strided", "negative strides", "channels first in memory"],
)
def test_memory_layout_of_the_inputs_does_not_matter(view):
    x, weight, bias, S, P = arguments(CASES[7])
    y, cache = F.conv2d_forward(x, weight, bias, S, P)
    dy = normal(*y.shape, seed=5)
    expected = y, *F.conv2d_backward(dy, cache)
    y, cache = F.conv2d_forward(view(x), view(weight), bias, S, P)
    for part, e in zip((y, *F.conv2d_backward(view(dy), cache)), expected, strict=True):
        np.testing.assert_allclose(part, e, atol=1e-12)


def test_bias_gradient_keeps_its_digits_over_a_large_batch_in_float32():
    dy = np.full((128, 32, 32, 1), 0.1, "float32")
    _, cache = F.conv2d_forward(
        np.zeros((128, 32, 32, 1), "float32"), np.ones((1, 1, 1, 1), "float32"), np.ones(1, "float32")
    )
    dbias = F.conv2d_backward(dy, cache)[2]
    assert float(dbias[0]) == pytest.approx(0.1 * dy.size, rel=2e-6)


def test_nan_stays_under_its_own_patches():
    x, weight = np.zeros((2, 5, 5, 1)), np.ones((3, 3, 1, 1))
    x[1, 0, 0] = np.nan
    y, _ = F.conv2d_forward(x, weight, padding=1)
    assert np.isnan(y[1, :2, :2]).all() and np.isnan(y).sum() == 4
