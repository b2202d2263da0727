"""Layers: parameters, and what the backward pass needs to remember."""

from scratchnet.layers.base import *  # noqa: F403
from scratchnet.layers.base import __all__ as __all__
from scratchnet.layers.base import backward_through as backward_through
