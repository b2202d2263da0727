"""Loss functions."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from scratchnet import checks
from scratchnet import functional as F
from scratchnet.backend import Array, array_module


class SoftmaxCrossEntropy:
    """The mean over the batch of -log p[label], where p = softmax(logits) (``functional/softmax.py``).

    Parameters
    ----------
    label_smoothing : float
        In [0, 1): how much of the target is spread over all classes (Szegedy et al. 2016, sec. 7).

    Examples
    --------
    >>> import numpy as np
    >>> loss = SoftmaxCrossEntropy()
    >>> print(f"{float(loss.forward(np.zeros((2, 10)), np.array([3, 7]))):.3f}")  # log(10)
    2.303
    >>> loss.backward().shape
    (2, 10)
    """

    def __init__(self, label_smoothing: float = 0.0):
        checks.real(0.0, 1.0, label_smoothing=label_smoothing)
        if label_smoothing == 1.0:
            raise ValueError("label_smoothing must be below 1, or nothing is left of the label")
        self.label_smoothing = label_smoothing
        self._cache: Any = None

    def forward(self, logits: Array, labels: ArrayLike) -> Array:
        """Return the loss.

        Parameters
        ----------
        logits : array (N, K)
            A score for each image and class.
        labels : integer array (N,)
            The right classes, from 0 to K - 1, on the host or beside the logits.

        Returns
        -------
        scalar array, dtype of the logits
            ``float(loss)`` works, and on a GPU waits for it.

        Raises
        ------
        ValueError
            If the shapes do not fit, or a label is not an integer or not a class.
        """
        if getattr(logits, "ndim", 0) != 2 or 0 in logits.shape:
            got = getattr(logits, "shape", logits)
            raise ValueError(f"SoftmaxCrossEntropy: expected logits (N, K), got {got}")
        N, K = logits.shape
        targets: Array = array_module(labels).asarray(labels)
        if targets.shape != (N,) or targets.dtype.kind not in "iu":
            got = f"{targets.dtype} {targets.shape}"
            raise ValueError(f"SoftmaxCrossEntropy: expected integer labels ({N},), got {got}")
        wrong = (targets < 0) | (targets >= K)
        if bool(wrong.any()):
            raise ValueError(f"SoftmaxCrossEntropy: label {targets[wrong][0]} is not one of the {K} classes")
        # Checked where they lie: labels on the host need no wait for a GPU.
        if array_module(targets) is not array_module(logits):
            targets = array_module(logits).asarray(targets)
        value, self._cache = F.softmax_cross_entropy_forward(logits, targets, self.label_smoothing)
        return value

    def __call__(self, logits: Array, labels: ArrayLike) -> Array:
        """Call ``forward``."""
        return self.forward(logits, labels)

    def backward(self) -> Array:
        """Return the gradient of the last loss with respect to the logits, (N, K), once for each forward."""
        cache, self._cache = self._cache, None
        if cache is None:
            raise RuntimeError(
                "SoftmaxCrossEntropy: backward without a forward before it: call forward first"
            )
        return F.softmax_cross_entropy_backward(cache)
