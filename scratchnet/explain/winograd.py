"""Walk through one tile of Winograd's algorithm: see ``plans/cpu/winograd/`` for its derivation."""

from __future__ import annotations

import numpy as np

from scratchnet import functional as F
from scratchnet.explain.page import Page, number, small_integers
from scratchnet.plans.cpu.winograd import POINTS, matrices

TILE = 4  # a tile gives 4 x 4 pixels, from 6 x 6


def walk(page: Page, size: int, backward: bool, seed: int) -> None:
    """Write the walk: two transforms, 36 products, the inverse, and with ``backward`` their adjoints."""
    if size != TILE:
        raise ValueError(f"winograd walks through one tile, whose size is {TILE}, not {size}: leave it out")
    rng = np.random.default_rng(seed)
    x = rng.integers(-3, 4, (6, 6)).astype(float)
    g = small_integers(rng, 3, 3, largest=2)
    BT, G, AT = matrices(POINTS[TILE])

    page.heading("The input, the kernel and three matrices")
    page.say(f"""One tile, one channel: 6 x 6 pixels of the input give 4 x 4 of the output, with a 3 x 3
        kernel. Directly that takes 16 * 9 = {16 * 9} multiplications.""")
    page.show(page.matrix("x", x), page.matrix("g", g))
    page.say(f"""Polynomials of degree five are known by their values at six points: here
        {", ".join(number(p) for p in POINTS[TILE])} and infinity. From the points follow three matrices.""")
    page.show(page.matrix("B^T", BT))
    page.show(page.matrix("G", G), page.matrix("A^T", AT))

    page.heading("1. Transform the tile: V = B^T x B")
    page.say("Along the columns (B^T from the left) and along the rows (B from the right).")
    V = BT @ x @ BT.T
    page.show(page.matrix("V", V, {(0, 0)}))

    page.heading("2. Transform the kernel: U = G g G^T")
    page.say("Once per kernel, however many tiles there are.")
    U = G @ g @ G.T
    page.show(page.matrix("U", U, {(0, 0)}))

    page.heading("3. Multiply: M = U * V, number by number")
    M = U * V
    page.say(f"These are all the multiplications that depend on both: {M.size}, {144 // M.size} times fewer.")
    page.show(page.matrix("M", M, {(0, 0)}))
    page.write(f"M[0, 0] = {U[0, 0]:.4f} * {V[0, 0]:.4f} = {M[0, 0]:.4f}")
    page.say("""With more channels the products of all input channels are added up here, so the transforms,
        which are additions and multiplications with fixed numbers, are shared: one of x for all output
        channels, one back for all input channels.""")

    page.heading("4. Back to pixels: y = A^T M A")
    y = AT @ M @ AT.T
    page.show(page.matrix("y", y.round(9)))
    direct = F.conv2d_forward(x.reshape(1, 6, 6, 1), g.reshape(3, 3, 1, 1))[0][0, :, :, 0]
    page.same("the convolution itself, conv2d_forward(x, g)", y, direct)
    window = x[:3, :3]
    terms = " + ".join(f"{number(a)} * {number(b)}" for a, b in zip(window[0], g[0], strict=True))
    page.write(f"y[0, 0] directly: {terms} + ... = {number((window * g).sum())}")
    if not backward:
        return

    page.heading("5. The way back: each step's adjoint, in reverse")
    page.say("""Every step is linear in what it transforms, so its gradient takes the transposed matrices. (To
        check: L = the sum of dy * y has the gradient dy.)""")
    dy = small_integers(rng, TILE, TILE)
    page.show(page.matrix("dy", dy))
    dM = AT.T @ dy @ AT
    page.say("y = A^T M A, so dM = A dy A^T:")
    page.show(page.matrix("dM", dM))
    dU, dV = V * dM, U * dM
    page.say("M = U * V, so dU = V * dM and dV = U * dM: as in any product, dM times the other factor.")
    page.show(page.matrix("dU", dU), page.matrix("dV", dV))
    dg, dx = G.T @ dU @ G, BT.T @ dV @ BT
    page.say("U = G g G^T and V = B^T x B, so dg = G^T dU G and dx = B dV B^T:")
    page.show(page.matrix("dg", dg.round(9)), page.matrix("dx", dx.round(9)))
    _, cache = F.conv2d_forward(x.reshape(1, 6, 6, 1), g.reshape(3, 3, 1, 1))
    direct_dx, direct_dg, _ = F.conv2d_backward(dy.reshape(1, TILE, TILE, 1), cache)
    page.same("conv2d_backward's dweight", dg, direct_dg[:, :, 0, 0])
    page.same("conv2d_backward's dx", dx, direct_dx[0, :, :, 0])
    page.say("""Neighbouring tiles share two rows or columns of pixels; there their dx are added up, as in
        col2im.""")

    arrays = {"x": (dx, x), "g": (dg, g)}
    page.gradients("6. Every", dy, lambda: AT @ ((G @ g @ G.T) * (BT @ x @ BT.T)) @ AT.T, arrays)
