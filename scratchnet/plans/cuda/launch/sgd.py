"""Launches of ``kernels/sgd.cu``: a step of the optimizer."""

from __future__ import annotations

import numpy as np

from scratchnet.backend import Array
from scratchnet.plans.cuda.launch.common import (
    OPERANDS,
    check,
    check_vectors,
    flat,
    macros,
    or_null,
    pack_width,
)
from scratchnet.plans.cuda.launch.compiling import launch


def sgd(
    values: Array,
    gradients: Array,
    velocity: Array | None,
    rates: Array,
    batch: Array,
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    operands: Array | None = None,
) -> None:
    """Make one step of stochastic gradient descent, as ``optim.SGD`` does.

    Parameters
    ----------
    values, gradients : float32 (P,)
        The flat buffers of the parameters, or a slice of them whose weights decay alike. Values are changed.
    velocity : float32 (P,), or None
        The same slice of the momentum buffer; changed. None without momentum.
    rates : float32 (batches,)
        On the GPU: the learning rate of each batch.
    batch : int64 (1,)
        On the GPU: which of them to use.
    momentum, weight_decay : float
    nesterov : bool
    operands : operands (P,), optional
        Written: the new values as products read them. (Products in float32 read the values themselves.)
    """
    (P,) = values.shape
    check_vectors(P, values, gradients, velocity)
    if operands is not None:
        check(operands, OPERANDS, (P,))
    check(rates, "float32", 1)
    check(batch, "int64", (1,))
    wide = pack_width(P, values, gradients, velocity, operands)
    launch(
        "sgd", "sgd", macros(wide, operands), *flat(P // wide), values, gradients, or_null(velocity),
        or_null(operands), rates, batch, np.float32(momentum), np.float32(weight_decay), np.int32(nesterov),
        np.int64(P // wide),
    )  # fmt: skip
