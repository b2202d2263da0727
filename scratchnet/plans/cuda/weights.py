"""Weights as matrix products read them: the parameters themselves, or a copy of all of them in bfloat16."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from scratchnet.backend import Array
from scratchnet.parameters import FlatBuffer, Parameter
from scratchnet.plans.cuda.launch.operands import cast


class LowPrecisionWeights:
    """The parameters of a network as operands of products, derived again after they have changed.

    There is one for each network and dtype, which all of its plans share: see ``low_precision_weights``.
    ``TrainingSteps`` writes them with the parameters; whatever else changes parameters makes them stale.
    """

    def __init__(self, buffer: FlatBuffer, dtype: DTypeLike):
        self.state: tuple[int, int] | None = None  # the buffer's, from which they were derived
        self.separate = np.dtype(dtype) != buffer.dtype  # whether ``flat`` is a copy
        self.flat: Array = buffer.backend.xp.empty(buffer.size, dtype) if self.separate else buffer.allocate()

    def matrix(self, parameter: Parameter) -> Array:
        """Return the matrix of a weight, (everything before, outputs)."""
        return parameter.view(self.flat).reshape(-1, parameter.shape[-1])

    def derive(self, buffer: FlatBuffer) -> None:
        """Bring them up to date, unless they are; ``buffer`` is the one that they were made for."""
        if self.state != buffer.state and self.separate:
            cast(buffer.allocate(), self.flat)
        self.state = buffer.state


def low_precision_weights(buffer: FlatBuffer, dtype: DTypeLike) -> LowPrecisionWeights:
    """Return the weights of a network as products read them, made at first use, and kept with its values."""
    made: dict[Any, LowPrecisionWeights] = buffer.derived.setdefault(LowPrecisionWeights, {})
    found = made.get(dtype)
    if found is None or (not found.separate and found.flat is not buffer.data):
        found = made[dtype] = LowPrecisionWeights(buffer, dtype)
    return found
