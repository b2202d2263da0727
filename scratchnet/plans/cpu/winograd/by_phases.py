"""Winograd's algorithm by phases: with many channels, the weights are larger than the maps.

Each step is made for the whole batch before the next: all input transforms, all products, all output
transforms. In the products each worker takes some of the columns of U, which it transforms just before it
needs them; so no more of U exists at a time than a block of columns per worker. In training V is kept for the
backward pass, which makes dW from it: there a block is some of V's channels, that is some rows of dU.
"""

from __future__ import annotations

import numpy as np

from scratchnet.plans.cpu.calls import Phase, reshaped
from scratchnet.plans.cpu.convolution import column_blocks
from scratchnet.plans.cpu.kernel import first_of
from scratchnet.plans.cpu.planes import in_planes, room_for
from scratchnet.plans.cpu.winograd.base import WinogradBase, own_columns, with_clear
from scratchnet.plans.memory import Arena

ROWS_OF_DU = 64  # how many channels a block of dW has, at most


class ByPhases(WinogradBase):
    """All parts, a step at a time."""

    def describe(self) -> str:  # noqa: D102
        return f"by phases, transforms of {self.largest} of {self.T} tiles at a time, {super().describe()}"

    @property
    def tiles_at_once(self) -> int:  # noqa: D102
        return self.T

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        super().reserve(arena, forward, backward)
        C, O, T = self.C, self.O, self.T
        # Of the whole batch: V (6, 6, T, C), until dW is made from it, and M (6, 6, T, O).
        until = forward if backward is None else backward
        self.V = arena.reserve("V", (room_for(self.P**2, T * C),), np.float32, forward, until)
        self.M = arena.reserve("M", (room_for(self.P**2, T * O),), np.float32, forward, forward)
        self.reserve_blocks(arena, forward, backward)
        if backward is None:
            return
        # Of the whole batch: dV (6, dV_width, T, C) and dM (6, 6, T, O).
        room = room_for(self.P * self.dV_width, T * C)
        self.dV = arena.reserve("dV", (room,), np.float32, backward, backward)
        self.dM = arena.reserve("dM", (room_for(self.P**2, T * O),), np.float32, backward, backward)
        # Of each worker: k channels of V, packed (6, 6, T, k), and their rows of dU, (6, 6, k, O).
        self.rows_of_dU = column_blocks(C, max(1, min(ROWS_OF_DU, -(-C // self.context.workers))))
        k = self.rows_of_dU[0].stop
        self.packed_V = self.per_worker(arena, "some channels of V", (self.P**2 * T * k,), backward)
        self.dU = self.per_worker(arena, "dU", (room_for(self.P**2, k * O),), backward)

    def record_forward(self) -> list[Phase]:  # noqa: D102
        first, second, third = self.phase("input"), self.phase("product"), self.phase("output")
        V = in_planes(self.V.array, self.P, self.P, self.T, self.C)
        M = in_planes(self.M.array, self.P, self.P, self.T, self.O)
        for worker, parts in enumerate(self.parts_evenly()):
            for part, clear in with_clear(parts):
                V_part, M_part = (part.by_vectors(planes[:, :, part.tiles]) for planes in (V, M))
                do = first.workers[worker]
                self.transform_input(do, part, V_part, self.half_V[worker], clear=clear)
                self.transform_output(third.workers[worker], worker, part, M_part)
        self.record_products(second, V, M)
        return [first, second, third]

    def record_backward(self) -> list[Phase]:  # noqa: D102
        first, second, third, fourth = (self.phase(name) for name in ("dM", "dW", "dV", "dx"))
        V = in_planes(self.V.array, self.P, self.P, self.T, self.C)  # as the forward pass has left it
        dV = in_planes(self.dV.array, self.P, self.dV_width, self.T, self.C)
        dM = in_planes(self.dM.array, self.P, self.P, self.T, self.O)
        for worker, parts in enumerate(self.parts_by_chunk()):
            for part in parts:
                dM_part, dV_part = (part.by_vectors(planes[:, :, part.tiles]) for planes in (dM, dV))
                self.transform_dy(first.workers[worker], worker, part, dM_part)
                self.transform_dV(fourth.workers[worker], worker, part, dV_part, clear=True)

        for worker, _, rows in self.dealt(self.rows_of_dU if self.trained_weight is not None else ()):
            do, k = second.workers[worker], rows.stop - rows.start
            dU = in_planes(self.dU[worker].array, self.P, self.P, k, self.O)
            # Packed, since channels that lie a power of two apart would compete for places in the cache.
            packed = first_of(self.packed_V[worker], self.P, self.P, self.T, k)
            do.copy(V[..., rows], out=packed)
            self.product(do, packed.swapaxes(-1, -2), dM, out=dU)
            dw = reshaped(self.conv.weight.grad_view.reshape(9, self.C, self.O)[:, rows], 9, k * self.O)
            self.transforms.dU_transform(do, reshaped(dU, self.P**2, k * self.O), dw)
        self.sum_db(second.workers[-1])
        self.record_dV(third, dM, own_columns(dV))
        return [first, second, third, fourth]
