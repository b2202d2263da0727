"""Weights as matrix products read them: the parameters themselves, or a copy of all of them in bfloat16."""

from __future__ import annotations

import weakref
from typing import cast as typed

import numpy as np
from numpy.typing import DTypeLike

from scratchnet.backend import Array
from scratchnet.parameters import FlatBuffer, Parameter
from scratchnet.plans.cuda.launch.operands import cast


class LowPrecisionWeights:
    """The parameters of a network as operands of products, derived again after they have changed.

    There is one for each network and dtype, which all of its plans share: see ``low_precision_weights``.
    ``TrainingSteps`` writes them with the parameters; whatever else changes parameters makes them stale.

    Parameters
    ----------
    buffer : FlatBuffer
    dtype : dtype
        Of operands, see ``operand_dtype``: with the buffer's own there is no copy.

    Attributes
    ----------
    flat : array (size,)
    separate : bool
        Whether ``flat`` is a copy.
    version : int or None
        The buffer's, from which they were derived.
    """

    def __init__(self, buffer: FlatBuffer, dtype: DTypeLike):
        self.version: int | None = None
        self.separate = np.dtype(dtype) != buffer.dtype
        self.flat: Array = (
            buffer.backend.xp.empty(buffer.size, dtype) if self.separate else typed(Array, buffer.data)
        )

    def matrix(self, parameter: Parameter) -> Array:
        """Return the matrix of a weight, (everything before, outputs)."""
        return parameter.view(self.flat).reshape(-1, parameter.shape[-1])

    def derive(self, buffer: FlatBuffer) -> None:
        """Bring them up to date, unless they are; ``buffer`` is the one that they were made for."""
        if self.version == buffer.version:
            return
        if self.separate:
            cast(typed(Array, buffer.data), self.flat)
        self.version = buffer.version


_made: weakref.WeakKeyDictionary[FlatBuffer, dict[DTypeLike, LowPrecisionWeights]] = (
    weakref.WeakKeyDictionary()
)


def low_precision_weights(buffer: FlatBuffer, dtype: DTypeLike) -> LowPrecisionWeights:
    """Return the weights of a network as products read them, made at first use."""
    made = _made.setdefault(buffer, {})
    found = made.get(dtype)
    if found is None or (not found.separate and found.flat is not buffer.data):
        found = made[dtype] = LowPrecisionWeights(buffer, dtype)
    return found
