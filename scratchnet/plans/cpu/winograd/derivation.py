r"""The derivation of Winograd's algorithm F(4, 3), and the three matrices that it computes with.

F(6, 3) is the same with seven points in place of five.

**One dimension.** Four neighbouring outputs with three weights, y[i] = sum over j of x[i+j] g[j], take six
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

**Points.** Any points will do in exact arithmetic. In float32 they decide how much larger the intermediate
numbers are than the result, and so how many of its digits are lost. Lavin and Gray take 0, 1, -1, 2, -2. With
POINTS, which are 0 and two pairs whose sizes lie about evenly on both sides of 1, the error is less than
half of theirs (``test_winograd.py`` measures it; Barabasz et al. 2020 and Alam et al. 2022 search for such
points). And since they are multiples of an eighth, all entries of A and B are exact in float32.

Six outputs take eight multiplications, at 0, three pairs and infinity: fewer for each output, with larger
numbers in between. Of all pairs of eighths the usual 1/2, 1 and 2 lose least. At 256 channels the relative
error is five times that of tiles of four (ERROR), and within the 1e-5 that the project allows a layer.

**Two dimensions.** The same along rows and along columns, for tiles of 4 x 4 outputs::

    V = B^T x B      6 x 6 from the tile's window: its 4 x 4 input pixels and one pixel around them
    U = G g G^T      6 x 6 from the 3 x 3 weights
    M = U * V        number by number
    y = A^T M A      4 x 4 output pixels
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

KERNEL = 3
POINTS = {4: (0, 5 / 8, -5 / 8, 3 / 2, -3 / 2), 6: (0, 1 / 2, -1 / 2, 1, -1, 2, -2)}  # by the tile's size
ERROR = {4: 1.4e-6, 6: 6.4e-6}  # relative, of dx, in float32 with 256 channels; that of y is smaller


def matrices(points: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return B^T (n, n), G (n, 3) and A^T (n - 2, n) for n - 1 different points and infinity, in float64.

    Examples
    --------
    >>> BT, G, AT = matrices((0, 1, -1, 2, -2))
    >>> BT[0]
    array([ 4.,  0., -5.,  0.,  1.,  0.])
    >>> d, g = np.arange(6.0) ** 2, np.array([1.0, 2.0, 3.0])
    >>> (AT @ ((G @ g) * (BT @ d))).round(9), np.correlate(d, g)
    (array([ 14.,  36.,  70., 116.]), array([ 14.,  36.,  70., 116.]))
    """
    window = len(points) + 1
    tile = window - KERNEL + 1
    BT, G, AT = np.zeros((window, window)), np.zeros((window, KERNEL)), np.zeros((tile, window))
    for i, p in enumerate(points):
        others = [q for q in points if q != p]
        BT[i, :-1] = np.poly(others)[::-1]  # the coefficients of a polynomial with these roots
        G[i] = p ** np.arange(float(KERNEL)) / np.prod([p - q for q in others])
        AT[:, i] = p ** np.arange(float(tile))
    BT[-1], G[-1, -1], AT[-1, -1] = np.poly(points)[::-1], 1.0, 1.0
    return BT, G, AT
