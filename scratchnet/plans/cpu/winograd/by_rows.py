"""Winograd's algorithm by rows: with few channels, the weights are small and the maps are large.

Each worker takes a part, a row of tiles or a few, through everything: input transform, 36 products and output
transform, in its cache. All weights are transformed first, and stay in the cache from part to part. Backward
the same: dy, dW and dx of a part, for which V is made again: to keep it would take more than twice the memory
of the map. Each worker adds up a dU of its own, and dw is the transform of their sum.
"""

from __future__ import annotations

import numpy as np

from scratchnet.plans.cpu.calls import Phase, reshaped
from scratchnet.plans.cpu.kernel import sum_over_workers
from scratchnet.plans.cpu.planes import in_planes, room_for
from scratchnet.plans.cpu.winograd.base import WinogradBase, own_columns, with_clear
from scratchnet.plans.memory import Arena


class ByRows(WinogradBase):
    """A part at a time, through all steps."""

    def describe(self) -> str:  # noqa: D102
        return f"by rows, {self.largest} of {self.T} tiles at a time, {super().describe()}"

    @property
    def tiles_at_once(self) -> int:  # noqa: D102
        return self.largest

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        super().reserve(arena, forward, backward)
        C, O, T = self.C, self.O, self.largest
        # Of each worker, for one part: V (6, 6, T, C) and M (6, 6, T, O).
        self.V = self.per_worker(arena, "V", (room_for(self.P**2, T * C),), forward)
        self.M = self.per_worker(arena, "M", (room_for(self.P**2, T * O),), forward)
        if not self.keeps_weights:  # all of U, in blocks of columns (6, 6, C, k)
            self.all_U = arena.reserve("U", (self.weight_bytes // 4,), np.float32, forward, forward)
        if backward is None:
            return
        # Of each worker, for one part: V, later dV over it, (6, dV_width, T, C), and dM (6, 6, T, O).
        self.back_half_V = self._reserve_half_V(arena, backward)
        self.dV = self.per_worker(arena, "dV", (room_for(self.P * self.dV_width, T * C),), backward)
        self.dM = self.per_worker(arena, "dM", (room_for(self.P**2, T * O),), backward)
        # Of each worker: the sum of dU (6, 6, C, O) over its parts, and the dU of one part.
        self.dU = self.per_worker(arena, "dU", (2, room_for(self.P**2, C * O)), backward)
        # All of U transposed, in blocks of columns (6, 6, O, k).
        room = sum(room_for(self.P**2, O * (b.stop - b.start)) for b in self.back_columns)
        self.all_UT = arena.reserve("UT", (room,), np.float32, backward, backward)

    def record_forward(self) -> list[Phase]:  # noqa: D102
        phase = self.phase("rows of tiles")
        phases, U = [phase], self.kept_U
        if not self.keeps_weights:
            U = self.cut(self.all_U.array, self.C, self.columns)
            phases.insert(0, self.transform_all(U))
        for worker, parts in enumerate(self.parts_evenly()):
            do = phase.workers[worker]
            for part, clear in with_clear(parts):
                V = in_planes(self.V[worker].array, self.P, self.P, part.T, self.C)
                M = in_planes(self.M[worker].array, self.P, self.P, part.T, self.O)
                self.transform_input(do, part, part.by_vectors(V), self.half_V[worker], clear=clear)
                for columns, U_block in zip(self.columns, U, strict=True):
                    self.product(do, V, U_block, out=M[..., columns])
                self.transform_output(do, worker, part, part.by_vectors(M))
        return phases

    def record_backward(self) -> list[Phase]:  # noqa: D102
        weights, main, last = (self.phase(n) for n in ("weights", "rows of tiles", "sum over workers"))
        UT = self.cut(self.all_UT.array, self.O, self.back_columns)
        for worker, b, columns in self.dealt(self.back_columns):
            w = self.conv.weight.data[:, :, columns].transpose(0, 1, 3, 2)  # (3, 3, O, k)
            self.transform(weights.workers[worker], w, self.back_w[worker].array, UT[b])
        for worker, parts in enumerate(self.parts_by_chunk()):
            do = main.workers[worker]
            total, one = (in_planes(dU, self.P, self.P, self.C, self.O) for dU in self.dU[worker].array)
            if not parts:
                do.copy(0, out=total)
            for k, (part, clear) in enumerate(with_clear(parts)):
                dV = in_planes(self.dV[worker].array, self.P, self.dV_width, part.T, self.C)
                V = own_columns(dV)
                dM = in_planes(self.dM[worker].array, self.P, self.P, part.T, self.O)
                self.transform_dy(do, worker, part, part.by_vectors(dM))
                if self.trained_weight is not None:
                    self.transform_input(do, part, part.by_vectors(V), self.back_half_V[worker], clear=clear)
                    self.product(do, V.swapaxes(-1, -2), dM, out=one if k else total)
                    if k:
                        do(np.add, total, one, out=total)
                # dV, over V, which is no longer needed.
                for columns, U_block in zip(self.back_columns, UT, strict=True):
                    self.product(do, dM, U_block, out=V[..., columns])
                self.transform_dV(do, worker, part, part.by_vectors(dV), clear=clear)
        self.sum_db(last.workers[0])
        for worker, some in self.shares(self.C * self.O) if self.trained_weight is not None else ():
            totals = (in_planes(dU.array[0], self.P, self.P, self.C * self.O) for dU in self.dU)
            do, dUs = last.workers[worker], [total[..., some] for total in totals]
            sum_over_workers(do, dUs, out=dUs[0])
            dweight = self.conv.weight.grad_view.reshape(9, -1)[:, some]
            self.transforms.dU_transform(do, reshaped(dUs[0], self.P**2, -1), dweight)
        return [weights, main, last]
