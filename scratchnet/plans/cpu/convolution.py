"""What the kernels of a convolution share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scratchnet.layers import BatchNorm2d, Conv2d
from scratchnet.plans.cpu.blocks import COLUMNS, small_matmul
from scratchnet.plans.cpu.calls import Calls, reshaped
from scratchnet.plans.cpu.fold import Fold
from scratchnet.plans.cpu.kernel import Kernel
from scratchnet.plans.cpu.planes import in_planes
from scratchnet.plans.kernel import Group, PlanContext

FEW_ROWS_TO_TRANSPOSE = 32  # see ``transpose_weights``


class Convolution(Kernel):
    """A convolution, with what is folded into it and follows it.

    Attributes
    ----------
    conv : Conv2d
    C, O : int
        Channels of the input and the output.
    fold : Fold
        Its weight and bias, with a batch normalisation.
    trained_weight, trained_bias : Parameter or None
        Its weight and bias, unless they are frozen (or there is no bias).
    """

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        conv, norm = self.group.main, self.group.norm
        assert isinstance(conv, Conv2d) and (norm is None or isinstance(norm, BatchNorm2d))
        self.conv = conv
        self.C, self.O = conv.in_channels, conv.out_channels
        self.fold = Fold(conv, norm)
        self.trained_weight = conv.weight if conv.weight.trainable else None
        self.trained_bias = conv.bias if conv.bias is not None and conv.bias.trainable else None

    def transform_weights(
        self, do: Calls, matrix: np.ndarray, w: np.ndarray, scratch: np.ndarray, out: np.ndarray
    ) -> None:
        """Record out = m w m^T, along the two axes of the kernel, for some columns of weights.

        Both axes at once, since weights are small: with its two axes made one, out is kron(m, m) times w.

        Parameters
        ----------
        do : Calls
        matrix : array (P*P, 9)
            kron(m, m), for m (P, 3).
        w : array (3, 3, C, k)
        scratch : array of ``room_for(9, C * k)`` numbers, or more
        out : array (P, P, C, k)
        """
        C, k = w.shape[2:]
        packed = in_planes(scratch, 3, 3, C, k)
        do.copy(w, out=packed)
        small_matmul(do, matrix, reshaped(packed, 9, C * k), out=reshaped(out, -1, C * k))

    def transpose_weights(
        self,
        do: Calls,
        matrix: np.ndarray,
        channels: slice,
        scratch: np.ndarray,
        memory: np.ndarray,
        rows: int,
    ) -> np.ndarray:
        """Record what ``transform_weights`` does, for the backward pass; return an array (P, P, O, k).

        Parameters
        ----------
        do, matrix, scratch
            As above.
        channels : slice
            k channels of the input.
        memory : array of ``room_for(P*P, O * k)`` numbers, or more
            Where the result goes.
        rows : int
            Of the matrix that it will be multiplied with. With few of them a product with a transposed matrix
            takes less time than transposing it.
        """
        few = rows <= FEW_ROWS_TO_TRANSPOSE
        w = self.conv.weight.data[:, :, channels]  # (3, 3, k, O)
        w = w if few else w.swapaxes(2, 3)
        P = math.isqrt(len(matrix))
        U = in_planes(memory, P, P, *w.shape[2:])  # (P, P, k, O) or (P, P, O, k)
        self.transform_weights(do, matrix, w, scratch, U)
        return U.swapaxes(2, 3) if few else U


def is_padded_3x3(group: Group, context: PlanContext) -> bool:
    """Tell whether a group is a 3 x 3 convolution that keeps the image's size, in float32."""
    conv = group.main
    if not isinstance(conv, Conv2d) or context.dtype != np.float32:
        return False
    return conv.kernel_size == 3 and conv.stride == 1 and conv.padding == 1


def column_blocks(columns: int, width: int = COLUMNS) -> list[slice]:
    """Cut columns of a matrix into blocks of ``width``; a last one that is narrow stays narrow."""
    return [slice(c, min(c + width, columns)) for c in range(0, columns, width)]
