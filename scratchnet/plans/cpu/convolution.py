"""What the kernels of a convolution share."""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchnet.layers import BatchNorm2d, Conv2d
from scratchnet.plans.cpu.blocks import COLUMNS, small_matmul
from scratchnet.plans.cpu.calls import Calls, Phase, reshaped
from scratchnet.plans.cpu.fold import Fold
from scratchnet.plans.cpu.kernel import Kernel
from scratchnet.plans.cpu.planes import in_planes, room_for
from scratchnet.plans.kernel import Group, PlanContext
from scratchnet.plans.memory import Arena, Buffer

FEW_ROWS_TO_TRANSPOSE = 32  # see ``record_dV``


class Convolution(Kernel):
    """A convolution from C to O channels, with what is folded into it and follows it."""

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        conv, norm = self.group.main, self.group.norm
        assert isinstance(conv, Conv2d) and (norm is None or isinstance(norm, BatchNorm2d))
        self.conv = conv
        self.C, self.O = conv.in_channels, conv.out_channels
        self.fold = Fold(conv, norm)
        # Its weight and bias, unless they are frozen (or there is no bias).
        self.trained_weight = conv.weight if conv.weight.trainable else None
        self.trained_bias = conv.bias if conv.bias is not None and conv.bias.trainable else None


class Transformed(Convolution):
    """3 x 3 convolution, stride 1, padding 1, by P x P products with transformed weights, U = m w m^T.

    They are made for blocks of columns: in inference once, as far as memory goes, otherwise in each pass.
    ``record_products`` and ``record_dV`` make a block just before they need it, so that no more of U exists
    at a time than one per worker. Both axes of the kernel are transformed at once, since weights are small:
    with the two made one, U is kron(m, m) times w.
    """

    takes = "norm", "activation", "pool"
    P: int
    matrix: np.ndarray  # kron(m, m), (P*P, 9)
    columns: list[slice]  # the blocks
    U: list[Buffer]  # of each worker: a block (P, P, C, k)
    UT: list[Buffer]  # of each worker: a block of U transposed (P, P, O, k)

    @classmethod
    def supports(cls, groups: list[Group], i: int, context: PlanContext) -> bool:  # noqa: D102
        return is_padded_3x3(groups[i], context)

    @property
    def weight_bytes(self) -> int:  # noqa: D102
        return 4 * sum(room_for(self.P**2, self.C * (b.stop - b.start)) for b in self.columns)

    def reserve_weights(self, arena: Arena, forward: int, backward: int | None) -> None:
        """Ask for what transforming takes; for each worker and block, weights are packed (3, 3, C, k)."""
        self.w = self.per_worker(arena, "w", (room_for(9, self.C * COLUMNS),), forward)
        self.kept_U: list[np.ndarray] = []
        if self.keeps_weights:  # from one forward to the next, so not in the shared memory
            self.kept_U = self.cut(np.empty(self.weight_bytes // 4, np.float32), self.C, self.columns)
        if backward is not None:
            self.back_columns = column_blocks(self.C)  # of U transposed, (O, C)
            self.back_w = self.per_worker(arena, "w", (room_for(9, self.O * COLUMNS),), backward)

    def reserve_blocks(self, arena: Arena, forward: int, backward: int | None) -> None:
        """Ask for the blocks that ``record_products`` and ``record_dV`` make."""
        size = self.P**2
        if not self.keeps_weights:
            self.U = self.per_worker(arena, "U", (room_for(size, self.C * COLUMNS),), forward)
        if backward is not None:
            self.UT = self.per_worker(arena, "UT", (room_for(size, self.O * COLUMNS),), backward)

    def cut(self, memory: np.ndarray, rows: int, blocks: list[slice]) -> list[np.ndarray]:
        """Return an array (P, P, rows, k) for each block of k columns, one after the other in memory."""
        arrays, start = [], 0
        for block in blocks:
            k = block.stop - block.start
            arrays.append(in_planes(memory[start:], self.P, self.P, rows, k))
            start += room_for(self.P**2, rows * k)
        return arrays

    def record_weights(self) -> list[Phase]:  # noqa: D102
        phase = self.phase("weights")
        self.fold.write(phase.workers[0])
        return [phase, self.transform_all(self.kept_U)] if self.keeps_weights else [phase]

    def transform_all(self, U: list[np.ndarray]) -> Phase:
        """Return the phase that computes U, in blocks of ``columns``."""
        phase = self.phase("weights")
        for worker, b, columns in self.dealt(self.columns):
            self.transform_columns(phase.workers[worker], worker, columns, U[b])
        return phase

    def transform_columns(self, do: Calls, worker: int, columns: slice, U: np.ndarray) -> None:
        """Record U (P, P, C, k) of some columns of the weights, as the forward pass multiplies with it."""
        self.transform(do, self.conv.weight.data[..., columns], self.w[worker].array, U)
        self.fold.scale(do, U, columns)

    def transform(self, do: Calls, w: np.ndarray, scratch: np.ndarray, out: np.ndarray) -> None:
        """Record out (P, P, C, k) = m w m^T, for w (3, 3, C, k), or with channels in another order."""
        C, k = w.shape[2:]
        packed = in_planes(scratch, 3, 3, C, k)
        do.copy(w, out=packed)
        small_matmul(do, self.matrix, reshaped(packed, 9, C * k), out=reshaped(out, -1, C * k))

    def record_products(
        self, phase: Phase, V: np.ndarray, M: np.ndarray, bias: np.ndarray | None = None
    ) -> None:
        """Record M = V U, block by block, for V (P, P, T, C) and M (P, P, T, O); M[0, 0] gets the bias."""
        for worker, b, columns in self.dealt(self.columns):
            do = phase.workers[worker]
            if self.keeps_weights:
                U = self.kept_U[b]
            else:
                U = in_planes(self.U[worker].array, self.P, self.P, self.C, columns.stop - columns.start)
                self.transform_columns(do, worker, columns, U)
            self.product(do, V, U, out=M[..., columns])
            if bias is not None:
                do(np.add, M[0, 0, :, columns], bias[columns], out=M[0, 0, :, columns])

    def record_dV(self, phase: Phase, dM: np.ndarray, dV: np.ndarray) -> None:
        """Record dV = dM U^T, block by block, for dM (P, P, T, O) and dV (P, P, T, C).

        With few rows T a product with a transposed matrix takes less time than transposing it.
        """
        P, few = self.P, dM.shape[2] <= FEW_ROWS_TO_TRANSPOSE
        for worker, _, columns in self.dealt(self.back_columns):
            do, w = phase.workers[worker], self.conv.weight.data[:, :, columns]  # (3, 3, k, O)
            w = w if few else w.swapaxes(2, 3)
            U = in_planes(self.UT[worker].array, P, P, *w.shape[2:])  # (P, P, k, O) or (P, P, O, k)
            self.transform(do, w, self.back_w[worker].array, U)
            self.product(do, dM, U.swapaxes(2, 3) if few else U, out=dV[..., columns])


def is_padded_3x3(group: Group, context: PlanContext) -> bool:
    """Tell whether a group is a 3 x 3 convolution that keeps the image's size, in float32."""
    conv = group.main
    if not isinstance(conv, Conv2d) or context.dtype != np.float32:
        return False
    return conv.kernel_size == 3 and conv.stride == 1 and conv.padding == 1


def column_blocks(columns: int, width: int = COLUMNS) -> list[slice]:
    """Cut columns of a matrix into blocks of ``width``; a last one that is narrow stays narrow."""
    return [slice(c, min(c + width, columns)) for c in range(0, columns, width)]
