r"""Winograd's algorithm F(4x4, 3x3): a 3 x 3 convolution with 36 multiplications for 16 outputs, not 144.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks" (2016), sec. 4.1 and 4.3.

Symbols beyond those of ``layouts.py``: T tiles (T = R * TW * n for R rows of tiles of a chunk), O outputs,
"run" = TW * n * C (or O) numbers that lie next to each other.

**One dimension.** Four neighbouring outputs of a kernel of three, y[i] = sum over j of x[i+j] g[j], take six
multiplications (the * below) in place of twelve::

    y = A^T [ (G g) * (B^T x) ]

Each multiplication belongs to a point p: a polynomial of degree five is known by its values at six points.
With infinity as the sixth, and N(p) the product of p - q over the other points q (Toom and Cook's algorithm,
transposed; Blahut, "Fast algorithms for signal processing", sec. 5.4)::

    point                    p                                       infinity
    its column of A^T        1, p, p^2, p^3                          0, 0, 0, 1
    its row of G             1, p, p^2, over N(p)                    0, 0, 1
    its row of B^T           coefficients, lowest first, of the      of the product of z - q over all q
                             product of z - q over the other q

Why: let polynomials g(z), of degree 2, and a(z), of degree 3, have the product s(z), of degree 5. Six values
fix it: s(p) = g(p) a(p) at five points, and its leading coefficient g2 a3, its value "at infinity". By
Lagrange::

    s(z) = sum over p of g(p) a(p) / N(p) * (product of z - q over the others)
           + g2 a3 * (product of z - q over all q)

As matrices, s = B [ (G g) * (A a) ]: A evaluates a, G evaluates g and divides by N(p), and the columns of B
have the coefficients of the products. For a fixed g that is s = S a with S = B diag(G g) A, and by the
definition of a product S[i+j, i] = g[j]. So y = S^T x: the same three factors, transposed and in reverse
order.

Any points will do in exact arithmetic. In float32 they decide how much larger the numbers in between are than
the result, and so how much of it is lost. Lavin and Gray take 0, 1, -1, 2, -2. With POINTS, which are 0 and
two pairs whose sizes lie about evenly on both sides of 1, the error is less than half of theirs
(``test_kernels.py`` measures it; Barabasz et al. 2020 and Alam et al. 2022 search for such points).
And with eighths all entries of A and B are exact in float32.

**Two dimensions.** The same along rows and along columns, for tiles of 4 x 4 outputs::

    V = B^T x B      6 x 6 from 6 x 6 input pixels: the tile and one pixel around it
    U = G g G^T      6 x 6 from the 3 x 3 kernel
    M = U * V        number by number
    y = A^T M A      4 x 4 output pixels

**Channels.** M is summed over input channels before the inverse transform, which is linear. So for each of
the 36 places there is a matrix product, over all tiles at once, and that is nearly all of the work::

    M[i, j] (T, O)  =  V[i, j] (T, C)  U[i, j] (C, O)                36 T C O, where im2col has 144 T C O

V[i, j] is seen in two ways, without a copy: by the transforms as runs, (R, run), and by the product as a
matrix (T, C). It is the same memory, since run = TW * n * C and T = R * TW * n. The 36 matrices do not
lie one straight after the other, see ``planes.py``.

**Backward.** Each step is linear in each of its operands, so its gradient is the adjoint (Lavin and Gray do
another thing, a convolution with the turned kernel; this one shares a transform)::

    dM = A dy A^T        dU = V^T dM        dg = G^T dU G
                         dV = dM U^T        dx = B dV B^T, added up where the input tiles overlap

dM is shared by both.

**Transforms are matrix products, too**: B^T, with six rows, times six long runs of neighbouring numbers (see
``layouts.py`` for why they are). A tile's six rows of pixels are there; of its six columns, four are its own
phases, and the outer two are phase 3 of the tile before and phase 0 of the tile behind. In a row of tiles
that is the same run moved by one tile, n * C numbers, so it takes a copy::

    slot                    0                   1   2   3   4             5
    buffer t    [ phase 3 of the tile before | 0 | 1 | 2 | 3 | phase 0 of the tile behind ]

with zeros beyond the picture.

**Order of work.** A batch is divided into chunks (of n images), a chunk into parts (of R rows of tiles); a
part's output is one ``Block``. With few channels the weights are small and the maps are large: each worker
takes a row or a few rows of tiles through everything, transform, product and inverse, in its cache ("by
rows"), and V is made again in the backward pass. With many channels the weights are larger than the maps:
then the phases follow each other for the whole batch, and in the product each worker takes some of the
columns of U, which it transforms just before it needs them ("by phases"), and V is kept for the backward
pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchnet.plans.cpu.blocks import COLUMNS, rows_of_block, small_matmul
from scratchnet.plans.cpu.calls import Calls, Phase, reshaped, split_evenly
from scratchnet.plans.cpu.epilogue import Block, Epilogue
from scratchnet.plans.cpu.fold import Fold
from scratchnet.plans.cpu.kernel import (
    Kernel,
    PlanContext,
    column_blocks,
    first_of,
    is_padded_3x3,
    sum_over_workers,
)
from scratchnet.plans.cpu.layouts import Tiles
from scratchnet.plans.cpu.planes import in_planes, room_for
from scratchnet.plans.grouping import Group
from scratchnet.plans.memory import Arena

POINTS = 0, 5 / 8, -5 / 8, 3 / 2, -3 / 2


def matrices(points: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return B^T (6, 6), G (6, 3) and A^T (4, 6) for five points and infinity, in float64.

    Examples
    --------
    >>> BT, G, AT = matrices((0, 1, -1, 2, -2))
    >>> BT[0]
    array([ 4.,  0., -5.,  0.,  1.,  0.])
    >>> d, g = np.arange(6.0) ** 2, np.array([1.0, 2.0, 3.0])
    >>> (AT @ ((G @ g) * (BT @ d))).round(9), np.correlate(d, g)
    (array([ 14.,  36.,  70., 116.]), array([ 14.,  36.,  70., 116.]))
    """
    BT, G, AT = np.zeros((6, 6)), np.zeros((6, 3)), np.zeros((4, 6))
    for i, p in enumerate(points):
        others = [q for q in points if q != p]
        BT[i, :5] = np.poly(others)[::-1]  # the coefficients of a polynomial with these roots
        G[i] = p ** np.arange(3.0) / np.prod([p - q for q in others])
        AT[:, i] = p ** np.arange(4.0)
    BT[5], G[5, 2], AT[3, 5] = np.poly(points)[::-1], 1.0, 1.0
    return BT, G, AT


