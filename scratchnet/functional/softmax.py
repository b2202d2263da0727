"""Softmax and the cross-entropy loss, together, because together their gradient is simple.

Symbols: N images in the batch, K classes, z logits, p probabilities, t targets.
"""

from __future__ import annotations

from typing import Any

from scratchnet.backend import Array, array_module


def softmax(logits: Array) -> Array:
    """Turn scores into probabilities: p[k] = exp(z[k]) / sum_j exp(z[j]).

    Parameters
    ----------
    logits : array (..., K)

    Returns
    -------
    array (..., K)
        Every row adds up to one.

    Examples
    --------
    >>> import numpy as np
    >>> softmax(np.array([[10000.0, 10000.0]]))
    array([[0.5, 0.5]])
    """
    return array_module(logits).exp(_log_softmax(logits))


def _log_softmax(logits: Array) -> Array:
    """log p[k] = z[k] - max(z) - log sum_j exp(z[j] - max(z)).

    Taking the same number off every logit changes nothing, as it cancels; taking the largest off leaves no
    exponent above 0, so that nothing overflows, and at least one term of the sum is 1, so that the logarithm
    is finite (Goodfellow et al. 2016, sec. 4.1).
    """
    xp = array_module(logits)
    z = logits - logits.max(axis=-1, keepdims=True)  # (N, K)
    z -= xp.log(xp.exp(z).sum(axis=-1, keepdims=True))  # (N, 1) taken off (N, K)
    return z


def softmax_cross_entropy_forward(
    logits: Array, labels: Array, label_smoothing: float = 0.0, class_weights: Array | None = None
) -> tuple[Array, Any]:
    """Return the mean over the batch of -sum_k t[k] log p[k].

    The target t is 1 - s for the right class, plus s / K for every class, where s is the label smoothing
    (Szegedy et al. 2016, sec. 7); without smoothing the loss is -log p[label].

    With class weights w the mean is weighted, as PyTorch's is: each t[k] is multiplied by w[k], and the sum
    over the batch is divided by that of the labels' weights, sum_n w[label of n], in place of N.

    Parameters
    ----------
    logits : array (N, K)
    labels : integer array (N,)
        The right classes, from 0 to K - 1.
    label_smoothing : float
        In [0, 1).
    class_weights : array (K,), dtype of the logits, optional

    Returns
    -------
    loss : scalar array, dtype of the logits
    cache
        For ``softmax_cross_entropy_backward``.

    Examples
    --------
    A network that knows nothing about ten classes has the loss log(10):

    >>> import numpy as np
    >>> loss, cache = softmax_cross_entropy_forward(np.zeros((4, 10)), np.array([1, 2, 3, 4]))
    >>> print(f"{loss:.3f}")
    2.303
    """
    xp = array_module(logits)
    log_p = _log_softmax(logits)  # (N, K)
    if class_weights is not None:
        t = _weighted_targets(log_p, labels, label_smoothing, class_weights)  # (N, K)
        return -(t * log_p).sum(), (log_p, t)
    loss = -log_p[xp.arange(len(labels)), labels].mean()  # mean of (N,)
    if label_smoothing:
        loss = (1.0 - label_smoothing) * loss - label_smoothing * log_p.mean()
    return loss, (log_p, labels, label_smoothing)


def _weighted_targets(log_p: Array, labels: Array, label_smoothing: float, class_weights: Array) -> Array:
    """Return t[n, k] * w[k] / sum_n w[label of n], (N, K)."""
    xp = array_module(log_p)
    N, K = log_p.shape
    t = xp.full_like(log_p, label_smoothing / K)  # (N, K)
    t[xp.arange(N), labels] += 1.0 - label_smoothing
    t *= class_weights
    t /= class_weights[labels].sum()
    return t


def softmax_cross_entropy_backward(cache: Any) -> Array:
    """Return the gradient with respect to the logits.

    With L = -sum_k t[k] log p[k], log p[k] = z[k] - log sum_j exp(z[j]) and sum_k t[k] = 1::

        L = log sum_j exp(z[j]) - sum_k t[k] z[k]
        dL/dz[k] = exp(z[k]) / sum_j exp(z[j]) - t[k] = p[k] - t[k]

    and the mean over the batch divides by N (Bishop 2006, eq. 4.109). Weighted targets do not add up to one,
    so that there the first term of L has the factor sum_j t[j], and so has p[k].

    Parameters
    ----------
    cache
        From ``softmax_cross_entropy_forward``.

    Returns
    -------
    dlogits : array (N, K)

    Examples
    --------
    Where all classes are equally likely, the right one is to become likelier and all others less likely:

    >>> import numpy as np
    >>> _, cache = softmax_cross_entropy_forward(np.zeros((1, 4)), np.array([2]))
    >>> softmax_cross_entropy_backward(cache)
    array([[ 0.25,  0.25, -0.75,  0.25]])
    """
    if len(cache) == 2:
        log_p, t = cache  # (N, K) each
        return array_module(log_p).exp(log_p) * t.sum(axis=1, keepdims=True) - t
    log_p, labels, label_smoothing = cache
    xp = array_module(log_p)
    N, K = log_p.shape
    dlogits = xp.exp(log_p)  # (N, K), p
    if label_smoothing:
        dlogits -= label_smoothing / K
    dlogits[xp.arange(N), labels] -= 1.0 - label_smoothing  # one of each row, (N,)
    dlogits /= N
    return dlogits
