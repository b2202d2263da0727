"""The kernels as Python functions: each checks its arrays, chooses a variant, and launches it.

The mathematics stands in ``kernels/*.cu``, one technique a file; here is only what a launch needs. Symbols:

    N  images in the batch      C  channels       OH OW  height and width of the output or the pooled map
    H  W   height and width     R  rows of a matrix, such as the N*H*W pixels of a map

All arrays are C-contiguous and on the GPU; pointers go to the kernels as they are. Maps are float32,
channels last. *Operands*, what a matrix product reads, are float32 or bfloat16; not every version of CuPy
knows bfloat16, so they are arrays of uint16 that hold its bits (see ``operand_dtype``). A kernel that writes
operands sees from the array which of the two is wanted. Parts of a batch are slices of these arrays.

Nothing here allocates memory, reads from the GPU or waits for it, so every function may be called while a
CUDA graph is captured, once its kernel has run before (its first launch compiles it and loads it).
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from scratchnet.backend import array_module

FOLDER = Path(__file__).parent / "kernels"
THREADS = 256  # of a block, unless a kernel says otherwise
WIDE = 4  # numbers in a 16-byte access
# At most so many blocks along the rows, however many rows there are: eight of 256 threads fill each of an
# H100's 132 multiprocessors once. Threads go on to further rows, and fetch what belongs to a channel once.
# (Chosen by calculation, as all numbers here; not yet tuned on a GPU.)
BLOCKS = 1056
# Sums over rows are made in so many parts at most, of so many rows at least.
PARTS, ROWS_OF_A_PART = 512, 64
NOTHING = np.uintp(0)  # a null pointer
OPERANDS = ("float32", "uint16")
# Without -use_fast_math, which approximates division and square root. CuPy itself adds -ftz=true, and that
# cannot be undone: on a GPU arithmetic takes and returns zeros in place of numbers below 1.2e-38.
OPTIONS = ("--std=c++17",)


def operand_dtype(precision: str) -> np.dtype:
    """Return the dtype of what products read: float32, or for "bf16" uint16, which holds bfloat16's bits.

    Examples
    --------
    >>> operand_dtype("bf16")
    dtype('uint16')
    """
    return np.dtype("uint16" if precision == "bf16" else "float32")


# Convolution: conv.cu


def im2col(x: Any, columns: Any, kernel_size: int, stride: int = 1, padding: int = 0) -> None:
    """Copy every patch of ``x`` into a row of ``columns``, as ``functional.im2col`` does.

    Parameters
    ----------
    x : float32 (N, H, W, C)
    columns : operands (N*OH*OW, K*K*C)
        Written.
    kernel_size, stride, padding : int
    """
    _check(x, "float32", 4)
    sizes, rows, C = _geometry(x.shape, kernel_size, stride, padding)
    _check(columns, OPERANDS, (rows, kernel_size * kernel_size * C))
    wide = _wide(C, x, columns)
    grid, block = _by_channel(rows, C // wide)
    _launch("conv", "im2col", _macros(wide, columns), grid, block, x, columns, *sizes)


def col2im(columns: Any, dx: Any, kernel_size: int, stride: int = 1, padding: int = 0) -> None:
    """Add every row of ``columns`` back to its patch, the adjoint of ``im2col``.

    Parameters
    ----------
    columns : float32 (N*OH*OW, K*K*C)
    dx : float32 (N, H, W, C)
        Written.
    kernel_size, stride, padding : int
    """
    _check(dx, "float32", 4)
    sizes, rows, C = _geometry(dx.shape, kernel_size, stride, padding)
    _check(columns, "float32", (rows, kernel_size * kernel_size * C))
    wide = _wide(C, dx, columns)
    grid, block = _by_channel(dx.size // C, C // wide)
    _launch("conv", "col2im", _macros(wide), grid, block, columns, dx, *sizes)


# Operands: operands.cu


def cast(x: Any, out: Any) -> None:
    """Round float32 numbers to operands, the nearest, ties to even.

    Parameters
    ----------
    x : float32, any shape
    out : operands, as many
        Written.
    """
    _check(x, "float32")
    _check(out, OPERANDS)
    if out.size != x.size:
        raise ValueError(f"expected {x.size} operands to write, got {out.size}")
    wide = _wide(x.size, x, out)
    grid, block = _flat(x.size // wide)
    _launch("operands", "cast", _macros(wide, out), grid, block, x, out, np.int64(x.size // wide))


# What follows a product: epilogue.cu


def epilogue(
    z: Any, y: Any, shift: Any = None, *, centre: Any = None, scale: Any = None, relu: bool = True
) -> None:
    """Compute y = (z - centre) * scale + shift for every channel, and with ``relu`` the larger of that and 0.

    With a bias as ``shift`` and nothing else this is what follows a convolution or a linear layer; with
    ``centre`` and ``scale`` it is batch normalisation (see ``norm_finish`` and ``norm_fold``).

    Parameters
    ----------
    z : float32 (..., C)
    y : float32 (..., C)
        Written; may be ``z`` itself.
    shift : float32 (C,), optional
    centre, scale : float32 (C,), optional
        Both or neither.
    relu : bool
    """
    C = z.shape[-1]
    _check(z, "float32")
    _check(y, "float32", tuple(z.shape))
    vectors = _channels(C, shift, centre, scale)
    wide = _wide(C, z, y, shift, centre, scale)
    grid, block = _by_channel(z.size // C, C // wide)
    size = np.int64(z.size // C), np.int32(C // wide)
    _launch("epilogue", "epilogue", _macros(wide), grid, block, z, y, *vectors, np.int32(relu), *size)


def epilogue_pool(
    z: Any, y: Any, code: Any, shift: Any = None, *, centre: Any = None, scale: Any = None, relu: bool = True
) -> None:
    """Do what ``epilogue`` does, then 2 x 2 max pooling.

    Parameters
    ----------
    z : float32 (N, H, W, C)
    y : float32 (N, H//2, W//2, C)
        Written.
    code : uint8, shape of y, or None
        Written: which pixel of its window won, 0 to 3 in reading order, of equal ones the first; 4 where no
        gradient passes, since with ``relu`` the largest of the window is not above 0.
    shift, centre, scale, relu
        As in ``epilogue``.
    """
    _check(z, "float32", 4)
    N, H, W, C = z.shape
    _check(y, "float32", (N, H // 2, W // 2, C))
    if code is not None:
        _check(code, "uint8", tuple(y.shape))
    vectors = _channels(C, shift, centre, scale)
    wide = _wide(C, z, y, shift, centre, scale, code)
    grid, block = _by_channel(y.size // C, C // wide)
    size = np.int32(N), np.int32(H), np.int32(W), np.int32(C // wide)
    _launch(
        "epilogue", "epilogue_pool", _macros(wide), grid, block, z, y, _or_null(code), *vectors,
        np.int32(relu), *size,
    )  # fmt: skip


# Back through ReLU, dropout and pooling, with the gradient of the bias: mask.cu


def mask(dy: Any, y: Any, dz: Any, partial: Any = None, *, factor: float = 1.0) -> None:
    """Compute dz = factor * dy where y > 0, and 0 elsewhere; and the sums of dz over its rows, in parts.

    Parameters
    ----------
    dy : float32 (..., C)
    y : float32 (..., C), or None
        What the ReLU returned. None: there was none, and dz is factor * dy.
    dz : operands (..., C), or None
        Written; may be ``dy`` itself. None: only the sums are wanted.
    partial : float32 ``sums_shape(R, C)``, or None
        Written: sums of float32 numbers, also where dz is bfloat16. See ``finish_sums``.
    factor : float
        1 / (1 - p) behind a dropout, which has set y to 0 where it drops.
    """
    C = dy.shape[-1]
    rows = dy.size // C
    _check(dy, "float32")
    if y is not None:
        _check(y, "float32", tuple(dy.shape))
    if dz is not None:
        _check(dz, OPERANDS, tuple(dy.shape))
    _check_partial(partial, rows, C)
    wide = _wide(C, dy, y, dz, partial)
    parts = sums_shape(rows, C)[0]
    grid, block = _by_channel(rows, C // wide, parts=parts)
    _launch(
        "mask", "mask", _macros(wide, dz), grid, block, dy, _or_null(y), _or_null(dz), _or_null(partial),
        np.float32(factor), np.int64(rows), np.int32(C // wide),
    )  # fmt: skip


def unpool(dy: Any, code: Any, dz: Any, partial: Any = None) -> None:
    """Give each dy to the pixel of its window that won, and 0 to the others; and sum dz over rows, in parts.

    Parameters
    ----------
    dy : float32 (N, H//2, W//2, C)
    code : uint8, shape of dy
        From ``epilogue_pool``.
    dz : operands (N, H, W, C)
        Written, also the last row and column of odd sizes, which are in no window.
    partial : float32 ``sums_shape(N * (H//2) * (W//2), C)``, or None
        Written, as by ``mask``.
    """
    _check(dz, OPERANDS, 4)
    N, H, W, C = dz.shape
    _check(dy, "float32", (N, H // 2, W // 2, C))
    _check(code, "uint8", tuple(dy.shape))
    rows = N * (H // 2) * (W // 2)
    _check_partial(partial, rows, C)
    wide = _wide(C, dy, dz, code, partial)
    parts = sums_shape(rows, C)[0]
    grid, block = _by_channel(rows, C // wide, parts=parts)
    _launch(
        "mask", "unpool", _macros(wide, dz), grid, block, dy, code, dz, _or_null(partial),
        np.int32(N), np.int32(H), np.int32(W), np.int32(C // wide),
    )  # fmt: skip


# Sums over rows: sums.cu


def sums_shape(rows: int, channels: int) -> tuple[int, int]:
    """Return the shape (parts, C) of an array for the partial sums of ``rows`` rows.

    Which rows a part has follows from these two numbers alone: so the same sums have the same bits on every
    GPU.

    Examples
    --------
    >>> sums_shape(128 * 32 * 32, 64)
    (512, 64)
    """
    return max(1, min(PARTS, rows // ROWS_OF_A_PART)), channels


def finish_sums(partial: Any, out: Any) -> None:
    """Add up what the parts have summed, always in the same order.

    Parameters
    ----------
    partial : float32 (parts, C)
        Any number of parts: those of several chunks of a batch may lie one after the other.
    out : float32 (C,)
        Written.
    """
    _check(partial, "float32", 2)
    parts, C = partial.shape
    _check(out, "float32", (C,))
    grid, block = _columns(C)
    _launch("sums", "finish_sums", (), grid, block, partial, out, np.int32(parts), np.int32(C))


# Batch normalisation: norm.cu


def norm_statistics(x: Any, partial: Any) -> None:
    """Compute mean and sum of squared deviations of every channel, in parts.

    Parameters
    ----------
    x : float32 (..., C)
    partial : float32 (2, *sums_shape(R, C))
        Written.
    """
    C = x.shape[-1]
    rows = x.size // C
    _check(x, "float32")
    _check(partial, "float32", (2, *sums_shape(rows, C)))
    wide = _wide(C, x, partial)
    grid, block = _by_channel(rows, C // wide, parts=partial.shape[1])
    _launch(
        "norm", "norm_statistics", _macros(wide), grid, block, x, partial, np.int64(rows), np.int32(C // wide)
    )


def norm_finish(
    partial: Any,
    rows: int,
    weight: Any,
    mean: Any,
    inv_std: Any,
    scale: Any,
    running_mean: Any,
    running_var: Any,
    eps: float,
    momentum: float,
) -> None:
    """Join the parts' statistics, and track them.

    ``epilogue(x, y, bias, centre=mean, scale=scale)`` then normalises.

    Parameters
    ----------
    partial : float32 (2, parts, C)
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
    _check(partial, "float32", 3)
    C = partial.shape[2]
    _check(partial, "float32", (2, *sums_shape(rows, C)))
    for vector in (weight, mean, inv_std, scale, running_mean, running_var):
        _check(vector, "float32", (C,))
    grid, block = _columns(C)
    _launch(
        "norm", "norm_finish", _macros(1), grid, block, partial, weight, mean, inv_std, scale, running_mean,
        running_var, np.int64(rows), np.int32(partial.shape[1]), np.int32(C), np.float32(eps),
        np.float32(momentum),
    )  # fmt: skip


def norm_fold(
    weight: Any,
    running_mean: Any,
    running_var: Any,
    conv_bias: Any,
    centre: Any,
    scale: Any,
    eps: float,
) -> None:
    """Prepare batch normalisation with the running statistics, behind a convolution or alone, for inference.

    With z the product without its bias, ``epilogue(z, y, bias, centre=centre, scale=scale)`` adds the
    convolution's bias and normalises: (z + conv_bias - mean) * scale + bias.

    Parameters
    ----------
    weight, running_mean, running_var : float32 (C,)
    conv_bias : float32 (C,), or None
    centre, scale : float32 (C,)
        Written: running_mean - conv_bias, and weight / sqrt(running_var + eps).
    eps : float
    """
    C = weight.shape[0]
    for vector in (weight, running_mean, running_var, centre, scale):
        _check(vector, "float32", (C,))
    if conv_bias is not None:
        _check(conv_bias, "float32", (C,))
    grid, block = _flat(C)
    _launch(
        "norm", "norm_fold", _macros(1), grid, block, weight, running_mean, running_var, _or_null(conv_bias),
        centre, scale, np.int32(C), np.float32(eps),
    )  # fmt: skip


def norm_backward_sums(
    dy: Any, x: Any, mean: Any, inv_std: Any, partial: Any, *, y: Any = None, code: Any = None
) -> None:
    """Sum dy, and dy times the normalised x, over the rows, in parts: the gradients of bias and weight.

    Parameters
    ----------
    dy : float32 (..., C)
        With respect to what the group returns: behind its ReLU and pooling, if it has them.
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
    (N, H, W, C), rows = _normalised(dy, x, y, code)
    _check(partial, "float32", (2, *sums_shape(rows, C)))
    for vector in (mean, inv_std):
        _check(vector, "float32", (C,))
    wide = _wide(C, dy, x, mean, inv_std, partial, y, code)
    grid, block = _by_channel(rows, C // wide, parts=partial.shape[1])
    name = "norm_backward_sums" if code is None else "norm_backward_sums_pool"
    size = [np.int64(rows)] if code is None else [np.int32(N), np.int32(H), np.int32(W)]
    _launch(
        "norm", name, _macros(wide), grid, block, dy, _or_null(y) if code is None else code, x, mean, inv_std,
        partial, *size, np.int32(C // wide),
    )  # fmt: skip


def norm_backward(
    dy: Any,
    x: Any,
    mean: Any,
    inv_std: Any,
    scale: Any,
    dweight: Any,
    dbias: Any,
    dx: Any,
    *,
    y: Any = None,
    code: Any = None,
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
    (N, H, W, C), _ = _normalised(dy, x, y, code)
    _check(dx, "float32", tuple(x.shape))
    vectors = (mean, inv_std, scale, dweight, dbias)
    for vector in vectors:
        _check(vector, "float32", (C,))
    rows = x.size // C
    wide = _wide(C, dy, x, *vectors, dx, y, code)
    name, size = "norm_backward", [np.int64(rows)]
    if code is not None:
        name, size = "norm_backward_pool", [np.int32(N), np.int32(H), np.int32(W)]
    grid, block = _by_channel(dy.size // C, C // wide)
    _launch(
        "norm", name, _macros(wide), grid, block, dy, _or_null(y) if code is None else code, x, *vectors, dx,
        np.float32(1.0 / rows), *size, np.int32(C // wide),
    )  # fmt: skip


# Global average pooling: average.cu


def average(x: Any, y: Any) -> None:
    """Compute the mean of every channel over the image, as ``functional.global_avg_pool2d_forward`` does.

    Parameters
    ----------
    x : float32 (N, H, W, C)
    y : float32 (N, C)
        Written.
    """
    _check(x, "float32", 4)
    N, H, W, C = x.shape
    _check(y, "float32", (N, C))
    grid, block = _by_channel(N, C)
    _launch("average", "average", (), grid, block, x, y, np.int32(N), np.int32(H * W), np.int32(C))


def average_backward(dy: Any, dx: Any) -> None:
    """Give every pixel its share of the gradient of the mean.

    Parameters
    ----------
    dy : float32 (N, C)
    dx : float32 (N, H, W, C)
        Written.
    """
    _check(dx, "float32", 4)
    N, H, W, C = dx.shape
    _check(dy, "float32", (N, C))
    grid, block = _by_channel(N * H * W, C)
    _launch("average", "average_backward", (), grid, block, dy, dx, np.int32(N), np.int32(H * W), np.int32(C))


# Dropout: dropout.cu


def dropout(y: Any, p: float, seed: int, step: Any) -> None:
    """Set each number of ``y`` to 0 with probability p, and scale the others by 1 / (1 - p), in place.

    Backward, behind a ReLU, is ``mask(dy, y, dz, factor=1 / (1 - p))``.

    Parameters
    ----------
    y : float32, any shape
    p : float
        In [0, 1].
    seed : int
        From 0 to 2**64 - 1, of this layer. Which numbers are dropped follows from (seed, step, place in y).
    step : int64 (1,)
        On the GPU, so that a replayed graph draws anew; see ``advance``.
    """
    _check(y, "float32")
    _check(step, "int64", (1,))
    # Kept are random integers below the threshold, of 2**32: exactly all at p = 0, none at p = 1.
    threshold = round((1.0 - p) * 2**32)
    scale = 1.0 / (1.0 - p) if p < 1.0 else 0.0
    grid, block = _flat(-(-y.size // 4))
    _launch(
        "dropout", "dropout", (), grid, block, y, np.int64(y.size), np.uint64(seed), step,
        np.uint64(threshold), np.float32(scale),
    )  # fmt: skip


# The loss: softmax.cu


def softmax_cross_entropy(
    logits: Any,
    labels: Any,
    losses: Any,
    hits: Any,
    dlogits: Any = None,
    *,
    label_smoothing: float = 0.0,
) -> None:
    """Compute each image's loss and whether its largest logit is that of its label, and the gradient.

    Parameters
    ----------
    logits : float32 (N, K)
    labels : int64 (N,)
        From 0 to K - 1: not checked here.
    losses : float32 (N,)
        Written; their mean is the batch's loss.
    hits : float32 (N,)
        Written: 1 or 0. Of equal logits the first counts as the largest.
    dlogits : float32 (N, K), optional
        Written: the gradient of the batch's loss. May be ``logits`` itself.
    label_smoothing : float
        In [0, 1).
    """
    _check(logits, "float32", 2)
    N, K = logits.shape
    _check(labels, "int64", (N,))
    for vector in (losses, hits):
        _check(vector, "float32", (N,))
    if dlogits is not None:
        _check(dlogits, "float32", (N, K))
    warps = 4  # of a block, a warp an image
    _launch(
        "softmax", "softmax_cross_entropy", (), (-(-N // warps),), (32, warps), logits, labels, losses, hits,
        _or_null(dlogits), np.int32(N), np.int32(K), np.float32(label_smoothing),
    )  # fmt: skip


def add_up(losses: Any, hits: Any, totals: Any) -> None:
    """Add a batch's losses, its hits and its number of images to running totals.

    Parameters
    ----------
    losses, hits : float32 (N,)
    totals : float64 (3,)
        The sum of all losses, the number of hits, and of images, since somebody set it to zero.
    """
    (N,) = losses.shape
    for vector in (losses, hits):
        _check(vector, "float32", (N,))
    _check(totals, "float64", (3,))
    _launch("softmax", "add_up", (), (1,), (THREADS,), losses, hits, totals, np.int32(N))


# The optimizer: sgd.cu


def sgd(
    values: Any,
    gradients: Any,
    velocity: Any,
    rates: Any,
    batch: Any,
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    operands: Any = None,
) -> None:
    """Make one step of stochastic gradient descent, as ``optim.SGD`` does.

    Parameters
    ----------
    values, gradients : float32 (P,)
        The flat buffers of the parameters, or a part of them whose weights decay alike. Values are changed.
    velocity : float32 (P,), or None
        The same part of the momentum buffer; changed. None without momentum.
    rates : float32 (batches,)
        On the GPU: the learning rate of each batch.
    batch : int64 (1,)
        On the GPU: which of them to use.
    momentum, weight_decay : float
    nesterov : bool
    operands : operands (P,), optional
        Written: the new values as products read them. (For float32 products the values serve themselves.)
    """
    (P,) = values.shape
    _check(values, "float32")
    _check(gradients, "float32", (P,))
    if velocity is not None:
        _check(velocity, "float32", (P,))
    if operands is not None:
        _check(operands, OPERANDS, (P,))
    _check(rates, "float32", 1)
    _check(batch, "int64", (1,))
    wide = _wide(P, values, gradients, velocity, operands)
    grid, block = _flat(P // wide)
    _launch(
        "sgd", "sgd", _macros(wide, operands), grid, block, values, gradients, _or_null(velocity),
        _or_null(operands), rates, batch, np.float32(momentum), np.float32(weight_decay), np.int32(nesterov),
        np.int64(P // wide),
    )  # fmt: skip


# The data: pictures.cu


def pictures(
    images: Any,
    labels: Any,
    choices: Any,
    batch: Any,
    x: Any,
    y: Any,
    *,
    batch_size: int,
    crop: int,
    cutout: int,
    fill: tuple[int, int, int],
    scale: tuple[float, float, float],
    shift: tuple[float, float, float],
) -> None:
    """Prepare a batch: choose images, crop, mirror, cut out, normalise. The same bits as the ``Loader``'s.

    Parameters
    ----------
    images : uint8 (M, H, W, 3)
        The whole data set.
    labels : int64 (M,)
    choices : int32 (images of an epoch, 6)
        For each of them: its index in ``images``; top and left of the window in the padded image, from 0 to
        2 * crop; whether to mirror it; top and left of the hole, of which the latter may be negative.
    batch : int64 (1,)
        On the GPU: which batch of the epoch this is, so that its first image is row batch * batch_size.
    x : float32 (N, H, W, 3)
        Written. N may be smaller than the batch size, in an epoch's last batch.
    y : int64 (N,)
        Written: the labels.
    batch_size : int
    crop : int
        How many pixels of padding there are on every side.
    cutout : int
        The side of the hole; 0 for none.
    fill : three ints, 0 to 255
        The colour of padding and hole.
    scale, shift : three floats each
        A pixel becomes value * scale - shift, both rounded to float32 as ``Normalisation.apply`` does.
    """
    _check(x, "float32", 4)
    N, H, W, _ = x.shape
    M = images.shape[0]
    _check(images, "uint8", (M, H, W, 3))
    _check(labels, "int64", (M,))
    _check(choices, "int32", (choices.shape[0], 6))
    _check(batch, "int64", (1,))
    _check(x, "float32", (N, H, W, 3))
    _check(y, "int64", (N,))
    grid, block = _flat(N * H * W)
    _launch(
        "pictures", "pictures", (), grid, block, images, labels, choices, batch, x, y, np.int32(batch_size),
        np.int32(N), np.int32(H), np.int32(W), np.int32(crop), np.int32(cutout), *map(np.int32, fill),
        *map(np.float32, scale), *map(np.float32, shift),
    )  # fmt: skip


def advance(counters: Any) -> None:
    """Add 1 to every counter.

    Parameters
    ----------
    counters : int64 (n,)
        On the GPU, such as the batch within the epoch, and the step of the whole run.
    """
    (n,) = counters.shape
    _check(counters, "int64", (n,))
    grid, block = _flat(n)
    _launch("pictures", "advance", (), grid, block, counters, np.int32(n))


# Compiling and launching


def source(name: str) -> str:
    """Return the CUDA source of ``kernels/NAME.cu``, with the headers that it includes in their places.

    In one piece, since CuPy keeps compiled kernels by their text and would not notice a changed header.
    """
    lines = []
    for number, line in enumerate((FOLDER / f"{name}.cu").read_text(encoding="utf-8").splitlines(), 1):
        include = re.fullmatch(r'#include "(\w+\.cuh)"', line)
        if include:
            header = (FOLDER / include[1]).read_text(encoding="utf-8")
            line = f'#line 1 "{include[1]}"\n{header}\n#line {number + 1} "{name}.cu"'
        lines.append(line)
    return "\n".join([f'#line 1 "{name}.cu"', *lines, ""])


@cache
def _kernel(cupy: Any, file: str, name: str, macros: tuple[str, ...]) -> Any:
    return _module(cupy, file, macros).get_function(name)


@cache
def _module(cupy: Any, file: str, macros: tuple[str, ...]) -> Any:
    return cupy.RawModule(code=source(file), options=OPTIONS + macros, backend="nvrtc")


def _launch(
    file: str,
    name: str,
    macros: tuple[str, ...],
    grid: tuple[int, ...],
    block: tuple[int, ...],
    *arguments: Any,
) -> None:
    kernel = _kernel(array_module(arguments[0]), file, name, macros)
    kernel(grid, block, arguments)


def _macros(wide: int, operands: Any = None) -> tuple[str, ...]:
    """Return the macros of a variant: numbers in an access, and whether operands are bfloat16."""
    of_operands = () if operands is None or operands.dtype == np.float32 else ("-DBF16",)
    return (f"-DWIDE={wide}", *of_operands)


def _wide(length: int, *arrays: Any) -> int:
    """Return how many numbers an access may take: WIDE if no row and no array begins between two accesses."""
    present = [array for array in arrays if array is not None]
    aligned = all(array.data.ptr % (WIDE * array.itemsize) == 0 for array in present)
    return WIDE if length % WIDE == 0 and aligned else 1


def _by_channel(rows: int, packs: int, parts: int = 0) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return grid and block for a matrix: threads along x have neighbouring packs of channels, along y rows.

    A block is at most a warp wide, so that a wide matrix is cut into tiles of columns, and a narrow one has
    many rows in a block. With ``parts``, each block along the rows is one part of a sum.
    """
    across = min(32, 1 << max(0, packs - 1).bit_length())
    down = THREADS // across
    return (parts or max(1, min(BLOCKS, -(-rows // down))), -(-packs // across)), (across, down)


def _columns(channels: int) -> tuple[tuple[int], tuple[int, int]]:
    """Return grid and block for a kernel that joins parts: 32 channels a block, 16 threads for each."""
    return (-(-channels // 32),), (32, 16)


def _flat(count: int) -> tuple[tuple[int], tuple[int]]:
    """Return grid and block for ``count`` things in a row."""
    return (max(1, min(BLOCKS, -(-count // THREADS))),), (THREADS,)


def _geometry(shape: Any, K: int, S: int, P: int) -> tuple[list[np.int32], int, int]:
    """Return N, H, W, C, OH, OW, K, S, P as kernels take them, the rows of the column matrix, and C.

    Rows are counted in 32 bits by the kernels (and elements in 64).
    """
    N, H, W, C = shape
    OH, OW = (H + 2 * P - K) // S + 1, (W + 2 * P - K) // S + 1
    if max(N * OH * OW, N * H * W) >= 2**31:
        raise ValueError(f"a map of {N} x {H} x {W} pixels has too many of them: take fewer images at a time")
    return [np.int32(n) for n in (N, H, W, C, OH, OW, K, S, P)], N * OH * OW, C


def _normalised(dy: Any, x: Any, y: Any, code: Any) -> tuple[tuple[int, int, int, int], int]:
    """Check the arrays of a normalisation's backward pass; return N, H, W, C of x, and the rows of dy."""
    _check(dy, "float32")
    C = dy.shape[-1]
    if code is None:
        _check(x, "float32", tuple(dy.shape))
        if y is not None:
            _check(y, "float32", tuple(dy.shape))
        return (1, 1, dy.size // C, C), dy.size // C
    _check(x, "float32", 4)
    N, H, W, _ = x.shape
    _check(dy, "float32", (N, H // 2, W // 2, C))
    _check(x, "float32", (N, H, W, C))
    _check(code, "uint8", tuple(dy.shape))
    return (N, H, W, C), dy.size // C


def _channels(C: int, shift: Any, centre: Any, scale: Any) -> list[Any]:
    """Check an epilogue's vectors; return them as a kernel takes them."""
    if (centre is None) != (scale is None):
        raise ValueError("an epilogue takes centre and scale together")
    for vector in (shift, centre, scale):
        if vector is not None:
            _check(vector, "float32", (C,))
    return [_or_null(vector) for vector in (shift, centre, scale)]


def _check_partial(partial: Any, rows: int, channels: int) -> None:
    if partial is not None:
        _check(partial, "float32", sums_shape(rows, channels))


def _or_null(array: Any) -> Any:
    return NOTHING if array is None else array


def _check(array: Any, dtype: str | tuple[str, ...], shape: Any = None) -> None:
    """Raise unless an array is what a kernel will take it for: it would read past the end without a word.

    Parameters
    ----------
    array : array
    dtype : str, or tuple of them
    shape : tuple of int, or their number, or None for any
    """
    dtypes = (dtype,) if isinstance(dtype, str) else dtype
    fits = shape is None or (array.ndim == shape if isinstance(shape, int) else array.shape == shape)
    if not fits or array.dtype.name not in dtypes or not array.flags.c_contiguous or array.size == 0:
        wanted = f"{shape} axes" if isinstance(shape, int) else str(shape or "any shape")
        raise ValueError(
            f"a kernel expected contiguous {' or '.join(dtypes)}, {wanted}, and got {array.dtype} "
            f"{array.shape}"
        )