_BT, _G, _AT = matrices(POINTS)
BT = _BT.astype(np.float32)  # (6, 6)
AT = _AT.astype(np.float32)  # (4, 6)
A = np.ascontiguousarray(AT.T)  # (6, 4)
# Both dimensions at once, for the weights, which are small: U (36, C*O) = G2 (36, 9) w (9, C*O).
G2 = np.kron(_G, _G).astype(np.float32)  # (36, 9)
G2T = np.ascontiguousarray(G2.T)  # (9, 36)
# If a row has only one tile, its outer columns are padding: slots 1 to 4 are all.
BT_INNER = np.ascontiguousarray(BT[:, 1:5])  # (6, 4)
B_INNER = np.ascontiguousarray(BT_INNER.T)  # (4, 6)
# The adjoint with overlaps, along one axis. A pixel of phase 0 is also in slot 5 of the tile before, and
# column 5 of B^T is zero but for row 5; one of phase 3 is also in slot 0 of the tile behind, and column 0 is
# zero but for row 0. So dx of a tile takes all six numbers of its own dV, and one from each neighbour's:
# (4, 8) times [dV[5] of t-1 | dV[0] .. dV[5] of t | dV[0] of t+1], the eight slots of dV.
B_OVERLAP = np.zeros((4, 8), np.float32)
B_OVERLAP[:, 1:7] = B_INNER
B_OVERLAP[0, 0] = BT[5, 5]
B_OVERLAP[3, 7] = BT[0, 0]

