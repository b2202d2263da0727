"""Batch normalisation folded into the convolution before it, for inference.

In evaluation both are linear in x, with statistics that no longer change, so together they are one
convolution. With mean, var, scale and shift of the normalisation::

    (conv(x, W) + b - mean) * g + shift  =  conv(x, W * g) + (b - mean) * g + shift
    g = scale / sqrt(var + eps)

g has one number for each output channel, and channels come last: W * g goes along the last axis. Whatever an
algorithm makes of W, channel by channel, may be multiplied in its place.
"""

from __future__ import annotations

import numpy as np

from scratchnet.layers import BatchNorm2d, Conv2d
from scratchnet.plans.cpu.calls import Calls


class Fold:
    """The weight and ``bias`` (O,) of a convolution, or what a batch normalisation makes of them."""

    def __init__(self, conv: Conv2d, norm: BatchNorm2d | None):
        self.conv, self.norm = conv, norm
        self.bias = None if conv.bias is None else conv.bias.data
        if norm is not None:
            self.bias = np.empty(conv.out_channels, conv.weight.dtype)
            self.gain = np.empty_like(self.bias)
            self._computed_from: tuple = ()

    def write(self, do: Calls) -> None:
        """Record the computation of bias and gain, needed when parameters or statistics have changed."""
        if self.norm is not None:
            do.call(self._compute)

    @property
    def stale(self) -> bool:
        """Whether the statistics are others than those that were folded: they may be written to in place."""
        if self.norm is None or not self._computed_from:
            return False
        mean, var, eps = self._computed_from
        norm = self.norm
        return eps != norm.eps or not ((norm.running_mean == mean).all() and (norm.running_var == var).all())

    def _compute(self) -> None:
        assert self.norm is not None and self.bias is not None
        norm = self.norm
        self._computed_from = norm.running_mean.copy(), norm.running_var.copy(), norm.eps
        b = 0.0 if self.conv.bias is None else self.conv.bias.data.astype(np.float64)
        gain = norm.weight.data.astype(np.float64) / np.sqrt(norm.running_var.astype(np.float64) + norm.eps)
        self.gain[...] = gain
        self.bias[...] = (b - norm.running_mean) * gain + norm.bias.data

    def scale(self, do: Calls, w: np.ndarray, columns: slice = slice(None)) -> None:
        """Record w = w * g, for a copy w (..., k) of some columns of the weight."""
        if self.norm is not None:
            do(np.multiply, w, self.gain[columns], out=w)
