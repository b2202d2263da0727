r"""Winograd's algorithm: a 3 x 3 convolution with 36 multiplications for 16 outputs, not 144.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks" (2016), sec. 4.1 and 4.3. In the
order in which to read it:

==================  ======================================================================================
``derivation.py``   where the three matrices come from, for one tile and one channel
``transforms.py``   the transforms as products with long vectors
``base.py``         a convolution in parts, their transforms and their scratch
``by_rows.py``      the order of work with few channels
``by_phases.py``    the order of work with many channels
==================  ======================================================================================

For a tile of 4 x 4 outputs y, its window of 6 x 6 input pixels x, and 3 x 3 weights g (``derivation.py``)::

    V = B^T x B      U = G g G^T      M = U * V      y = A^T M A

**Channels.** M is summed over input channels before the inverse transform, which is linear. So for each of
the 36 places in a window there is one matrix product, over all tiles at once, and these products are nearly
all of the work::

    M[i, j] (T, O)  =  V[i, j] (T, C)  U[i, j] (C, O)                36 T C O, where im2col has 144 T C O

V[i, j] is seen in two ways, without a copy: by the transforms as vectors, (R, L), and by the product as a
matrix (T, C). It is the same memory, since a vector has L = TW * n * C numbers and there are T = R * TW * n
tiles. The 36 matrices do not lie one straight after the other, see ``planes.py``.

**Backward.** Each step is linear in each of its operands, so its gradient is the adjoint::

    dM = A dy A^T        dU = V^T dM        dg = G^T dU G
                         dV = dM U^T        dx = B dV B^T, added up where the windows overlap

(Lavin and Gray convolve dy with the rotated weights instead. Here both gradients share dM.)

**Size of tiles.** F(6x6, 3x3) is the same with tiles of 6 x 6 outputs and windows of 8 x 8: 64
multiplications for 36 outputs, a fifth fewer for each. Its error is larger, the last tiles of a row reach
further beyond the image (at 224 px by 4 %, at 32 px by as much as is saved), and the weights, 64 for each
nine, are moved more. So ``cheapest`` counts all that, and small maps keep tiles of four; on processors with
AVX-512, whose products are the fastest, all do.

**Order of work.** A batch is divided into chunks (of n images), a chunk into parts (of R rows of tiles), and
the 36 products into blocks of columns of U. Either each part goes through all steps, or each step is made for
all parts. Which of the two, and where the algorithm is used at all, is said here.

Symbols: T tiles, C input channels, O outputs, R rows of tiles, TW tiles in a row, n images of a chunk, L the
length of a vector.
"""

from __future__ import annotations

from typing import Any, ClassVar

from scratchnet.plans.cpu import measuring
from scratchnet.plans.cpu.winograd.base import WinogradBase
from scratchnet.plans.cpu.winograd.by_phases import ByPhases
from scratchnet.plans.cpu.winograd.by_rows import ByRows
from scratchnet.plans.cpu.winograd.derivation import POINTS, matrices
from scratchnet.plans.kernel import Group, PlanContext

__all__ = ["POINTS", "Winograd4", "Winograd6", "matrices"]

# In images smaller than FEWEST_PIXELS most of a tile's outputs are not in the image; with fewer channels than
# FEWEST_CHANNELS the transforms are most of the work. And with fewer tiles than FEWEST_TILES reading the
# weights is most of the work: for inference Winograd's algorithm makes them four times as large, where
# training has to transform them at each step in any case.
FEWEST_PIXELS, FEWEST_CHANNELS, FEWEST_TILES = 3, 4, 9
# Tiles of six have to save this share; transforming and reading the weights, forward and backward, takes as
# long as the products of about so many tiles.
LEAST_SAVED, WEIGHTS_IN_TILES = 0.05, 50
# By rows, transformed weights may have this many bytes, so that they stay in the caches from part to part.
LARGEST_WEIGHTS = 3 << 19
# By phases, dV (6 x 8 numbers per tile and channel) and dM (6 x 6) of the whole batch may have this many
# bytes; in training V (6 x 6) is kept besides. (Twice the batch would take twice the memory.) With tiles of
# six it is 8 x 10 and 8 x 8 numbers, of half as many tiles.
LARGEST_BATCH = 256 << 20


class Winograd(WinogradBase):
    """3 x 3 convolution with stride 1 and padding 1, by rows or by phases."""

    family = "winograd"
    size: ClassVar[int]  # of a tile

    @classmethod
    def suits(cls, groups: list[Group], i: int, context: PlanContext) -> bool:  # noqa: D102
        group = groups[i]
        return (
            cls.supports(groups, i, context)
            and min(group.input_shape[1:3]) >= FEWEST_PIXELS
            and min(group.input_shape[3], group.output_shape[3]) >= FEWEST_CHANNELS
            and (context.training or _tiles(group, 4) >= FEWEST_TILES)
            and cls.size == cheapest(group)
        )

    @classmethod
    def build(cls, group: Group, *arguments: Any, **settings: Any) -> WinogradBase:
        """Return the kernel: by rows while the weights stay in the cache, or where V would be too large."""
        C, O = group.input_shape[3], group.output_shape[3]
        window = cls.size + 2
        weights = 4 * window**2 * C * O
        batch = 4 * _tiles(group, cls.size) * (window * (window + 2) * C + window**2 * O)
        order = ByRows if weights <= LARGEST_WEIGHTS or batch > LARGEST_BATCH else ByPhases
        return order(group, *arguments, **settings)


class Winograd4(Winograd):
    """With tiles of 4 x 4 pixels."""

    algorithm, input_layout, size = "winograd4", "tiles4", 4


class Winograd6(Winograd):
    """With tiles of 6 x 6 pixels."""

    algorithm, input_layout, size = "winograd6", "tiles6", 6


def cheapest(group: Group) -> int:
    """Return the size of the tiles that take the least time: 6 only where they save LEAST_SAVED.

    Never where OpenBLAS has kernels for small matrices: there a multiplication costs too little to be saved.
    """
    if measuring.block_limit():
        return 4
    cost = {size: (size + 2) ** 2 * (_tiles(group, size) + WEIGHTS_IN_TILES) for size in POINTS}
    return 6 if cost[6] <= (1 - LEAST_SAVED) * cost[4] else 4


def _tiles(group: Group, size: int) -> int:
    """Return how many tiles of this size cover all images."""
    N, H, W, _ = group.input_shape
    return N * -(-H // size) * -(-W // size)
