"""Launches of ``kernels/softmax.cu``: the loss, its gradient, and running totals."""

from __future__ import annotations

import numpy as np

from scratchnet.backend import Array
from scratchnet.plans.cuda.launch.common import THREADS, check, check_vectors
from scratchnet.plans.cuda.launch.compiling import launch


def softmax_cross_entropy(
    logits: Array, labels: Array, losses: Array, correct: Array, dlogits: Array | None = None, *,
    label_smoothing: float = 0.0,
) -> None:  # fmt: skip
    """Compute each image's loss and whether its largest logit is that of its label, and the gradient.

    From logits (N, K) and labels, int64 (N,), which must be from 0 to K - 1, follow ``losses`` (N,), whose
    mean is the batch's loss; ``correct`` (N,), 1 or 0, where of equal logits the first counts as the largest;
    and the gradient of the batch's loss, ``dlogits``, which may be ``logits`` itself.
    """
    check(logits, "float32", 2)
    N, K = logits.shape
    check(labels, "int64", (N,))
    check_vectors(N, losses, correct)
    check(dlogits, "float32", (N, K))
    warps = 4  # per block, one warp per image
    arguments = logits, labels, losses, correct, dlogits, N, K, np.float32(label_smoothing)
    launch("softmax", "softmax_cross_entropy", (), (-(-N // warps),), (32, warps), *arguments)


def add_up(losses: Array, correct: Array, totals: Array) -> None:
    """Add a batch's losses (N,), its correct predictions (N,) and its number of images to ``totals``.

    These, float64 (3,), are the sums of all three since they were last set to zero.
    """
    (N,) = losses.shape
    check_vectors(N, losses, correct)
    check(totals, "float64", (3,))
    launch("softmax", "add_up", (), (1,), (THREADS,), losses, correct, totals, N)