# Below FEWEST_PIXELS most of a tile's 4 x 4 outputs are not in the image; with fewer channels than
# FEWEST_CHANNELS the transforms are most of the work. And with fewer tiles than FEWEST_TILES reading the
# weights is most of the work: for inference they are four times as large as they were; training transforms
# them anyway, in the cache.
FEWEST_PIXELS, FEWEST_CHANNELS, FEWEST_TILES = 3, 4, 9
# By rows: V and M of the rows of tiles that go together have about this many bytes, so that they stay in
# the caches, and there are not too many calls; and transformed weights may have this many, so that they stay
# there from part to part.
PART = 9 << 18
WEIGHTS = 3 << 20
# By phases: dV (6 x 8 numbers a tile and channel) and dM (6 x 6) of the whole batch may have this many bytes;
# in training V (6 x 6) is kept besides. (Twice the batch would take twice the memory.)
PHASES = 160 << 20


@dataclass(frozen=True)
class Part:
    """Some rows of tiles of one chunk, which are transformed together.

    Attributes
    ----------
    chunk : int
    block : Block
        The output pixels.
    tiles : slice
        Where its tiles stand among all tiles of the batch.
    """

    chunk: int
    block: Block
    tiles: slice

    @property
    def R(self) -> int:
        """Rows of tiles."""
        return self.block.shape[0]

    @property
    def row(self) -> int:
        """The first of them."""
        return self.block.row

    @property
    def T(self) -> int:
        """Tiles."""
        return self.tiles.stop - self.tiles.start


