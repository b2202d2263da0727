"""Launches of ``kernels/norm.cu``: batch normalisation."""

from __future__ import annotations

import numpy as np

from scratchnet.backend import Array
from scratchnet.plans.cuda.launch.common import (
    by_channel,
    by_column,
    check,
    check_vectors,
    flat,
    macros,
    or_null,
    pack_width,
)
from scratchnet.plans.cuda.launch.compiling import launch
from scratchnet.plans.cuda.launch.sums import sums_shape


def norm_statistics(x: Array, partial: Array) -> None:
    """Compute mean and sum of squared deviations of every channel, each for a share of the rows.

    Parameters
    ----------
    x : float32 (..., C)
    partial : float32 (2, *sums_shape(R, C))
        Written.
    """
    C = x.shape[-1]
    rows = x.size // C
    check(x, "float32")
    check(partial, "float32", (2, *sums_shape(rows, C)))
    wide = pack_width(C, x, partial)
    launch(
        "norm", "norm_statistics", macros(wide), *by_channel(rows, C // wide, partial.shape[1]), x, partial,
        np.int64(rows), np.int32(C // wide),
    )  # fmt: skip


def norm_finish(
    partial: Array,
    rows: int,
    weight: Array,
    mean: Array,
    inv_std: Array,
    scale: Array,
    running_mean: Array,
    running_var: Array,
    eps: float,
    momentum: float,
) -> None:
    """Join the statistics of all rows, and track them.

    ``epilogue(x, y, bias, mean=mean, scale=scale)`` then normalises.

    Parameters
    ----------
    partial : float32 (2, any number, C)
        From ``norm_statistics``.
    rows : int
        R, of the map that the statistics are of.
    weight : float32 (C,)
    mean, inv_std, scale : float32 (C,)
        Written: the batch's mean, 1 / sqrt(variance + eps), and weight times that.
    running_mean, running_var : float32 (C,)
        Moved by ``momentum`` towards the batch's mean and unbiased variance.
    eps, momentum : float
    """
    check(partial, "float32", 3)
    C = partial.shape[2]
    check(partial, "float32", (2, *sums_shape(rows, C)))
    vectors = weight, mean, inv_std, scale, running_mean, running_var
    check_vectors(C, *vectors)
    launch(
        "norm", "norm_finish", macros(1), *by_column(C), partial, *vectors, np.int64(rows),
        np.int32(partial.shape[1]), np.int32(C), np.float32(eps), np.float32(momentum),
    )  # fmt: skip


def norm_fold(
    weight: Array,
    running_mean: Array,
    running_var: Array,
    conv_bias: Array | None,
    mean: Array,
    scale: Array,
    eps: float,
) -> None:
    """Prepare batch normalisation with the running statistics, after a convolution or alone, for inference.

    With z the product without its bias, ``epilogue(z, y, bias, mean=mean, scale=scale)`` adds the
    convolution's bias and normalises: (z + conv_bias - running_mean) * scale + bias.

    Parameters
    ----------
    weight, running_mean, running_var : float32 (C,)
    conv_bias : float32 (C,), or None
    mean, scale : float32 (C,)
        Written: running_mean - conv_bias, and weight / sqrt(running_var + eps).
    eps : float
    """
    C = weight.shape[0]
    check_vectors(C, weight, running_mean, running_var, conv_bias, mean, scale)
    launch(
        "norm", "norm_fold", macros(1), *flat(C), weight, running_mean, running_var, or_null(conv_bias), mean,
        scale, np.int32(C), np.float32(eps),
    )  # fmt: skip


def norm_backward_sums(
    dy: Array,
    x: Array,
    mean: Array,
    inv_std: Array,
    partial: Array,
    *,
    y: Array | None = None,
    code: Array | None = None,
) -> None:
    """Sum dy, and dy times the normalised x, over rows, partially: the gradients of bias and weight.

    Parameters
    ----------
    dy : float32 (..., C)
        With respect to what the group returns: after its ReLU and pooling, if it has them.
    x : float32 (..., C)
        What was normalised, (N, H, W, C) if there is a ``code``.
    mean, inv_std : float32 (C,)
        From ``norm_finish``.
    partial : float32 (2, *sums_shape(R, C))
        Written; R are the rows of dy. ``finish_sums(partial[0], dbias)`` and ``finish_sums(partial[1],
        dweight)`` finish.
    y : float32, shape of dy, optional
        What a ReLU returned: where it is 0, dy counts as 0.
    code : uint8, shape of dy, optional
        From ``epilogue_pool``, in place of y.
    """
    (N, H, W, C), rows = _check_maps(dy, x, y, code)
    check(partial, "float32", (2, *sums_shape(rows, C)))
    check_vectors(C, mean, inv_std)
    wide = pack_width(C, dy, x, mean, inv_std, partial, y, code)
    name = "norm_backward_sums" if code is None else "norm_backward_sums_pool"
    sizes = [np.int64(rows)] if code is None else [np.int32(N), np.int32(H), np.int32(W)]
    launch(
        "norm", name, macros(wide), *by_channel(rows, C // wide, partial.shape[1]), dy,
        or_null(y) if code is None else code, x, mean, inv_std, partial, *sizes, np.int32(C // wide),
    )  # fmt: skip


def norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    inv_std: Array,
    scale: Array,
    dweight: Array,
    dbias: Array,
    dx: Array,
    *,
    y: Array | None = None,
    code: Array | None = None,
) -> None:
    """Compute the gradient of x, as ``functional.batch_norm_backward`` does.

    Parameters
    ----------
    dy, x, mean, inv_std, y, code
        As in ``norm_backward_sums``.
    scale : float32 (C,)
        From ``norm_finish``.
    dweight, dbias : float32 (C,)
        The finished sums.
    dx : float32, shape of x
        Written. May be ``x`` itself, and may be ``dy`` if there is no ``code``.
    """
    (N, H, W, C), _ = _check_maps(dy, x, y, code)
    check(dx, "float32", x.shape)
    vectors = mean, inv_std, scale, dweight, dbias
    check_vectors(C, *vectors)
    rows = x.size // C
    wide = pack_width(C, dy, x, *vectors, dx, y, code)
    name = "norm_backward" if code is None else "norm_backward_pool"
    sizes = [np.int64(rows)] if code is None else [np.int32(N), np.int32(H), np.int32(W)]
    launch(
        "norm", name, macros(wide), *by_channel(dy.size // C, C // wide), dy,
        or_null(y) if code is None else code, x, *vectors, dx, np.float32(1.0 / rows), *sizes,
        np.int32(C // wide),
    )  # fmt: skip


def _check_maps(
    dy: Array, x: Array, y: Array | None, code: Array | None
) -> tuple[tuple[int, int, int, int], int]:
    """Check the maps of a normalisation's backward pass; return N, H, W, C of x, and the rows of dy."""
    check(dy, "float32")
    C = dy.shape[-1]
    if code is None:
        check(x, "float32", dy.shape)
        if y is not None:
            check(y, "float32", dy.shape)
        return (1, 1, dy.size // C, C), dy.size // C
    check(x, "float32", 4)
    N, H, W, _ = x.shape
    check(dy, "float32", (N, H // 2, W // 2, C))
    check(x, "float32", (N, H, W, C))
    check(code, "uint8", dy.shape)
    return (N, H, W, C), dy.size // C
