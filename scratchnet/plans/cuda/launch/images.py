"""Launches of ``kernels/images.cu``: a batch of images from a data set in device memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scratchnet.backend import Array
from scratchnet.plans.cuda.launch.common import check, flat
from scratchnet.plans.cuda.launch.compiling import launch


def prepare_images(
    images: Array,
    labels: Array,
    choices: Array,
    batch: Array,
    x: Array,
    y: Array,
    *,
    batch_size: int,
    crop: int,
    cutout: int,
    fill: Sequence[int],
    scale: Sequence[float],
    shift: Sequence[float],
) -> None:
    """Prepare a batch: choose images, crop, mirror, cut out, normalise. The same bits as the ``Loader``'s.

    Parameters
    ----------
    images : uint8 (M, H, W, 3)
        The whole data set.
    labels : int64 (M,)
    choices : int32 (images of an epoch, 6)
        For each of them: its index in ``images``; top and left of the window in the padded image, from 0 to
        2 * crop; whether to mirror it; top and left of the hole, which may be negative.
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
    check(x, "float32", 4)
    N, H, W, _ = x.shape
    M = images.shape[0]
    check(images, "uint8", (M, H, W, 3))
    check(labels, "int64", (M,))
    check(choices, "int32", (choices.shape[0], 6))
    check(batch, "int64", (1,))
    check(x, "float32", (N, H, W, 3))
    check(y, "int64", (N,))
    launch(
        "images", "prepare_images", (), *flat(N * H * W), images, labels, choices, batch, x, y,
        np.int32(batch_size), np.int32(N), np.int32(H), np.int32(W), np.int32(crop), np.int32(cutout),
        *map(np.int32, fill), *map(np.float32, scale), *map(np.float32, shift),
    )  # fmt: skip


def advance(counters: Array) -> None:
    """Add 1 to every counter.

    Parameters
    ----------
    counters : int64 (n,)
        On the GPU, such as the batch within the epoch, and the step of the whole run.
    """
    (n,) = counters.shape
    check(counters, "int64", (n,))
    launch("images", "advance", (), *flat(n), counters, np.int32(n))
