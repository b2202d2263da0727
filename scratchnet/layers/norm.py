"""Batch normalisation and its running statistics (``functional/norm.py``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchnet import functional as F
from scratchnet.backend import Array
from scratchnet.checks import real, whole
from scratchnet.initialise import ones, zeros
from scratchnet.layers.base import Layer
from scratchnet.layers.checking import check_shape
from scratchnet.layers.tree import assemble
from scratchnet.parameters import Parameter


class BatchNorm(Layer):
    """What batch normalisation of any array (..., num_features) is, whatever its other axes.

    Parameters
    ----------
    num_features, eps, momentum, dtype, rng : as of ``BatchNorm2d``

    Examples
    --------
    >>> x = np.array([[1.0], [3.0]])
    >>> layer = BatchNorm1d(1, eps=0.0, dtype="float64")
    >>> layer.forward(x)
    array([[-1.],
           [ 1.]])
    >>> layer.running_mean, layer.running_var  # the unbiased variance is 2
    (array([0.2]), array([1.1]))
    """

    buffer_names = ("running_mean", "running_var")
    axes: tuple[str, ...] = ()  # all but the last
    across: F.Across | None = None  # what adds up over processes, each of which has a part of the batch

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, **common: Any):
        super().__init__(**common)
        whole(num_features=num_features)
        real(0.0, eps=eps)
        real(0.0, 1.0, momentum=momentum)
        self.num_features, self.eps, self.momentum = int(num_features), eps, momentum
        self.weight = Parameter(shape=(num_features,), dtype=self.dtype, fill=ones)
        self.bias = Parameter(shape=(num_features,), dtype=self.dtype, fill=zeros)
        self.running_mean = np.zeros(num_features, self.dtype)
        self.running_var = np.ones(num_features, self.dtype)
        assemble(self)

    @property
    def frozen(self) -> bool:
        """Whether neither weight nor bias is trained: then training uses and keeps the statistics, too."""
        return not (self.weight.trainable or self.bias.trainable)

    def forward(self, x: Array) -> Array:
        """Normalise (..., num_features), channel by channel."""
        self.check_input(x, *self.axes, self.num_features)
        weight, bias = self.weight.data, self.bias.data
        if not self.training or self.frozen:
            statistics = self.running_mean, self.running_var
            return self.save_for_backward(*F.batch_norm_forward(x, weight, bias, *statistics, eps=self.eps))
        M = x.size // self.num_features
        M = M if self.across is None else self.across.count(M)
        if M == 1:
            shape = tuple(x.shape)
            raise ValueError(f"{self.label}: one value per channel has no variance to train with: {shape}")
        y, cache = F.batch_norm_forward(x, weight, bias, eps=self.eps, across=self.across)
        self.running_mean += self.momentum * (cache.mean - self.running_mean)
        self.running_var += self.momentum * (cache.var * (M / (M - 1)) - self.running_var)
        self.weight.buffer.version += 1  # plans fold the statistics into weights
        return self.save_for_backward(y, cache)

    def backward(self, dy: Array) -> Array:
        """Set the gradients of weight and bias; return dx."""
        dx, self.weight.grad, self.bias.grad = F.batch_norm_backward(dy, self.saved(dy), self.across)
        return dx

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:  # noqa: D102
        check_shape(self, shape, *self.axes, self.num_features)
        return shape

    def settings(self) -> dict[str, Any]:  # noqa: D102
        return {"num_features": self.num_features, "eps": self.eps, "momentum": self.momentum}


class BatchNorm2d(BatchNorm):
    """Batch normalisation of feature maps (N, H, W, num_features).

    In training it normalises with the batch's own mean and (biased) variance, and tracks both for evaluation:
    running = (1 - momentum) * running + momentum * batch, with the unbiased variance, as PyTorch does.

    Parameters
    ----------
    num_features : int
        C.
    eps : float
        Added to the variance.
    momentum : float
        How much of each batch goes into the running statistics.
    dtype, rng : as of every ``Layer``

    Attributes
    ----------
    weight, bias : Parameter (num_features,)
    running_mean, running_var : array (num_features,)

    Examples
    --------
    >>> BatchNorm2d(64).forward(np.zeros((8, 4, 4, 64), "float32")).shape
    (8, 4, 4, 64)
    """

    axes = ("N", "H", "W")


class BatchNorm1d(BatchNorm):
    """Batch normalisation of rows (N, num_features), as after a linear layer: see ``BatchNorm2d``.

    Parameters
    ----------
    num_features, eps, momentum, dtype, rng : as of ``BatchNorm2d``

    Examples
    --------
    >>> BatchNorm1d(64).forward(np.zeros((8, 64), "float32")).shape
    (8, 64)
    """

    axes = ("N",)
