"""Activations: elementwise, on arrays of any shape (``functional/relu.py``)."""

from __future__ import annotations

from scratchnet import functional as F
from scratchnet.backend import Array
from scratchnet.layers.base import Layer


class ReLU(Layer):
    """max(x, 0), for arrays of any shape (``functional/relu.py``).

    Parameters
    ----------
    dtype, rng : as of every ``Layer``

    Examples
    --------
    >>> import numpy as np
    >>> ReLU().forward(np.array([-1.0, 2.0]))
    array([0., 2.])
    """

    def forward(self, x: Array) -> Array:
        """Set what is negative to zero."""
        self.check_input(x)
        return self.save_for_backward(*F.relu_forward(x))

    def backward(self, dy: Array) -> Array:
        """Return dy where the input was positive, zero elsewhere."""
        return F.relu_backward(dy, self.saved(dy))
