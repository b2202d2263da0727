"""Dropout (``functional/dropout.py``)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from scratchnet import functional as F
from scratchnet.backend import Array, array_module
from scratchnet.checks import real
from scratchnet.layers.base import Layer


class Dropout(Layer):
    """In training forget a random part of the activations, in evaluation nothing (``functional/dropout.py``).

    Parameters
    ----------
    p : float
        The share that is dropped, in [0, 1].
    dtype : as of every ``Layer``
    rng : numpy.random.Generator, optional
        The layer's own: it draws a number for each activation of the batch, on the host.

    Attributes
    ----------
    rows : (first, total) or None
        Where the input is a part of a batch, from which row on, and of how many: the mask is drawn for all.

    Examples
    --------
    >>> Dropout(0.5).eval().forward(np.ones(3))
    array([1., 1., 1.])
    """

    rows: tuple[int, int] | None = None

    def __init__(
        self, p: float = 0.5, *, dtype: DTypeLike = "float32", rng: np.random.Generator | None = None
    ):
        super().__init__(dtype=dtype)
        real(0.0, 1.0, p=p)
        self.p = float(p)
        self.rng = rng if rng is not None else np.random.default_rng(0)

    def forward(self, x: Array) -> Array:
        """Drop each activation with probability p, and scale the others."""
        self.check_input(x)
        if not self.training or self.p == 0.0:
            return self.save_for_backward(x, None)
        keep = array_module(x).asarray(self.draw(x.shape))
        return self.save_for_backward(*F.dropout_forward(x, keep, self.p))

    def draw(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return a new mask, True for what is kept, from the layer's generator."""
        if self.rows is None:
            return self.rng.random(shape, dtype=np.float32) >= self.p
        (first, total), (count, *rest) = self.rows, shape
        return self.rng.random((total, *rest), dtype=np.float32)[first : first + count] >= self.p

    def backward(self, dy: Array) -> Array:
        """Pass the gradient through what was kept."""
        cache = self.saved(dy)
        return dy if cache is None else F.dropout_backward(dy, cache)

    def settings(self) -> dict[str, Any]:  # noqa: D102
        return {"p": self.p}
