"""Walk through the ReLU: see ``functional/relu.py`` for the mathematics."""

from __future__ import annotations

import numpy as np

from scratchnet import functional as F
from scratchnet.explain.page import Page, small_integers


def walk(page: Page, size: int, backward: bool, seed: int) -> None:
    """Write the walk: the maximum with zero, and with ``backward`` the mask."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-4, 5, (size, size)).astype(float)
    x[0, 0] = 0.0  # at least one zero: there the derivative is missing
    page.heading("1. The maximum with zero")
    page.say("y = max(x, 0), number by number. Positive numbers, in brackets, pass unchanged.")
    y, cache = F.relu_forward(x)
    positive = {(int(r), int(c)) for r, c in np.argwhere(x > 0)}
    page.show(page.matrix("x", x, positive), page.matrix("y", y, positive), between="->")
    page.same("each number compared with zero", y, [[v if v > 0 else 0.0 for v in row] for row in x])
    page.say("The backward pass keeps y, and not x: y is positive exactly where x is.")
    if not backward:
        return

    page.heading("2. The way back: the same brackets")
    page.say("""dy/dx is 1 where x > 0 and 0 where x < 0, so dx = dy where the brackets are, and 0 elsewhere.
        (To check: L = the sum of dy * y has the gradient dy.)""")
    dy = small_integers(rng, size, size)
    dx = F.relu_backward(dy, cache)
    mask = (y > 0).astype(float)
    page.show(page.matrix("dy", dy, positive), page.matrix("y > 0", mask, positive), between="*")
    page.show(page.matrix("dx", dx, positive))
    page.same("dy times the mask", dx, dy * mask)

    page.gradients("3. The", dy, lambda: F.relu_forward(x)[0], {"x": (dx, x)}, kinks=x == 0)
    page.say("""In brackets x is exactly 0. There the curve has a kink and no derivative: its slope is 0 to
        the left and 1 to the right, the central difference takes the mean, dy / 2, and by convention it is
        0.""")
