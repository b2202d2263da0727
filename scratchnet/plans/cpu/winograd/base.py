"""What both orders of work share: a convolution divided into parts, their transforms, and their scratch.

All shapes are those for tiles of 4 pixels; for tiles of 6 read 6 for 4, 8 for 6 and 10 for 8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchnet.plans.cpu import padding
from scratchnet.plans.cpu.blocks import COLUMNS, rows_of_block
from scratchnet.plans.cpu.calls import Calls, Phase, reshaped, split_evenly
from scratchnet.plans.cpu.convolution import Transformed, column_blocks
from scratchnet.plans.cpu.epilogue import Epilogue, Region
from scratchnet.plans.cpu.kernel import first_of
from scratchnet.plans.cpu.layouts import Tiles
from scratchnet.plans.cpu.planes import room_for
from scratchnet.plans.cpu.winograd.derivation import ERROR
from scratchnet.plans.cpu.winograd.transforms import TRANSFORMS
from scratchnet.plans.memory import Arena, Buffer

# V and M of the rows of tiles that go together have about this many bytes, so that they stay in the caches,
# and there are not too many calls.
PART_BYTES = 9 << 18


@dataclass(frozen=True)
class Part:
    """Some rows of tiles of one chunk, which are transformed together."""

    index: int  # among all parts
    chunk: int
    region: Region  # its output pixels
    tiles: slice  # where its tiles stand among all tiles of the batch

    @property
    def R(self) -> int:
        """Rows of tiles."""
        return self.region.shape[0]

    @property
    def row(self) -> int:
        """The first of them."""
        return self.region.row

    @property
    def T(self) -> int:
        """Tiles."""
        return self.tiles.stop - self.tiles.start

    def by_vectors(self, planes: np.ndarray) -> np.ndarray:
        """Return its matrices (..., T, channels) as the transforms see them, (..., R, L): a view."""
        *axes, T, channels = planes.shape
        return reshaped(planes, *axes, self.R, T // self.R * channels)


class WinogradBase(Transformed):
    """3 x 3 convolution, stride 1, padding 1 [+ norm] [+ activation] [+ 2 x 2 max pooling], from tiles."""

    reads_border = True
    input: Tiles

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.tile = self.input.size
        self.algorithm = f"winograd{self.tile}"
        self.transforms = TRANSFORMS[self.tile]
        self.P, self.matrix = self.transforms.window, self.transforms.G2
        self.parts = self._divide()
        self.T, self.largest = self.parts[-1].tiles.stop, max(part.T for part in self.parts)  # in tiles
        self.columns = column_blocks(self.O, self._columns_at_once())
        # Columns that dV has for each row of windows: its own six, and one from either neighbour.
        self.dV_width = self.P if self.input.TW == 1 else self.P + 2
        # Where the output has tiles, too, and nothing is pooled, the output transform writes into the map,
        # and the gradient is read from it. Otherwise an epilogue stores the output.
        y = self.output
        self.tiles_out = y if type(y) is type(self.input) and self.group.pool is None else None
        self.writes_whole_tiles = self.tiles_out is not None
        longest = max(part.T // part.R for part in self.parts) * self.O
        self.bias = None if self.fold.bias is None else np.zeros(longest, np.float32)  # of a whole vector
        self.epilogue = Epilogue(self, self.bias)

    def describe(self) -> str:  # noqa: D102
        return f"error {ERROR[self.tile]:.1e}"

    def _divide(self) -> list[Part]:
        """Divide each chunk into parts, as many for each worker."""
        x, workers = self.input, self.context.workers
        parts: list[Part] = []
        T = 0
        for c, images in enumerate(x.chunks):
            per_row = x.TW * len(images)
            per_worker = x.TH * len(x.chunks) // workers  # rows of tiles
            fitting = PART_BYTES // (4 * self.P**2 * (self.C + self.O)) // per_row
            count = -(-x.TH // max(1, min(x.TH, per_worker, fitting)))
            while count < x.TH and count * len(x.chunks) % workers:
                count += 1
            for rows in split_evenly(x.TH, count):
                shape = (len(rows), self.tile, self.tile, per_row * self.O)
                region = Region("tiles", images, shape, rows.start, x.TW)
                parts.append(Part(len(parts), c, region, slice(T, T + len(rows) * per_row)))
                T += len(rows) * per_row
        return parts

    @property
    def tiles_at_once(self) -> int:
        """How many tiles one product has."""
        raise NotImplementedError

    def _columns_at_once(self) -> int:
        """Return how many columns a block of U has: half as many, where all tiles are then one block of rows.

        U is read once for each block of rows, from memory if it was kept. For one image of 224 px, 28 x 28
        pixels and 512 channels, that makes it 2.4 ms in place of 2.7.
        """
        limit, T = self.context.block_limit, self.tiles_at_once
        whole = [rows_of_block(T, limit // (n * self.C)) == T for n in (COLUMNS, COLUMNS // 2)]
        return COLUMNS // 2 if whole == [False, True] else COLUMNS

    # Memory

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        C, O, T = self.C, self.O, self.largest
        # Of each worker, for one part.
        self.half_V = self._reserve_half_V(arena, forward)
        self.half_y = self.per_worker(arena, "half y", (self._room(self.tile, self.P, O),), forward)  # A^T M
        self.y = self.per_worker(arena, "y", (self.tile * self.tile * T * O,), forward)  # (R, 4, 4, L)
        self.reserve_weights(arena, forward, backward)
        self.epilogue.reserve(arena, [part.region for part in self.parts], forward, backward)
        if backward is None:
            return
        self.half_dM = self.per_worker(
            arena, "half dM", (self._room(self.P, self.tile, O),), backward
        )  # A dy
        self.dy = self.per_worker(arena, "dy", (self.tile * self.tile * T * O,), backward)  # (R, 4, 4, L)
        self.db = arena.reserve("db", (len(self.parts), O), np.float32, backward, backward)
        # dV B^T of a whole chunk, with a row of zeros above and below: (6*TH + 2, 4, L).
        longest = max(self.input.TW * len(images) * C for images in self.input.chunks)
        shape = (self.P * self.input.TH + 2, self.tile * longest)
        self.half_dx = self.per_worker(arena, "half dx", shape, backward)
        self.reserve_mask(arena, backward)

    def _reserve_half_V(self, arena: Arena, step: int) -> list[Buffer]:
        """Ask for B^T x, transformed along the rows of pixels: for each worker and part (R, 6, 6, L)."""
        return self.per_worker(arena, "half V", (self._room(self.P, self.P, self.C),), step)

    def _room(self, rows: int, columns: int, channels: int) -> int:
        """Return the size of scratch for any part's (R, rows, columns, L)."""
        return max(room_for(part.R * rows, columns * part.T // part.R * channels) for part in self.parts)

    # The transforms of one part

    def transform_input(self, do: Calls, part: Part, V: np.ndarray, half_V: Buffer, *, clear: bool) -> None:
        """Record V = B^T x B; V has the axes (6, 6, R, L)."""
        rows = self.input.chunk(part.chunk)[self.tile * part.row : self.tile * (part.row + part.R) + 2]
        self.transforms.input_transform(do, rows, half_V.array, V, clear=clear)

    def transform_output(self, do: Calls, worker: int, part: Part, M: np.ndarray) -> None:
        """Record y = A^T M A, and what follows; M has the axes (6, 6, R, L)."""
        shape = part.R, self.tile, self.tile, M.shape[-1]
        if self.tiles_out is None:
            y = first_of(self.y[worker], *shape)
            self.transforms.output_transform(do, M, self.half_y[worker].array, y)
            self.epilogue.record_forward(do, worker, part.region, y)
            return
        rows = self.tiles_out.chunk(part.chunk)[
            1 + self.tile * part.row : 1 + self.tile * (part.row + part.R)
        ]
        y = reshaped(rows, *shape)
        self.transforms.output_transform(do, M, self.half_y[worker].array, y)
        self.epilogue.record_activation(do, y)
        padding.clear_beyond(do, self.tiles_out, rows, self.tile * part.row)

    def transform_dy(self, do: Calls, worker: int, part: Part, dM: np.ndarray) -> None:
        """Record dM = A dy A^T, and db = sum of dy; dM has the axes (6, 6, R, L)."""
        if self.tiles_out is not None:
            dy = self.tiles_out.grad_chunk(part.chunk)[self.tile * part.row : self.tile * (part.row + part.R)]
        else:
            dy = first_of(self.dy[worker], *part.region.shape)
            self.epilogue.record_backward(do, worker, part.region, dy)
        if self.trained_bias is not None:
            pixels = reshaped(dy, -1, self.O)  # (16*T, O)
            do(np.matmul, np.ones(len(pixels), np.float32), pixels, out=self.db.array[part.index])
        self.transforms.dy_transform(do, dy, self.half_dM[worker].array, dM)

    def sum_db(self, do: Calls) -> None:
        """Record db = its sum over parts."""
        if self.trained_bias is not None:
            do(np.add.reduce, self.db.array, 0, None, out=self.trained_bias.grad_view)

    def transform_dV(self, do: Calls, worker: int, part: Part, dV: np.ndarray, *, clear: bool) -> None:
        r"""Record dx = B dV B^T, where dV has the axes (6, dV_width, R, L).

        Parts of a chunk come in order, on one worker. First the columns: of this part's rows of tiles, six
        rows each, into half_dx. Then the rows, of all tiles whose neighbours above and below are there by
        now::

            half_dx    0 | 0 1 2 3 4 5 | 0 1 2 3 4 5 | 0 1 ...    zeros, six for each row of tiles, zeros
                       [-----------------]                        tile row 0 needs these eight
                                     [-----------------]          tile row 1 these
        """
        L, TH = dV.shape[-1], self.input.TH
        half_dx = first_of(self.half_dx[worker], self.P * TH + 2, self.tile, L)
        if part.row == 0:
            do.copy(0, out=half_dx[0])
            do.copy(0, out=half_dx[-1])
        own = half_dx[1 + self.P * part.row : 1 + self.P * (part.row + part.R)]
        self.transforms.dV_columns(do, dV, self.input.TW, own, clear=clear)

        first = max(0, part.row - 1)
        stop = TH if part.row + part.R == TH else part.row + part.R - 1
        if first >= stop:
            return
        dx = self.input.grad_chunk(part.chunk)[self.tile * first : self.tile * stop]
        x = self.input.chunk(part.chunk)[1 + self.tile * first : 1 + self.tile * stop]
        self.transforms.dV_rows(do, half_dx[self.P * first : self.P * stop + 2], dx)
        flat = reshaped(dx, -1, self.tile * L), reshaped(x, -1, self.tile * L)
        self.mask_gradient(do, worker, *flat)
        if stop == TH:
            padding.clear_gradient_beyond(do, self.input, self.input.grad_chunk(part.chunk))

    def record_weights(self) -> list[Phase]:  # noqa: D102
        phases = super().record_weights()
        if self.bias is not None:
            phases[0].workers[0].copy(self.fold.bias, out=self.bias.reshape(-1, self.O))
        return phases

    # Division among workers

    def parts_evenly(self) -> list[list[Part]]:
        """Divide parts among workers."""
        return [[self.parts[k] for k in some] for some in split_evenly(len(self.parts), self.context.workers)]

    def parts_by_chunk(self) -> list[list[Part]]:
        """Divide parts among workers so that each chunk stays on one worker."""
        workers = split_evenly(len(self.input.chunks), self.context.workers)
        return [[part for part in self.parts if part.chunk in chunks] for chunks in workers]


def own_columns(dV: np.ndarray) -> np.ndarray:
    """Return the six columns of dV (6, dV_width, T, C) that are a window's own."""
    return dV[:, 1:-1] if dV.shape[1] > dV.shape[0] else dV


def with_clear(parts: Iterable[Part]) -> Iterator[tuple[Part, bool]]:
    """Yield each part, and whether to write the zeros in scratch: after a part of another shape."""
    shape = None
    for part in parts:
        yield part, part.region.shape != shape
        shape = part.region.shape
