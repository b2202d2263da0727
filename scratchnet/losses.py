"""Loss functions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scratchnet import checks
from scratchnet import functional as F
from scratchnet.backend import Array, array_module, to_numpy


def balanced_class_weights(labels: ArrayLike, num_classes: int) -> np.ndarray:
    """Return weights with which every class counts alike, however many images it has: N / (K * its count).

    Parameters
    ----------
    labels : integer array (N,)
        Of the images to train on. A class without any gets the weight 1.
    num_classes : int
        K.

    Returns
    -------
    ndarray (K,)
        Their mean over the labels is 1.

    Examples
    --------
    >>> balanced_class_weights([0, 0, 0, 1], num_classes=2).round(3).tolist()
    [0.667, 2.0]
    """
    checks.whole(num_classes=num_classes)
    counts = np.bincount(to_numpy(labels).astype(np.int64), minlength=num_classes)  # (K,)
    return np.where(counts > 0, counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1)), 1.0)


class SoftmaxCrossEntropy:
    """The mean over the batch of -log p[label], where p = softmax(logits) (``functional/softmax.py``).

    Parameters
    ----------
    label_smoothing : float
        In [0, 1): how much of the target is spread over all classes (Szegedy et al. 2016, sec. 7).
    class_weights : sequence of K floats, optional
        Above zero, one for each class: the loss is PyTorch's weighted mean, so that rare classes can count
        for more. `balanced_class_weights` makes those with which every class counts alike.

    Examples
    --------
    >>> import numpy as np
    >>> loss = SoftmaxCrossEntropy()
    >>> print(f"{float(loss.forward(np.zeros((2, 10)), np.array([3, 7]))):.3f}")  # log(10)
    2.303
    >>> loss.backward().shape
    (2, 10)
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: ArrayLike | None = None):
        checks.real(0.0, 1.0, label_smoothing=label_smoothing)
        if label_smoothing == 1.0:
            raise ValueError("label_smoothing must be below 1, or nothing is left of the label")
        self.label_smoothing = label_smoothing
        self.class_weights: np.ndarray | None = None
        if class_weights is not None:
            self.class_weights = to_numpy(class_weights).astype(np.float64)
            weights = self.class_weights
            if weights.ndim != 1 or not (np.isfinite(weights).all() and (weights > 0).all()):
                raise ValueError("class_weights must be finite numbers above zero, one for each class")
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
        weights = self.class_weights
        if weights is not None:
            if len(weights) != K:
                raise ValueError(
                    f"SoftmaxCrossEntropy: {len(weights)} class_weights for logits of {K} classes"
                )
            weights = array_module(logits).asarray(weights, logits.dtype)
        value, self._cache = F.softmax_cross_entropy_forward(logits, targets, self.label_smoothing, weights)
        return value

    def weight_of(self, labels: np.ndarray) -> float:
        """Return what the mean over a batch with these labels divides by: N, or the sum of their weights."""
        return float(len(labels) if self.class_weights is None else self.class_weights[labels].sum())

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
