r"""The transforms of Winograd's algorithm, each as a few products of a small matrix with long vectors.

A map of tiles (see ``layouts.py``) has what belongs to one column of every tile of a row, of all images and
channels of a chunk, in one vector of L = TW * n * C neighbouring numbers. So B^T x, along the rows of pixels,
is B^T (6, 6) times six rows of such vectors, and along the columns it is B^T times six vectors::

    x  (R, 6 rows, 4 columns, L)   ->   half_V (R, 6, 6 columns, L)   ->   V (6, 6, R, L)

The six rows of a window are there: the windows of one row of tiles and the next overlap in memory, and none
is copied. Of its six columns, four are the tile's own, and the outer two are column 3 of the tile before and
column 0 of the tile after. In a row of tiles each is a vector that is there, moved by one tile, n * C
numbers, so it takes a copy::

    column of the window    0                    1   2   3   4                5
    half_V      [ column 3 of the tile before | 0 | 1 | 2 | 3 | column 0 of the tile after ]

with zeros beyond the image. If a row has only one tile, these two columns are padding, and left out.

The backward transforms are the adjoints. There windows are added up where they overlap, which is a matrix
product as well: a pixel of the tile's first column is also column 5 of the window before, one of its last
column is also column 0 of the window after. Column 5 of B^T is zero but for row 5, and column 0 but for row
0. So dx of a tile takes all six numbers of its own dV, and one from either neighbour's::

    dx (4) = B_OVERLAP (4, 8) times [ dV[5] of the window before | dV[0] to dV[5] | dV[0] of the one after ]

Symbols: R rows of tiles, TW tiles in a row, n images, C channels, L the length of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scratchnet.plans.cpu.blocks import small_matmul
from scratchnet.plans.cpu.calls import Calls, reshaped
from scratchnet.plans.cpu.planes import in_planes
from scratchnet.plans.cpu.winograd.derivation import POINTS, matrices


class Transforms:
    """The transforms with these points: of tiles of ``tile`` pixels in each direction, windows of ``window``.

    All shapes are those for tiles of 4 pixels; for tiles of 6 read 6 for 4, 8 for 6 and 10 for 8.
    """

    def __init__(self, points: Sequence[float]):
        BT, G, AT = matrices(points)
        self.tile, self.window = AT.shape
        self.BT = BT.astype(np.float32)  # (6, 6)
        self.AT = AT.astype(np.float32)  # (4, 6)
        self.A = np.ascontiguousarray(self.AT.T)  # (6, 4)
        # Both dimensions at once, for the weights, which are small: U (36, C*O) = G2 (36, 9) w (9, C*O).
        self.G2 = np.kron(G, G).astype(np.float32)  # (36, 9)
        self.G2T = np.ascontiguousarray(self.G2.T)  # (9, 36)
        # The same along the columns where a row has only one tile.
        self.BT_INNER = np.ascontiguousarray(self.BT[:, 1:-1])  # (6, 4)
        self.B_INNER = np.ascontiguousarray(self.BT_INNER.T)  # (4, 6)
        self.B_OVERLAP = np.zeros((self.tile, self.window + 2), np.float32)  # (4, 8)
        self.B_OVERLAP[:, 1:-1] = self.B_INNER
        self.B_OVERLAP[0, 0] = self.BT[-1, -1]
        self.B_OVERLAP[-1, -1] = self.BT[0, 0]

    def input_transform(
        self, do: Calls, x: np.ndarray, half_V: np.ndarray, V: np.ndarray, *, clear: bool
    ) -> None:
        """Record V (6, 6, R, L) = B^T x B, for x (4*R + 2, 4, TW, n, C): a row of pixels above, one below.

        ``half_V`` is scratch, for ``in_planes`` of (R, 6, 6, L). ``clear`` says whether to write the zeros
        beyond the image into it; otherwise they are there.
        """
        _, _, TW, n, C = x.shape
        R, L = V.shape[2:]
        rows = x.reshape(-1, self.tile * L)
        windows = np.lib.stride_tricks.sliding_window_view(rows, self.window, axis=0)[
            :: self.tile
        ]  # (R, 4*L, 6)
        windows = windows.transpose(0, 2, 1)  # (R, 6, 4*L): the six rows of pixels of each row of tiles
        V = V.transpose(2, 0, 1, 3)  # (R, 6, 6, L)
        if TW == 1:
            half = in_planes(half_V, R, self.window, self.tile, L)
            small_matmul(do, self.BT, windows, out=reshaped(half, R, self.window, self.tile * L))
            small_matmul(do, self.BT_INNER, half, out=V)
            return
        half = in_planes(
            half_V, R, self.window, self.window, L
        )  # axis 1: rows, transformed; axis 2: columns of windows
        small_matmul(do, self.BT, windows, out=reshaped(half[:, :, 1:-1], R, self.window, self.tile * L))
        one_tile = n * C
        if clear:
            do.copy(0, out=half[:, :, 0, :one_tile])
            do.copy(0, out=half[:, :, -1, -one_tile:])
        do.copy(half[:, :, -2, :-one_tile], out=half[:, :, 0, one_tile:])
        do.copy(half[:, :, 1, one_tile:], out=half[:, :, -1, :-one_tile])
        small_matmul(do, self.BT, half, out=V)

    def output_transform(self, do: Calls, M: np.ndarray, half_y: np.ndarray, y: np.ndarray) -> None:
        """Record y (R, 4, 4, L) = A^T M A, for M (6, 6, R, L); scratch as in (R, 4, 6, L) ``in_planes``."""
        R, L = M.shape[2:]
        half = in_planes(half_y, R, self.tile, self.window, L)
        # (R, 6 columns, 6 rows, L) to (R, 6 columns, 4 rows, L)
        small_matmul(do, self.AT, M.transpose(2, 1, 0, 3), out=half.transpose(0, 2, 1, 3))
        small_matmul(do, self.AT, half, out=y)

    def dy_transform(self, do: Calls, dy: np.ndarray, half_dM: np.ndarray, dM: np.ndarray) -> None:
        """Record dM (6, 6, R, L) = A dy A^T, the adjoint of ``output_transform``.

        dy is (R, 4, 4, L), or any shape of its numbers in this order; scratch is for ``in_planes`` of
        (R, 6, 4, L).
        """
        R, L = dM.shape[2:]
        half = in_planes(half_dM, R, self.window, self.tile, L)
        small_matmul(
            do,
            self.A,
            reshaped(dy, R, self.tile, self.tile * L),
            out=reshaped(half, R, self.window, self.tile * L),
        )
        small_matmul(do, self.A, half, out=dM.transpose(2, 0, 1, 3))

    def dV_columns(self, do: Calls, dV: np.ndarray, TW: int, half_dx: np.ndarray, *, clear: bool) -> None:
        """Record half_dx (6*R, 4, L) = dV B^T: the adjoint of ``input_transform`` along the columns.

        Where a row has one tile, dV is (6, 6, R, L); otherwise (6, 8, R, L), with dV in the middle six
        columns, and scratch for the neighbours' columns in the outer two. ``clear`` says whether to write the
        zeros beyond the image into these; otherwise they are there.
        """
        R, L = dV.shape[2:]
        if TW > 1:
            one_tile = L // TW
            if clear:
                do.copy(0, out=dV[:, 0, :, :one_tile])
                do.copy(0, out=dV[:, -1, :, -one_tile:])
            do.copy(dV[:, -2, :, :-one_tile], out=dV[:, 0, :, one_tile:])
            do.copy(dV[:, 1, :, one_tile:], out=dV[:, -1, :, :-one_tile])
        matrix = self.B_OVERLAP if TW > 1 else self.B_INNER
        small_matmul(
            do, matrix, dV.transpose(2, 0, 1, 3), out=reshaped(half_dx, R, self.window, self.tile, L)
        )

    def dV_rows(self, do: Calls, half_dx: np.ndarray, dx: np.ndarray) -> None:
        """Record dx, R * 4 rows of pixels, = B half_dx: the adjoint of ``input_transform`` along the rows.

        half_dx (6*R + 2, 4, L) is as ``dV_columns`` leaves it, with the last row of the windows above and the
        first of those below.
        """
        rows = half_dx.reshape(len(half_dx), -1)
        windows = np.lib.stride_tricks.sliding_window_view(rows, self.window + 2, axis=0)[
            :: self.window
        ]  # (R, 4*L, 8)
        windows = windows.transpose(0, 2, 1)  # (R, 8, 4*L)
        small_matmul(do, self.B_OVERLAP, windows, out=reshaped(dx, len(windows), self.tile, rows.shape[1]))

    def dU_transform(self, do: Calls, dU: np.ndarray, dw: np.ndarray) -> None:
        """Record dw = G^T dU G, from (36, k) to (9, k), for any k of the C * O weights."""
        small_matmul(do, self.G2T, dU, out=dw)


TRANSFORMS = {tile: Transforms(points) for tile, points in POINTS.items()}
