"""Launches of ``kernels/sgd.cu``: a step of the optimizer."""

from __future__ import annotations

import numpy as np

from scratchnet.backend import Array
from scratchnet.plans.cuda.launch.common import OPERANDS, check, check_vectors, flat, macros, pack_width
from scratchnet.plans.cuda.launch.compiling import launch


def sgd(
    values: Array, gradients: Array, velocity: Array | None, rates: Array, batch: Array, *,
    momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False, operands: Array | None = None,
) -> None:  # fmt: skip
    """Make one step of stochastic gradient descent, as ``optim.SGD`` does.

    ``values`` and ``gradients`` (P,) are the flat buffers of the parameters, or a slice of them whose weights
    decay alike, and ``velocity`` the same slice of the momentum buffer, None without momentum. Values and
    velocity are changed; to ``operands`` the new values are written as products read them, unless these read
    the values themselves. The learning rate is ``rates[batch]``, both on the GPU, ``batch`` int64 (1,).
    """
    (P,) = values.shape
    check_vectors(P, values, gradients, velocity)
    check(operands, OPERANDS, (P,))
    check(rates, "float32", 1)
    check(batch, "int64", (1,))
    arrays = values, gradients, velocity, operands
    packs = P // (wide := pack_width(P, *arrays))
    numbers = np.float32(momentum), np.float32(weight_decay), np.int32(nesterov), np.int64(packs)
    launch("sgd", "sgd", macros(wide, operands), *flat(packs), *arrays, rates, batch, *numbers)
