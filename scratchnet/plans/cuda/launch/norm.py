"""Launches of ``kernels/norm.cu``: batch normalisation. Weights, biases and statistics are (C,)."""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchnet.backend import Array
from scratchnet.plans.cuda.launch.common import (
    by_column,
    check,
    check_pixels,
    check_vectors,
    flat,
    launch_rows,
    macros,
)
from scratchnet.plans.cuda.launch.compiling import launch
from scratchnet.plans.cuda.launch.sums import sums_shape


def norm_statistics(x: Array, partial: Array) -> None:
    """Write mean and sum of squared deviations of every channel of x (..., C), each for a share of the rows.

    They go to ``partial`` (2, *sums_shape(R, C)).
    """
    C = x.shape[-1]
    rows = x.size // C
    sums = sums_shape(rows, C)
    check(x, "float32")
    check(partial, "float32", (2, *sums))
    launch_rows("norm", "norm_statistics", rows, C, (x, partial), np.int64(rows), partial_sums=sums[0])


def norm_finish(
    partial: Array, rows: int, weight: Array, mean: Array, inv_std: Array, scale: Array,
    running_mean: Array, running_var: Array, eps: float, momentum: float, bias_before: Array | None = None,
) -> None:  # fmt: skip
    """Join the statistics of all ``rows`` of the map, ``partial`` from ``norm_statistics``, and track them.

    Written are the batch's mean, inv_std = 1 / sqrt(variance + eps), and scale = weight * inv_std, with which
    ``epilogue(x, y, bias, mean=mean, scale=scale)`` normalises. The running statistics are moved by
    ``momentum`` towards the batch's mean and unbiased variance; to that mean belongs ``bias_before``, a
    layer's bias that the map has not got, since normalising would take it out again.
    """
    check(partial, "float32", 3)
    _, count, C = partial.shape
    check(partial, "float32", (2, *sums_shape(rows, C)))
    vectors = weight, bias_before, mean, inv_std, scale, running_mean, running_var
    check_vectors(C, *vectors)
    numbers = np.int64(rows), count, C, np.float32(eps), np.float32(momentum)
    launch("norm", "norm_finish", macros(1), *by_column(C), partial, *vectors, *numbers)


def norm_fold(
    weight: Array, running_mean: Array, running_var: Array, conv_bias: Array | None,
    mean: Array, scale: Array, eps: float,
) -> None:  # fmt: skip
    """Prepare batch normalisation with the running statistics, after a convolution or alone, for inference.

    Written are mean = running_mean - conv_bias, and scale = weight / sqrt(running_var + eps). With z the
    product without its bias, ``epilogue(z, y, bias, mean=mean, scale=scale)`` adds the convolution's bias and
    normalises: (z + conv_bias - running_mean) * scale + bias.
    """
    (C,) = weight.shape
    vectors = weight, running_mean, running_var, conv_bias, mean, scale
    check_vectors(C, *vectors)
    launch("norm", "norm_fold", macros(1), *flat(C), *vectors, C, np.float32(eps))


def norm_backward_sums(
    dy: Array, x: Array, mean: Array, inv_std: Array, partial: Array, *,
    y: Array | None = None, code: Array | None = None,
) -> None:  # fmt: skip
    """Sum dy, and dy times the normalised x, over rows, partially: the gradients of bias and weight.

    dy (..., C) is with respect to what the group returns: after its ReLU and pooling, if it has them. x is
    what was normalised, mean and inv_std are from ``norm_finish``. A group with a ReLU passes what it
    returned as y: where it is 0, dy counts as 0. One with pooling passes the ``code`` of ``epilogue_pool`` in
    place of y. ``partial`` (2, *sums_shape(R, C)) is written, R the rows of dy; then
    ``finish_sums(partial[0], dbias)`` and ``finish_sums(partial[1], dweight)``.
    """
    rows, C, passed, sizes = _check_maps(dy, x, y, code)
    sums = sums_shape(rows, C)
    check(partial, "float32", (2, *sums))
    check_vectors(C, mean, inv_std)
    name = "norm_backward_sums" if code is None else "norm_backward_sums_pool"
    arrays = dy, passed, x, mean, inv_std, partial
    launch_rows("norm", name, rows, C, arrays, *sizes, partial_sums=sums[0])


def norm_backward(
    dy: Array, x: Array, mean: Array, inv_std: Array, scale: Array, dweight: Array, dbias: Array, dx: Array,
    *, y: Array | None = None, code: Array | None = None,
) -> None:  # fmt: skip
    """Write the gradient of x to dx, as ``functional.batch_norm_backward`` does.

    dweight and dbias are the finished sums, the others as in ``norm_backward_sums``. dx may be ``x`` itself,
    and may be ``dy`` if there is no ``code``.
    """
    rows, C, passed, sizes = _check_maps(dy, x, y, code)
    check(dx, "float32", x.shape)
    vectors = mean, inv_std, scale, dweight, dbias
    check_vectors(C, *vectors)
    name = "norm_backward" if code is None else "norm_backward_pool"
    numbers = np.float32(1.0 / (x.size // C)), *sizes
    launch_rows("norm", name, rows, C, (dy, passed, x, *vectors, dx), *numbers)


def _check_maps(
    dy: Array, x: Array, y: Array | None, code: Array | None
) -> tuple[int, int, Array | None, tuple[Any, ...]]:
    """Check the maps of a backward pass; return the rows of dy, C, y or the code, and a kernel's sizes."""
    check(dy, "float32")
    C = dy.shape[-1]
    rows = dy.size // C
    if code is None:
        check(x, "float32", dy.shape)
        check(y, "float32", dy.shape)
        return rows, C, y, (np.int64(rows),)
    check(x, "float32", 4)
    N, H, W, _ = x.shape
    check_pixels(x.shape)
    check(dy, "float32", (N, H // 2, W // 2, C))
    check(x, "float32", (N, H, W, C))
    check(code, "uint8", dy.shape)
    return rows, C, code, (N, H, W)
