r"""Winograd's algorithm F(4x4, 3x3): a 3 x 3 convolution with 36 multiplications for 16 outputs, not 144.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks" (2016), sec. 4.1 and 4.3. In the
order in which to read it:

==================  ======================================================================================
``derivation.py``   where the three matrices come from, for one tile and one channel
``transforms.py``   the transforms as products with long vectors
``base.py``         a convolution in parts, their transforms and their scratch
``by_rows.py``      the order of work with few channels
``by_phases.py``    the order of work with many channels
``kernel.py``       where it is used, and in which order
==================  ======================================================================================

For a tile of 4 x 4 outputs y, its window of 6 x 6 input pixels x, and the kernel g (``derivation.py``)::

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

(Lavin and Gray convolve dy with the rotated kernel instead. Here both gradients share dM.)

**Order of work.** A batch is divided into chunks (of n images), a chunk into parts (of R rows of tiles), and
the 36 products into blocks of columns of U. Either each part goes through all steps, or each step is made for
all parts.

Symbols: T tiles, C input channels, O outputs, R rows of tiles, TW tiles in a row, n images of a chunk, L the
length of a vector.
"""

from scratchnet.plans.cpu.winograd.derivation import POINTS, matrices
from scratchnet.plans.cpu.winograd.kernel import Winograd

__all__ = ["POINTS", "Winograd", "matrices"]
