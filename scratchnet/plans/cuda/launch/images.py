"""Launches of ``kernels/images.cu``: a batch of images from a data set in device memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scratchnet.backend import Array
from scratchnet.plans.cuda.launch.common import check, flat
from scratchnet.plans.cuda.launch.compiling import launch


def prepare_images(
    images: Array, labels: Array, choices: Array, batch: Array, x: Array, y: Array, *,
    batch_size: int, crop: int, cutout: int, fill: Sequence[int],
    scale: Sequence[float], shift: Sequence[float],
) -> None:  # fmt: skip
    """Prepare a batch: choose images, crop, mirror, cut out, normalise. The same bits as the ``Loader``'s.

    Read, all on the GPU: ``images``, uint8 (M, H, W, 3), and ``labels``, int64 (M,), the whole data set;
    ``choices``, int32 (images of an epoch, 6), for each of them its index in ``images``, top and left of the
    window in the padded image, from 0 to 2 * crop, whether to mirror it, top and left of the hole, which may
    be negative; and ``batch``, int64 (1,), which batch of the epoch this is: it begins at row batch *
    batch_size. Written: x (N, H, W, 3), and y, int64 (N,), the labels; N may be smaller in an epoch's last
    batch.

    ``crop`` is how many pixels of padding there are on every side, ``cutout`` the side of the hole (0 for
    none), ``fill`` the colour of both, three numbers from 0 to 255. A pixel becomes value * scale - shift,
    three of each, both rounded to float32 as ``Normalisation.apply`` does.
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
    sizes = map(np.int32, (batch_size, N, H, W, crop, cutout, *fill))
    affine = map(np.float32, (*scale, *shift))
    arrays = images, labels, choices, batch, x, y
    launch("images", "prepare_images", (), *flat(N * H * W), *arrays, *sizes, *affine)


def advance(counters: Array) -> None:
    """Add 1 to every counter, int64 (n,), such as the batch within the epoch and the step of the run."""
    (n,) = counters.shape
    check(counters, "int64", (n,))
    launch("images", "advance", (), *flat(n), counters, n)
