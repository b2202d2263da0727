"""Clipping of gradients by their global norm (Pascanu et al. 2013, sec. 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import fsum, sqrt

import numpy as np

from scratchnet import checks, workers
from scratchnet.backend import Array, array_module
from scratchnet.parameters import Parameter

BLOCK_SIZE = 1 << 16  # numbers; how they are added up does not depend on the number of workers


def clip_norm(parameters: Mapping[str, Parameter], max_norm: float) -> float:
    """Scale all gradients by one factor, so that their norm together is at most ``max_norm``.

    As ``torch.nn.utils.clip_grad_norm_``: with g all gradients end to end, it multiplies them by
    min(1, max_norm / (|g| + 1e-6)). The squares are added up in float64, block by block in order.

    Parameters
    ----------
    parameters : dict of str to Parameter
        Those without a gradient are left out.
    max_norm : float
        Above zero.

    Returns
    -------
    float
        The norm before.

    Examples
    --------
    >>> weight, bias = Parameter([0.0, 0.0]), Parameter([0.0])
    >>> weight.grad, bias.grad = np.array([3.0, 0.0]), np.array([4.0])
    >>> clip_norm({"weight": weight, "bias": bias}, 1.0)
    5.0
    >>> weight.grad.round(3), bias.grad.round(3)
    (array([0.6, 0. ]), array([0.8]))
    """
    checks.real(0.0, max_norm=max_norm)
    gradients = [g.reshape(-1) for p in parameters.values() if (g := p.grad) is not None]
    blocks = [g[i : i + BLOCK_SIZE] for g in gradients for i in range(0, g.size, BLOCK_SIZE)]
    on_host = all(isinstance(block, np.ndarray) for block in blocks)
    parts = gradients if not on_host else blocks
    sums: list[Array] = [np.zeros(())] * len(parts)

    def add_up(first: int, step: int) -> None:
        for k in range(first, len(parts), step):
            xp = array_module(parts[k])
            wide = parts[k].astype(np.float64)
            sums[k] = xp.sum(xp.square(wide, out=wide))

    def scale(first: int, step: int) -> None:
        for k in range(first, len(parts), step):
            parts[k] *= parts[k].dtype.type(factor)

    count = min(workers.size(), len(parts)) if on_host else min(1, len(parts))
    workers.run_parallel([partial(add_up, k, count) for k in range(count)])
    norm = sqrt(fsum(map(float, sums)))
    if not (factor := max_norm / (norm + 1e-6)) >= 1.0:  # so that NaN spreads, as in PyTorch
        workers.run_parallel([partial(scale, k, count) for k in range(count)])
    return norm