class Winograd(Kernel):
    """3 x 3 convolution with stride 1 and padding 1 [+ ReLU] [+ 2 x 2 max pooling], from a map of tiles."""

    algorithm = "winograd"
    input_layout = "tiles"
    input: Tiles

    @classmethod
    def supports(cls, groups: list[Group], i: int, context: PlanContext) -> bool:  # noqa: D102
        return is_padded_3x3(groups[i], context)

    @classmethod
    def suits(cls, groups: list[Group], i: int, context: PlanContext) -> bool:  # noqa: D102
        group = groups[i]
        N, H, W, C = group.input_shape
        tiles = N * -(-H // 4) * -(-W // 4)
        return (
            cls.supports(groups, i, context)
            and min(H, W) >= FEWEST_PIXELS
            and min(C, group.main.out_channels) >= FEWEST_CHANNELS
            and (context.training or tiles >= FEWEST_TILES)
        )

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.conv, x = self.group.main, self.input
        self.C, self.O = self.conv.in_channels, self.conv.out_channels
        self.parts: list[Part] = []
        T = 0
        for c, images in enumerate(x.chunks):
            per_row = x.TW * len(images)
            for_all = x.TH * len(x.chunks) // self.context.workers  # rows for each worker
            most = max(1, min(x.TH, for_all, PART // (144 * (self.C + self.O)) // per_row))
            count = -(-x.TH // most)
            while count < x.TH and count * len(x.chunks) % self.context.workers:  # the same for each worker
                count += 1
            for rows in split_evenly(x.TH, count):
                shape = (len(rows), 4, 4, per_row * self.O)
                block = Block("tiles", images, shape, rows.start, x.TW)
                self.parts.append(Part(c, block, slice(T, T + len(rows) * per_row)))
                T += len(rows) * per_row
        self.T = T
        self.largest = max(part.T for part in self.parts)
        phases = T * (48 * self.C + 36 * self.O) * 4
        self.by_rows = 36 * self.C * self.O * 4 <= WEIGHTS or phases > PHASES
        self.columns = column_blocks(self.O, self._columns_at_once())
        self.slots = 6 if x.TW == 1 else 8  # of dV: its own six, and one from either neighbour
        # Direct: the output has tiles as well, so the inverse transform can write where the result belongs.
        self.direct = isinstance(self.output, Tiles) and self.group.pool is None
        if self.direct:
            self.output.filled = True
        # The bias of every number of a run.
        run = max(part.T // part.R for part in self.parts) * self.O
        self.fold = Fold(self.conv, self.group.norm)
        self.bias = None if self.fold.bias is None else np.zeros(run, np.float32)
        self.epilogue = Epilogue(self, self.bias)
        self.U: list[np.ndarray] = []

    def describe(self) -> str:  # noqa: D102
        return f"by {'rows' if self.by_rows else 'phases'}, {self.largest} of {self.T} tiles"

    @property
    def weight_bytes(self) -> int:  # noqa: D102
        return 4 * sum(room_for(36, self.C * (b.stop - b.start)) for b in self.columns)

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        C, O, T = self.C, self.O, self.largest
        kind = np.float32
        self.t = self.per_worker(arena, "t", (self._room(6, 6, C),), forward)  # B^T x, (R, 6, 6 slots, run)
        self.s = self.per_worker(arena, "s", (self._room(4, 6, O),), forward)  # A^T M, (R, 4, 6, run)
        self.y = self.per_worker(arena, "y", (16 * T * O,), forward)  # (R, 4, 4, run)
        blocks = [part.block for part in self.parts]
        self.epilogue.reserve(arena, blocks, forward, backward)
        if self.by_rows:
            self.V = self.per_worker(arena, "V", (room_for(36, T * C),), forward)
            self.M = self.per_worker(arena, "M", (room_for(36, T * O),), forward)
        else:
            until = forward if backward is None else backward  # it makes dW, too
            self.V = [arena.reserve("V", (room_for(36, self.T * C),), kind, forward, until)]
            self.M = [arena.reserve("M", (room_for(36, self.T * O),), kind, forward, forward)]
        self.w = self.per_worker(arena, "w", (room_for(9, C * COLUMNS),), forward)  # some columns, packed
        if self.keeps_weights:  # from one forward to the next, so not in the shared memory
            self.U = _cut(np.empty(self.weight_bytes // 4, kind), C, self.columns)
        elif self.by_rows:
            self.all_U = arena.reserve("U", (self.weight_bytes // 4,), kind, forward, forward)
        else:
            self.worker_U = self.per_worker(arena, "U", (room_for(36, C * COLUMNS),), forward)
        if backward is None:
            return

        self.back_columns = column_blocks(C)
        self.a = self.per_worker(arena, "a", (self._room(6, 4, O),), backward)  # A dy, (R, 6, 4, run)
        self.dy = self.per_worker(arena, "dy", (16 * T * O,), backward)
        run = max(self.input.TW * len(images) * C for images in self.input.chunks)
        self.b = self.per_worker(arena, "b", (6 * self.input.TH + 2, 4 * run), backward)  # dV B^T of a chunk
        self.mask = self.mask_scratch(arena, backward)
        self.back_w = self.per_worker(arena, "w", (room_for(9, O * COLUMNS),), backward)
        self.db = arena.reserve("db", (len(self.parts), O), kind, backward, backward)
        if self.by_rows:
            self.back_t = self.per_worker(arena, "t", (self._room(6, 6, C),), backward)
            self.dV = self.per_worker(arena, "dV", (room_for(6 * self.slots, T * C),), backward)
            self.dM = self.per_worker(arena, "dM", (room_for(36, T * O),), backward)
            self.dU = self.per_worker(arena, "dU", (2, room_for(36, C * O)), backward)
            room = sum(room_for(36, O * (b.stop - b.start)) for b in self.back_columns)
            self.UT = [arena.reserve("UT", (room,), kind, backward, backward)]
        else:
            room = room_for(6 * self.slots, self.T * C)
            self.dV = [arena.reserve("dV", (room,), kind, backward, backward)]
            self.dM = [arena.reserve("dM", (room_for(36, self.T * O),), kind, backward, backward)]
            self.rows_of_dU = max(1, min(64, -(-C // self.context.workers)))
            self.packed = self.per_worker(
                arena, "some channels of V", (36 * self.T * self.rows_of_dU,), backward
            )
            self.dU = self.per_worker(arena, "dU", (room_for(36, self.rows_of_dU * O),), backward)
            self.UT = self.per_worker(arena, "UT", (room_for(36, O * COLUMNS),), backward)

    def _columns_at_once(self) -> int:
        """Return how many columns a block of U has: half as many, where all tiles are then one block of rows.

        U is read once for each block of rows, from memory if it was kept. For one image of 224 px, 28 x 28
        pixels and 512 channels, that makes it 2.4 ms in place of 2.7.
        """
        limit, T = self.context.block_limit, self.largest if self.by_rows else self.T
        whole = [rows_of_block(T, limit // (n * self.C)) == T for n in (COLUMNS, COLUMNS // 2)]
        return COLUMNS // 2 if whole == [False, True] else COLUMNS

    def _room(self, planes: int, runs: int, channels: int) -> int:
        """Return the size of scratch for the parts' arrays (R, planes, runs, run)."""
        return max(room_for(part.R * planes, runs * part.T // part.R * channels) for part in self.parts)

    # The transforms of one part

    def _transform_input(
        self, do: Calls, worker: int, part: Part, V: np.ndarray, t: Any, fresh: bool
    ) -> None:
        """Record V = B^T x B, where V has the axes (6, 6, R, run).

        The zeros beyond the image stay in t from one part to the next, and are written if it is ``fresh``.
        """
        x = self.input.chunk(part.chunk)
        rows, _, TW, n, C = x.shape
        R, run, one_tile = part.R, TW * n * C, n * C
        x = x.reshape(rows, 4 * run)[4 * part.row : 4 * (part.row + R) + 2]
        windows = np.lib.stride_tricks.sliding_window_view(x, 6, axis=0)[::4]  # (R, 4*run, 6)
        windows = windows.transpose(0, 2, 1)  # (R, 6, 4*run): the six rows of pixels of each row of tiles
        V = V.transpose(2, 0, 1, 3)  # (R, 6, 6, run)
        if TW == 1:
            t = in_planes(t[worker].array, R, 6, 4, run)
            small_matmul(do, BT, windows, out=reshaped(t, R, 6, 4 * run))
            small_matmul(do, BT_INNER, t, out=V)
            return
        t = in_planes(t[worker].array, R, 6, 6, run)  # by row, transformed row, and slot
        small_matmul(do, BT, windows, out=reshaped(t[:, :, 1:5], R, 6, 4 * run))
        if fresh:
            do.copy(0, out=t[:, :, 0, :one_tile])
            do.copy(0, out=t[:, :, 5, -one_tile:])
        do.copy(t[:, :, 4, :-one_tile], out=t[:, :, 0, one_tile:])
        do.copy(t[:, :, 1, one_tile:], out=t[:, :, 5, :-one_tile])
        small_matmul(do, BT, t, out=V)

    def _transform_output(self, do: Calls, worker: int, part: Part, M: np.ndarray) -> None:
        """Record y = A^T M A, and what follows; M has the axes (6, 6, R, run)."""
        R, run = part.R, M.shape[-1]
        s = in_planes(self.s[worker].array, R, 4, 6, run)
        small_matmul(
            do, AT, M.transpose(2, 1, 0, 3), out=s.transpose(0, 2, 1, 3)
        )  # (R, 6, 6, run) to (R, 6, 4, run)
        if self.direct:
            rows = self.output.chunk(part.chunk)[1 + 4 * part.row : 1 + 4 * (part.row + R)]
            y = reshaped(rows, R, 4, 4, run)
        else:
            y = first_of(self.y[worker], R, 4, 4, run)
        small_matmul(do, AT, s, out=y)
        if not self.direct:
            self.epilogue.record_forward(do, worker, part.block, y)
        else:
            self.epilogue.record_activation(do, y)
            self.output.clear_beyond(do, rows, 4 * part.row)

    def _transform_dy(self, do: Calls, worker: int, part: Part, dM: np.ndarray, db: np.ndarray) -> None:
        """Record dM = A dy A^T, and db = sum of dy; dM has the axes (6, 6, R, run)."""
        R, run = part.R, dM.shape[-1]
        if self.direct:
            dy = self.output.grad_chunk(part.chunk)[4 * part.row : 4 * (part.row + R)]
        else:
            dy = first_of(self.dy[worker], *part.block.shape)
            self.epilogue.record_backward(do, worker, part.block, dy)
        if self.conv.bias is not None:
            pixels = reshaped(dy, -1, self.O)  # (16*T, O)
            do(np.matmul, np.ones(len(pixels), np.float32), pixels, out=db)
        a = in_planes(self.a[worker].array, R, 6, 4, run)
        small_matmul(do, A, reshaped(dy, R, 4, 4 * run), out=reshaped(a, R, 6, 4 * run))
        small_matmul(do, A, a, out=dM.transpose(2, 0, 1, 3))

    def _transform_dV(self, do: Calls, worker: int, part: Part, dV: np.ndarray, fresh: bool) -> None:
        r"""Record dx = B dV B^T, where dV has the axes (6, slots, R, run).

        If dV is ``fresh``, zeros beyond the image are written into it; otherwise they are there.

        Parts of a chunk come in order, on one worker. First the columns: of this part's rows of tiles, six
        rows each, into b. Then the rows, of all tiles whose neighbours above and below are in b by now::

            b    0 | 0 1 2 3 4 5 | 0 1 2 3 4 5 | 0 1 ...      a row of zeros, six for each row of tiles, zeros
                 [-----------------]                          tile row 0 needs these eight
                               [-----------------]            tile row 1 these
        """
        R, run = part.R, dV.shape[-1]
        TH, TW = self.input.TH, self.input.TW
        b = self.b[worker].array.reshape(-1)[: (6 * TH + 2) * 4 * run].reshape(6 * TH + 2, 4, run)
        if part.row == 0:
            do.copy(0, out=b[0])
            do.copy(0, out=b[-1])
        if TW > 1:  # slots 1 to 6 are the tile's own dV[0] to dV[5], 0 and 7 its neighbours' dV[5] and dV[0]
            one_tile = run // TW
            if fresh:
                do.copy(0, out=dV[:, 0, :, :one_tile])
                do.copy(0, out=dV[:, 7, :, -one_tile:])
            do.copy(dV[:, 6, :, :-one_tile], out=dV[:, 0, :, one_tile:])
            do.copy(dV[:, 1, :, one_tile:], out=dV[:, 7, :, :-one_tile])
        own = b[1 + 6 * part.row : 1 + 6 * (part.row + R)].reshape(R, 6, 4, run)
        small_matmul(do, B_OVERLAP if TW > 1 else B_INNER, dV.transpose(2, 0, 1, 3), out=own)

        first = max(0, part.row - 1)
        stop = TH if part.row + R == TH else part.row + R - 1
        if first >= stop:
            return
        rows = b[6 * first : 6 * stop + 2].reshape(-1, 4 * run)
        windows = np.lib.stride_tricks.sliding_window_view(rows, 8, axis=0)[::6]  # (rows of tiles, 4*run, 8)
        dx = self.input.grad_chunk(part.chunk)[4 * first : 4 * stop]
        small_matmul(do, B_OVERLAP, windows.transpose(0, 2, 1), out=reshaped(dx, stop - first, 4, 4 * run))
        x = self.input.chunk(part.chunk)[1 + 4 * first : 1 + 4 * stop]
        flat = reshaped(dx, -1, 4 * run), reshaped(x, -1, 4 * run)
        self.input.mask_gradient(do, *flat, self.mask[worker].array)
        if stop == TH and not self.input.rectified:  # a mask would have set to zero what is not in the image
            self.input.clear_beyond(do, self.input.grad_chunk(part.chunk))

    def _transform_dU(self, do: Calls, dU: np.ndarray, dw: np.ndarray) -> None:
        """Record dw = G^T dU G, from (36, k) to (9, k), for any k of the C * O weights."""
        small_matmul(do, G2T, dU, out=dw)

    # The passes

    def record_weights(self) -> list[Phase]:  # noqa: D102
        phase = self.phase("weights")
        self.fold.write(phase.workers[0])
        if self.fold.bias is not None:
            phase.workers[0].copy(self.fold.bias, out=self.bias.reshape(-1, self.O))
        return [phase, self._derive_all()] if self.keeps_weights else [phase]

    def _derive_all(self) -> Phase:
        phase = self.phase("weights")
        for b, (columns, U) in enumerate(zip(self.columns, self.U, strict=True)):
            worker = self.worker_of(b, len(self.U))
            self._derive(phase.workers[worker], worker, columns, U)
        return phase

    def _derive(self, do: Calls, worker: int, columns: slice, U: np.ndarray) -> None:
        """Record U for some columns of the weights, as the forward pass wants it."""
        self.transform_weights(do, G2, self.conv.weight.data[..., columns], self.w[worker].array, U)
        self.fold.scale(do, U, columns)

    def record_forward(self) -> list[Phase]:  # noqa: D102
        return self._forward_by_rows() if self.by_rows else self._forward_by_phases()

    def _forward_by_rows(self) -> list[Phase]:
        phase = self.phase("rows of tiles")
        phases = [phase]
        if not self.keeps_weights:
            self.U = _cut(self.all_U.array, self.C, self.columns)
            phases.insert(0, self._derive_all())
        for worker, some in enumerate(split_evenly(len(self.parts), self.context.workers)):
            do = phase.workers[worker]
            for part, fresh in _and_whether_new(self.parts[k] for k in some):
                V = in_planes(self.V[worker].array, 6, 6, part.T, self.C)
                M = in_planes(self.M[worker].array, 6, 6, part.T, self.O)
                self._transform_input(do, worker, part, V.reshape(6, 6, part.R, -1), self.t, fresh)
                for columns, U in zip(self.columns, self.U, strict=True):
                    self.product(do, V, U, out=M[..., columns])
                self._transform_output(do, worker, part, M.reshape(6, 6, part.R, -1))
        return phases

    def _forward_by_phases(self) -> list[Phase]:
        first, second, third = self.phase("input"), self.phase("product"), self.phase("output")
        V = in_planes(self.V[0].array, 6, 6, self.T, self.C)
        M = in_planes(self.M[0].array, 6, 6, self.T, self.O)
        for worker, some in enumerate(split_evenly(len(self.parts), self.context.workers)):
            for part, fresh in _and_whether_new(self.parts[k] for k in some):
                shape = (6, 6, part.R, -1)
                self._transform_input(
                    first.workers[worker], worker, part, reshaped(V[:, :, part.tiles], *shape), self.t, fresh
                )
                self._transform_output(
                    third.workers[worker], worker, part, reshaped(M[:, :, part.tiles], *shape)
                )
        for b, columns in enumerate(self.columns):
            worker = self.worker_of(b, len(self.columns))
            do = second.workers[worker]
            if self.U:
                U = self.U[b]
            else:
                U = in_planes(self.worker_U[worker].array, 6, 6, self.C, columns.stop - columns.start)
                self._derive(do, worker, columns, U)
            self.product(do, V, U, out=M[..., columns])
        return [first, second, third]

    def record_backward(self) -> list[Phase]:  # noqa: D102
        return self._backward_by_rows() if self.by_rows else self._backward_by_phases()

    def _parts_by_worker(self) -> list[list[Part]]:
        """Divide parts so that each chunk stays on one worker."""
        workers = split_evenly(len(self.input.chunks), self.context.workers)
        return [[part for part in self.parts if part.chunk in chunks] for chunks in workers]

    def _backward_by_rows(self) -> list[Phase]:
        weights, main, last = (
            self.phase("weights"),
            self.phase("rows of tiles"),
            self.phase("sum over workers"),
        )
        UT = _cut(self.UT[0].array, self.O, self.back_columns)
        for b, columns in enumerate(self.back_columns):
            worker = self.worker_of(b, len(UT))
            w = self.conv.weight.data[:, :, columns].transpose(0, 1, 3, 2)  # (3, 3, O, k)
            self.transform_weights(weights.workers[worker], G2, w, self.back_w[worker].array, UT[b])
        for worker, parts in enumerate(self._parts_by_worker()):
            do = main.workers[worker]
            total, one = (in_planes(dU, 6, 6, self.C, self.O) for dU in self.dU[worker].array)
            if not parts:
                do.copy(0, out=total)
            for k, (part, fresh) in enumerate(_and_whether_new(parts)):
                V = in_planes(self.dV[worker].array, 6, self.slots, part.T, self.C)  # later dV
                inner = V[:, 1:7] if self.slots == 8 else V
                dM = in_planes(self.dM[worker].array, 6, 6, part.T, self.O)
                self._transform_dy(do, worker, part, dM.reshape(6, 6, part.R, -1), self._db(part))
                mine = reshaped(inner, 6, 6, part.R, part.T // part.R * self.C)
                self._transform_input(do, worker, part, mine, self.back_t, fresh)
                self.product(do, inner.swapaxes(-1, -2), dM, out=one if k else total)
                if k:
                    do(np.add, total, one, out=total)
                for columns, U in zip(self.back_columns, UT, strict=True):  # dV over V, which has served
                    self.product(do, dM, U, out=inner[..., columns])
                self._transform_dV(do, worker, part, V.reshape(6, self.slots, part.R, -1), fresh)
        dweight = self.conv.weight.grad_view.reshape(9, -1)
        for do, some in zip(last.workers, split_evenly(self.C * self.O, self.context.workers), strict=True):
            part = slice(some.start, some.stop)
            if some:
                dUs = [in_planes(dU.array[0], 6, 6, self.C * self.O)[..., part] for dU in self.dU]
                sum_over_workers(do, dUs, out=dUs[0])
                self._transform_dU(do, reshaped(dUs[0], 36, -1), dweight[:, part])
        self._sum_db(last.workers[0])
        return [weights, main, last]

    def _backward_by_phases(self) -> list[Phase]:
        first, second, third, fourth = (self.phase(name) for name in ("dy", "dW", "dx", "input gradient"))
        V = in_planes(self.V[0].array, 6, 6, self.T, self.C)  # as the forward pass has left it
        dV = in_planes(self.dV[0].array, 6, self.slots, self.T, self.C)
        inner = dV[:, 1:7] if self.slots == 8 else dV
        dM = in_planes(self.dM[0].array, 6, 6, self.T, self.O)
        for worker, parts in enumerate(self._parts_by_worker()):
            for part in parts:
                run = part.T // part.R
                mine = reshaped(dM[:, :, part.tiles], 6, 6, part.R, run * self.O)
                self._transform_dy(first.workers[worker], worker, part, mine, self._db(part))
                mine = reshaped(dV[:, :, part.tiles], 6, self.slots, part.R, run * self.C)
                self._transform_dV(fourth.workers[worker], worker, part, mine, fresh=True)

        dweight = self.conv.weight.grad_view.reshape(9, self.C, self.O)
        rows = self.rows_of_dU
        blocks = [slice(c, min(c + rows, self.C)) for c in range(0, self.C, rows)]
        for b, c in enumerate(blocks):
            worker = self.worker_of(b, len(blocks))
            do, k = second.workers[worker], c.stop - c.start
            dU = in_planes(self.dU[worker].array, 6, 6, k, self.O)
            # Packed, since channels that lie a power of two apart would compete for places in the cache.
            packed = first_of(self.packed[worker], 6, 6, self.T, k)
            do.copy(V[..., c], out=packed)
            self.product(do, packed.swapaxes(-1, -2), dM, out=dU)
            self._transform_dU(do, reshaped(dU, 36, k * self.O), reshaped(dweight[:, c], 9, k * self.O))
        self._sum_db(second.workers[-1])

        for b, columns in enumerate(self.back_columns):
            worker = self.worker_of(b, len(self.back_columns))
            do = third.workers[worker]
            U = self.transpose_weights(
                do, G2, columns, self.back_w[worker].array, self.UT[worker].array, rows=self.T
            )
            self.product(do, dM, U, out=inner[..., columns])
        return [first, second, third, fourth]

    def _db(self, part: Part) -> np.ndarray:
        """Return where the sum of dy over a part belongs."""
        return self.db.array[self.parts.index(part)]

    def _sum_db(self, do: Calls) -> None:
        if self.conv.bias is not None:
            do(np.add.reduce, self.db.array, 0, None, out=self.conv.bias.grad_view)


def _and_whether_new(parts: Iterable[Part]) -> Iterator[tuple[Part, bool]]:
    """Yield each part, and whether it has another shape than the one before: then scratch is divided anew."""
    shape = None
    for part in parts:
        yield part, part.block.shape != shape
        shape = part.block.shape


def _cut(memory: np.ndarray, rows: int, blocks: list[slice]) -> list[np.ndarray]:
    """Return an array (6, 6, rows, k) for each block of k columns, one after the other in memory."""
    arrays, start = [], 0
    for block in blocks:
        k = block.stop - block.start
        arrays.append(in_planes(memory[start:], 6, 6, rows, k))
        start += room_for(36, rows * k)
    return arrays
