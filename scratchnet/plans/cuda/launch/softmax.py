"""Launches of ``kernels/softmax.cu``: the loss, its gradient, and running totals."""

from __future__ import annotations

import numpy as np

from scratchnet.backend import Array
from scratchnet.plans.cuda.launch.common import THREADS, check, check_vectors, or_null
from scratchnet.plans.cuda.launch.compiling import launch


def softmax_cross_entropy(
    logits: Array,
    labels: Array,
    losses: Array,
    correct: Array,
    dlogits: Array | None = None,
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
    correct : float32 (N,)
        Written: 1 or 0. Of equal logits the first counts as the largest.
    dlogits : float32 (N, K), optional
        Written: the gradient of the batch's loss. May be ``logits`` itself.
    label_smoothing : float
        In [0, 1).
    """
    check(logits, "float32", 2)
    N, K = logits.shape
    check(labels, "int64", (N,))
    check_vectors(N, losses, correct)
    if dlogits is not None:
        check(dlogits, "float32", (N, K))
    warps = 4  # per block, one warp per image
    launch(
        "softmax", "softmax_cross_entropy", (), (-(-N // warps),), (32, warps), logits, labels, losses,
        correct, or_null(dlogits), np.int32(N), np.int32(K), np.float32(label_smoothing),
    )  # fmt: skip


def add_up(losses: Array, correct: Array, totals: Array) -> None:
    """Add a batch's losses, its correct predictions and its number of images to running totals.

    Parameters
    ----------
    losses, correct : float32 (N,)
    totals : float64 (3,)
        The sum of all losses, and the numbers of correct predictions and of images, since it was last set to
        zero.
    """
    (N,) = losses.shape
    check_vectors(N, losses, correct)
    check(totals, "float64", (3,))
    launch("softmax", "add_up", (), (1,), (THREADS,), losses, correct, totals, np.int32(N))
