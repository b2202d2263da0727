"""Convolution as one matrix product: patches to rows (im2col), multiply, and the way back (col2im).

Symbols, here and in the comments at the ends of lines:

    N  images in the batch      C  input channels      O  output channels
    H  W   height and width of the input             KH KW  height and width of the kernel
    OH OW  height and width of the output            S  stride      P  padding with zeros on every side

The image to keep in mind, for one image of 4 x 4 pixels and a 3 x 3 kernel without padding. The output has
2 x 2 pixels, and each is the inner product of the kernel with one patch of the input::

    a b c d       patch of output pixel (0, 0):  a b c e f g i j k      row 0 of the column matrix
    e f g h                             (0, 1):  b c d f g h j k l      row 1
    i j k l                             (1, 0):  e f g i j k m n o      row 2
    m n o p                             (1, 1):  f g h j k l n o p      row 3

So columns (N*OH*OW, KH*KW*C) times weight (KH*KW*C, O) is the whole convolution. Each row
holds KH*KW pixels. With a 3 x 3 kernel and stride 1 that takes nine times the memory of the input: therefore
the matrix is made for a few images at a time, in one buffer that is used again and again, and never kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from scratchnet.backend import Array, array_module
from scratchnet.functional.sums import channel_sum

# How much of the column matrix to hold at a time, in bytes. On a CPU it should still be in the cache when the
# product reads it, and each product be long enough that its threads seldom have to wait for each other; a GPU
# wants products that are large enough to fill it.
COLUMNS_ON_CPU = 8 << 20
COLUMNS_ON_GPU = 512 << 20


def conv_output_size(size: int, kernel_size: int, stride: int = 1, padding: int = 0) -> int:
    """Return how many positions a kernel can take along an axis of ``size`` pixels.

    Parameters
    ----------
    size : int
        H or W.
    kernel_size : int
        KH or KW.
    stride, padding : int

    Examples
    --------
    >>> conv_output_size(32, kernel_size=3, stride=1, padding=1)
    32
    """
    return (size + 2 * padding - kernel_size) // stride + 1


def conv2d_six_loops(
    x: Array, weight: Array, bias: Array | None = None, stride: int = 1, padding: int = 0
) -> Array:
    """Convolve by the definition: the text to read first, and what the tests compare the fast version with.

    y[n, oh, ow, o] = bias[o] + sum over i, j, c of x[n, oh*S + i - P, ow*S + j - P, c] weight[i, j, c, o],
    where x is zero outside the image. (Deep learning says convolution and means correlation: the kernel is
    not turned.)

    Parameters
    ----------
    x : array (N, H, W, C)
    weight : array (KH, KW, C, O)
    bias : array (O,), optional
    stride, padding : int

    Returns
    -------
    array (N, OH, OW, O)

    Examples
    --------
    >>> conv2d_six_loops(np.ones((1, 3, 3, 1)), np.ones((3, 3, 1, 1)), padding=1)[0, :, :, 0]
    array([[4., 6., 4.],
           [6., 9., 6.],
           [4., 6., 4.]])
    """
    N, H, W, _ = x.shape
    KH, KW, _, O = weight.shape
    OH, OW = conv_output_size(H, KH, stride, padding), conv_output_size(W, KW, stride, padding)
    y = np.zeros((N, OH, OW, O), dtype=x.dtype)
    for n in range(N):
        for oh in range(OH):
            for ow in range(OW):
                for o in range(O):
                    for i in range(KH):
                        for j in range(KW):
                            h, w = oh * stride + i - padding, ow * stride + j - padding
                            if 0 <= h < H and 0 <= w < W:
                                y[n, oh, ow, o] += x[n, h, w] @ weight[i, j, :, o]
    return y if bias is None else y + bias


def im2col(x: Array, kernel_size: int | tuple[int, int], stride: int = 1, padding: int = 0) -> Array:
    """Copy every patch of ``x`` into a row of a matrix.

    Parameters
    ----------
    x : array (N, H, W, C)
    kernel_size : int or (int, int)
        KH = KW, or both.
    stride, padding : int

    Returns
    -------
    array (N*OH*OW, KH*KW*C)
        Row (n, oh, ow) is the patch under output pixel (oh, ow) of image n; within it the order is (i, j, c).

    Examples
    --------
    >>> im2col(np.arange(9.0).reshape(1, 3, 3, 1), kernel_size=2)
    array([[0., 1., 3., 4.],
           [1., 2., 4., 5.],
           [3., 4., 6., 7.],
           [4., 5., 7., 8.]])
    """
    KH, KW = _pair(kernel_size)
    patches = _patches(_pad(x, padding), KH, KW, stride)  # (N, OH, OW, KH, KW, C)
    return patches.copy().reshape(-1, KH * KW * x.shape[3])  # (N*OH*OW, KH*KW*C)


def col2im(
    columns: Array,
    x_shape: tuple[int, ...],
    kernel_size: int | tuple[int, int],
    stride: int = 1,
    padding: int = 0,
) -> Array:
    """Add every row of the matrix back to the patch that it came from: the adjoint of ``im2col``.

    im2col is linear: it copies pixel p into some places of the column matrix, as many as patches hold p. Its
    adjoint therefore takes what stands in those places and adds it up: the gradient of a pixel is the sum of
    the gradients of its copies. That is <im2col(x), c> = <x, col2im(c)> for all x and c. What falls on the
    padding is dropped.

    Parameters
    ----------
    columns : array (N*OH*OW, KH*KW*C)
    x_shape : (N, H, W, C)
    kernel_size : int or (int, int)
    stride, padding : int

    Returns
    -------
    array (N, H, W, C)

    Examples
    --------
    Each pixel of a 3 x 3 image is counted once for every 2 x 2 patch that holds it:

    >>> col2im(np.ones((4, 4)), (1, 3, 3, 1), kernel_size=2)[0, :, :, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    N, H, W, C = x_shape
    KH, KW = _pair(kernel_size)
    OH, OW = conv_output_size(H, KH, stride, padding), conv_output_size(W, KW, stride, padding)
    patches = columns.reshape(N, OH, OW, KH, KW, C)
    padded = array_module(columns).zeros((N, H + 2 * padding, W + 2 * padding, C), dtype=columns.dtype)
    # One addition for each place (i, j) in the kernel: with it no two patches touch the same pixel.
    for i in range(KH):
        for j in range(KW):
            rows, cols = _steps(i, OH, stride), _steps(j, OW, stride)
            padded[:, rows, cols] += patches[:, :, :, i, j]  # (N, OH, OW, C)
    return padded[:, padding : padding + H, padding : padding + W]  # (N, H, W, C)


def conv2d_forward(
    x: Array, weight: Array, bias: Array | None = None, stride: int = 1, padding: int = 0
) -> tuple[Array, Any]:
    """Convolve: y = im2col(x) W + b.

    Parameters
    ----------
    x : array (N, H, W, C)
    weight : array (KH, KW, C, O)
        Reshaped to (KH*KW*C, O) it is the matrix of the product, without a copy.
    bias : array (O,), optional
    stride, padding : int

    Returns
    -------
    y : array (N, OH, OW, O)
    cache
        For ``conv2d_backward``: the input (for 3 x 3 and stride 1 a ninth of the size of its column matrix).

    Examples
    --------
    >>> x, weight = np.ones((1, 3, 3, 1)), np.ones((3, 3, 1, 1))
    >>> conv2d_forward(x, weight, padding=1)[0][0, :, :, 0]
    array([[4., 6., 4.],
           [6., 9., 6.],
           [4., 6., 4.]])
    """
    N, H, W, C = x.shape
    KH, KW, _, O = weight.shape
    OH, OW = conv_output_size(H, KH, stride, padding), conv_output_size(W, KW, stride, padding)
    W2 = weight.reshape(KH * KW * C, O)
    y = array_module(x).empty((N, OH, OW, O), dtype=x.dtype)
    for images, columns in _chunks_of_columns(x, weight, stride, padding):
        y2 = y[images].reshape(-1, O)  # (n*OH*OW, O), a view
        array_module(x).matmul(columns, W2, out=y2)  # (n*OH*OW, KH*KW*C) (KH*KW*C, O)
        if bias is not None:
            y2 += bias
    return y, (x, weight, bias is not None, stride, padding)


def conv2d_backward(dy: Array, cache: Any, need_dx: bool = True) -> tuple[Any, Any, Any]:
    """Return the gradients with respect to ``x``, ``weight`` and ``bias``.

    With columns = im2col(x) the convolution is y = columns W + b, a fully connected layer whose batch is
    every pixel of every image (Chellapilla et al. 2006, sec. 3). So its gradients are those of
    ``linear_backward``, and the one of the columns goes back to the image through the adjoint of im2col::

        dW       = columns^T dy
        db       = sum of dy over n, oh, ow
        dcolumns = dy W^T
        dx       = col2im(dcolumns)

    The columns are made again from x, a few images at a time, which is faster than keeping them.

    Parameters
    ----------
    dy : array (N, OH, OW, O)
    cache
        From ``conv2d_forward``.
    need_dx : bool
        False for the first layer of a network: the gradient of the image is not needed.

    Returns
    -------
    dx : array (N, H, W, C), or None
    dweight : array (KH, KW, C, O)
    dbias : array (O,), or None where there was no bias

    Examples
    --------
    Nine patches hold the pixel in the middle, four the one in a corner:

    >>> y, cache = conv2d_forward(np.ones((1, 3, 3, 1)), np.ones((3, 3, 1, 1)), np.zeros(1), padding=1)
    >>> dx, dweight, dbias = conv2d_backward(np.ones_like(y), cache)
    >>> dx[0, :, :, 0]
    array([[4., 6., 4.],
           [6., 9., 6.],
           [4., 6., 4.]])
    >>> dweight.shape, dbias
    ((3, 3, 1, 1), array([9.]))
    """
    x, weight, has_bias, stride, padding = cache
    xp = array_module(dy)
    KH, KW, C, O = weight.shape
    W2 = weight.reshape(KH * KW * C, O)
    dweight = xp.zeros_like(W2)  # (KH*KW*C, O)
    dx: Any = xp.empty(x.shape, dtype=x.dtype) if need_dx else None
    for images, columns in _chunks_of_columns(x, weight, stride, padding):
        dy2 = dy[images].reshape(-1, O)  # (n*OH*OW, O)
        dweight += columns.T @ dy2  # (KH*KW*C, n*OH*OW) (n*OH*OW, O)
        if need_dx:
            # Over the columns, which are no longer needed: (n*OH*OW, KH*KW*C).
            dcolumns = xp.matmul(dy2, W2.T, out=columns)
            dx[images] = col2im(dcolumns, x[images].shape, (KH, KW), stride, padding)
    dbias = channel_sum(dy) if has_bias else None  # (O,)
    return dx, dweight.reshape(weight.shape), dbias


def _chunks_of_columns(x: Array, weight: Array, stride: int, padding: int) -> Iterator[tuple[slice, Any]]:
    """Walk over the batch, a few images at a time: yield which ones, and their column matrix.

    All column matrices lie in the same buffer, so each is valid until the next one is asked for.
    """
    xp = array_module(x)
    N, H, W, C = x.shape
    KH, KW = weight.shape[:2]
    OH, OW = conv_output_size(H, KH, stride, padding), conv_output_size(W, KW, stride, padding)
    # A chunk of at least the weight's size, since each costs one addition to the whole weight gradient.
    budget = max(COLUMNS_ON_CPU, weight.nbytes) if xp is np else COLUMNS_ON_GPU
    n = max(1, min(N, budget // (OH * OW * KH * KW * C * x.itemsize)))
    buffer = xp.empty((n, OH, OW, KH, KW, C), dtype=x.dtype)
    for first in range(0, N, n):
        images = slice(first, min(first + n, N))
        columns = buffer[: images.stop - first]  # the last chunk may be short
        columns[...] = _patches(_pad(x[images], padding), KH, KW, stride)
        yield images, columns.reshape(-1, KH * KW * C)  # (n*OH*OW, KH*KW*C)


def _pad(x: Array, padding: int) -> Array:
    """Return x (N, H, W, C) with a border of zeros, (N, H+2P, W+2P, C)."""
    if padding == 0:
        return x
    N, H, W, C = x.shape
    padded = array_module(x).zeros((N, H + 2 * padding, W + 2 * padding, C), dtype=x.dtype)
    padded[:, padding : padding + H, padding : padding + W] = x
    return padded


def _patches(x: Array, KH: int, KW: int, stride: int) -> Array:
    """Return a view (N, OH, OW, KH, KW, C) of x in which every patch has its own place, without a copy.

    Pixel (i, j) of patch (oh, ow) is pixel (oh*S + i, ow*S + j) of the image: in memory a step along oh is as
    long as S along h, and one along i as long as one along h.
    """
    N, H, W, C = x.shape
    n, h, w, c = x.strides
    shape = N, conv_output_size(H, KH, stride), conv_output_size(W, KW, stride), KH, KW, C
    # (CuPy's sliding_window_view compares sizes on the host, and waits for the GPU to do so.)
    return array_module(x).lib.stride_tricks.as_strided(x, shape, (n, h * stride, w * stride, h, w, c))


def _steps(start: int, count: int, stride: int) -> slice:
    """Return the slice of ``count`` pixels from ``start`` on, ``stride`` apart."""
    return slice(start, start + stride * (count - 1) + 1, stride)


def _pair(kernel_size: int | tuple[int, int]) -> tuple[int, int]:
    return kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
