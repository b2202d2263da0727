"""Launches of ``kernels/images.cu``: a batch of images from a data set in device memory."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np

from scratchnet.backend import Array
from scratchnet.plans.cuda.launch.common import check, flat
from scratchnet.plans.cuda.launch.compiling import launch


def prepare_images(
    images: Array, labels: Array, choices: Array, batch: Array, x: Array, y: Array, *,
    batch_size: int, crop: int, cutout: int, fill: Sequence[int],
    scale: Sequence[float], shift: Sequence[float], taps: Array | None = None,
) -> None:  # fmt: skip
    """Prepare a batch: choose, crop, mirror, cut out, resize, normalise images: the ``Loader``'s bits.

    Read, all on the GPU: ``images``, uint8 (M, H, W, 3), and ``labels``, int64 (M,), the whole data set;
    ``choices``, int32 (images of an epoch, 6), for each of them its index in ``images``, top and left of the
    window in the padded image, from 0 to 2 * crop, whether to mirror it, top and left of the hole, which may
    be negative; and ``batch``, int64 (1,), which batch of the epoch this is: it begins at row batch *
    batch_size. Written: x (N, H, W, 3), and y, int64 (N,), the labels; N may be smaller in an epoch's last
    batch.

    ``crop`` is how many pixels of padding there are on every side, ``cutout`` the side of the hole (0 for
    none), ``fill`` the colour of both, three numbers from 0 to 255. With ``taps``, of ``resizing_taps``,
    square images are resized to x's size. A pixel becomes value * scale - shift, three of each, both rounded
    to float32 as ``Normalisation.apply`` does.
    """
    check(x, "float32", 4)
    N, OH, OW, _ = x.shape
    check(images, "uint8", 4)
    M, H, W, _ = images.shape
    check(images, "uint8", (M, H, W, 3) if taps is not None else (M, OH, OW, 3))
    check(taps, "int32", 2)
    if taps is not None and not (H == W and taps.shape[0] == OH == OW):
        raise ValueError(f"these taps are for {taps.shape[0]} pixels, not for {images.shape} to {x.shape}")
    check(labels, "int64", (M,))
    check(choices, "int32", (choices.shape[0], 6))
    check(batch, "int64", (1,))
    check(x, "float32", (N, OH, OW, 3))
    check(y, "int64", (N,))
    length = 0 if taps is None else taps.shape[1]
    sizes = map(np.int32, (batch_size, N, H, W, OH, OW, length, crop, cutout, *fill))
    affine = map(np.float32, (*scale, *shift))
    arrays = images, labels, choices, batch, taps, x, y
    launch("images", "prepare_images", (), *flat(N * OH * OW), *arrays, *sizes, *affine)


def resizing_taps(size: int, new_size: int) -> np.ndarray:
    """Return which pixels of ``size`` each of ``new_size`` is a mean of, int32 (new_size, 2 + weights).

    A row holds the first of them, how many there are, and their weights, which add up to 2**22: the triangle
    of a bilinear filter, as wide as two pixels of the coarser of the two sizes.

    Examples
    --------
    >>> resizing_taps(2, 3)[1, :4] / [1, 1, 2**22, 2**22]
    array([0. , 2. , 0.5, 0.5])
    """
    scale = size / new_size
    reach = max(scale, 1.0)
    taps = np.zeros((new_size, 2 + 2 * ceil(reach) + 1), np.int32)
    for k, row in enumerate(taps):
        centre = (k + 0.5) * scale
        first, stop = max(0, int(centre - reach + 0.5)), min(size, int(centre + reach + 0.5))
        weights = np.maximum(0.0, 1.0 - np.abs((np.arange(first, stop) - centre + 0.5) / reach))
        row[:2] = first, stop - first
        row[2 : 2 + len(weights)] = weights / weights.sum() * 2**22 + 0.5
    return taps


def advance(counters: Array) -> None:
    """Add 1 to every counter, int64 (n,), such as the batch within the epoch and the step of the run."""
    (n,) = counters.shape
    check(counters, "int64", (n,))
    launch("images", "advance", (), *flat(n), counters, n)
