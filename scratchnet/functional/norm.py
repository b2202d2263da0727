"""Batch normalisation: every channel to mean 0 and variance 1, then to a scale and shift that are learned.

Symbols: M values per channel (N * H * W of them), C channels, mu and var their mean and variance.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from scratchnet.backend import Array, array_module
from scratchnet.functional.sums import channel_sum


class Across:
    """What adds up over the processes among which a batch is divided.

    Examples
    --------
    >>> import numpy as np
    >>> class Twins(Across):  # two processes that have the same
    ...     def sum(self, x):
    ...         return 2 * x
    ...
    ...     def count(self, M):
    ...         return 2 * M
    >>> _, cache = batch_norm_forward(np.array([[1.0], [3.0]]), np.ones(1), np.zeros(1), across=Twins())
    >>> cache.mean, cache.var
    (array([2.]), array([1.]))
    """

    def sum(self, x: Array) -> Any:
        """Return the sum of every process's x, on all of them."""
        raise NotImplementedError

    def count(self, M: int) -> int:
        """Return how many values the whole batch has per channel, where this part of it has M."""
        raise NotImplementedError


class BatchNormCache(NamedTuple):
    """What the backward pass needs, and the statistics that the layer tracks.

    Attributes
    ----------
    x : array (..., C)
    weight : array (C,)
    mean, var : array (C,)
        The variance is the biased one: divided by M.
    inv_std : array (C,)
        1 / sqrt(var + eps).
    of_batch : bool
        Whether mean and var were computed from x.
    """

    x: Any
    weight: Any
    mean: Any
    var: Any
    inv_std: Any
    of_batch: bool


def batch_norm_forward(
    x: Array,
    weight: Array,
    bias: Array | None,
    mean: Any = None,
    var: Any = None,
    eps: float = 1e-5,
    across: Across | None = None,
) -> tuple[Any, BatchNormCache]:
    """Return weight * (x - mu) / sqrt(var + eps) + bias, channel by channel.

    Parameters
    ----------
    x : array (..., C)
        A feature map (N, H, W, C), or any other array with the channels last.
    weight, bias : array (C,)
        The learned scale and shift (gamma and beta in the paper).
    mean, var : array (C,), optional
        Statistics to use, as in evaluation. Without them, as in training, they are those of ``x``; the
        variance is the biased one.
    eps : float
        Keeps the division away from zero.
    across : Across, optional
        Where ``x`` is a part of the batch: what adds up the sums of all parts.

    Returns
    -------
    y : array, shape and dtype of x
    cache : BatchNormCache
        Its ``mean`` and ``var`` are the statistics that were used.

    Examples
    --------
    >>> import numpy as np
    >>> y, cache = batch_norm_forward(np.array([[1.0], [3.0]]), np.ones(1), np.zeros(1), eps=0.0)
    >>> y.ravel(), cache.mean, cache.var
    (array([-1.,  1.]), array([2.]), array([1.]))
    """
    of_batch = mean is None
    if of_batch:
        M, total = _of_all(x, across)
        mean = total(channel_sum(x)) / M  # (C,)
    y = x - mean  # (..., C)
    if of_batch:
        var = total(channel_sum(y * y)) / M  # (C,)
    inv_std = 1.0 / array_module(x).sqrt(var + eps)  # (C,)
    y *= weight * inv_std
    y += bias
    return y, BatchNormCache(x, weight, mean, var, inv_std, of_batch)


def batch_norm_backward(
    dy: Array, cache: BatchNormCache, across: Across | None = None
) -> tuple[Any, Any, Any]:
    """Return the gradients with respect to ``x``, ``weight`` and ``bias``.

    Write h = (x - mu) / s with s = sqrt(var + eps), so that y = weight * h + bias. Then dbias = sum dy and
    dweight = sum dy h, both over the M values of the channel. For x, with dh = weight * dy, three paths add
    up: directly, through mu, and through var (Ioffe and Szegedy 2015, sec. 3)::

        direct       dh / s
        through mu   dmu  = -sum(dh) / s                     and dmu/dx  = 1 / M
        through var  dvar = -sum(dh h) / (2 s^2)             and dvar/dx = 2 (x - mu) / M = 2 s h / M

        dx = (dh - sum(dh) / M - h sum(dh h) / M) / s = weight / s * (dy - dbias / M - h dweight / M)

    With given statistics (evaluation) only the direct path is there.

    Parameters
    ----------
    dy : array, shape of y
    cache : BatchNormCache
        From ``batch_norm_forward``.
    across : Across, optional
        As there. ``dweight`` and ``dbias`` are those of this part, and ``dx`` takes those of all.

    Returns
    -------
    dx : array, shape of y
    dweight, dbias : array (C,)

    Examples
    --------
    The same gradient for a whole channel has no effect, since the mean takes it off again:

    >>> import numpy as np
    >>> _, cache = batch_norm_forward(np.array([[1.0], [3.0], [8.0]]), np.ones(1), np.zeros(1))
    >>> dx, dweight, dbias = batch_norm_backward(np.ones((3, 1)), cache)
    >>> bool(abs(dx).max() < 1e-12), dbias
    (True, array([3.]))
    """
    x, weight, mean, _, inv_std, of_batch = cache
    h = x - mean  # (..., C)
    h *= inv_std
    dbias = channel_sum(dy)  # (C,)
    dweight = channel_sum(dy * h)  # (C,)
    if of_batch:
        M, total = _of_all(x, across)
        sums = (dweight, dbias) if across is None else total(array_module(x).stack([dweight, dbias]))
        h *= sums[0] / M
        dx = dy - h  # (..., C)
        dx -= sums[1] / M
        dx *= weight * inv_std
    else:
        dx = dy * (weight * inv_std)  # (..., C)
    return dx, dweight, dbias


def _of_all(x: Array, across: Across | None) -> tuple[int, Any]:
    """Return how many values there are per channel, and what adds up sums over all parts of the batch."""
    M = x.size // x.shape[-1]
    return (M, lambda part: part) if across is None else (across.count(M), across.sum)
