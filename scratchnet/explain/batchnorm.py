"""Walk through batch normalisation: see ``functional/norm.py`` for the mathematics."""

from __future__ import annotations

import numpy as np

from scratchnet import functional as F
from scratchnet.explain.page import Page, number, signed, small_integers

C = 2  # channels
EPS = 1e-5


def walk(page: Page, size: int, backward: bool, seed: int) -> None:
    """Write the walk: mean, variance, scale and shift, and with ``backward`` the three paths."""
    rng = np.random.default_rng(seed)
    M = size
    x = rng.integers(-4, 5, (M, C)).astype(float)
    x[0] = x[1] + 2.0  # never all equal, whatever is drawn
    weight, bias = np.array([1.0, -2.0]), np.array([0.5, 1.0])

    page.heading("1. Mean and variance of each channel")
    page.say(f"""A channel has M = N * H * W values, here {M}: x (M, C) = {x.shape}, a column for each
        channel. Each column is treated separately.""")
    mean = x.sum(axis=0) / M
    centred = x - mean
    var = (centred * centred).sum(axis=0) / M
    page.show(page.matrix("x", x), page.matrix("mean", mean), between="-")
    page.show(page.matrix("x - mean", centred))
    squares = " + ".join(f"{signed(round(v, 4))}^2" for v in centred[:6, 0]) + (" + ..." if M > 6 else "")
    page.write(f"var of channel 0 = ({squares}) / {M} = {number(var[0])}")
    page.say("It is the biased variance, divided by M, not by M - 1.")
    page.show(page.matrix("var", var))

    page.heading("2. To mean 0 and variance 1, then scale and shift")
    inv_std = 1.0 / np.sqrt(var + EPS)
    xhat = centred * inv_std
    page.say(f"xhat = (x - mean) / s with s = sqrt(var + eps); eps = {EPS:g} keeps s away from zero.")
    page.show(page.matrix("s", 1 / inv_std), page.matrix("xhat", xhat))
    page.write(
        f"its mean:     {'  '.join(number(v, 4) for v in xhat.mean(axis=0))}",
        f"its variance: {'  '.join(number(v, 4) for v in xhat.var(axis=0))}",
    )
    page.say("""y = weight * xhat + bias, both learned, a number for each channel (gamma and beta in the
        paper).""")
    y, cache = F.batch_norm_forward(x, weight, bias, eps=EPS)
    page.show(page.matrix("weight", weight), page.matrix("bias", bias))
    page.show(page.matrix("y", weight * xhat + bias))
    page.same("batch_norm_forward(x, weight, bias)", weight * xhat + bias, y)
    if not backward:
        return

    page.heading("3. The way back: weight and bias")
    dy = small_integers(rng, M, C)
    dx, dweight, dbias = F.batch_norm_backward(dy, cache)
    page.say("""The next layer hands back dy: how much the loss changes with each number of y. (To check: L =
        the sum of dy * y.)""")
    page.show(page.matrix("dy", dy))
    page.say("dbias = the sum of dy, dweight = the sum of dy * xhat, both down each column.")
    page.show(page.matrix("dbias", dy.sum(axis=0)), page.matrix("dweight", (dy * xhat).sum(axis=0)))
    page.same("batch_norm_backward's dbias", dy.sum(axis=0), dbias)
    page.same("batch_norm_backward's dweight", (dy * xhat).sum(axis=0), dweight)

    page.heading("4. Three paths to x")
    page.say("""A value of x moves y in three ways: directly, through the mean of its channel, and through its
        variance. With dxhat = weight * dy:""")
    dxhat = weight * dy
    direct = dxhat * inv_std
    dmean = -dxhat.sum(axis=0) * inv_std
    through_mean = np.broadcast_to(dmean / M, x.shape)
    dvar = -(dxhat * xhat).sum(axis=0) * inv_std**2 / 2
    through_var = dvar * 2 * centred / M
    page.show(page.matrix("dxhat", dxhat))
    page.write(
        "direct            dxhat / s",
        "through the mean  -sum(dxhat) / s             times 1 / M",
        "through the var   -sum(dxhat xhat) / (2 s^2)  times 2 (x - mean) / M",
    )
    paths = {"direct": direct, "mean": through_mean, "var": through_var}
    page.show(*[page.matrix(name, path, shape="") for name, path in paths.items()], between="+")
    total = direct + through_mean + through_var
    page.show(page.matrix("dx, their sum", total))
    page.same("batch_norm_backward's dx", total, dx)
    page.say(f"""Every column adds up to 0 (channel 0: {number(dx[:, 0].sum(), 4)}): the same number added to
        a whole channel would change nothing, since the mean is subtracted again.""")

    arrays = {"x": (dx, x), "weight": (dweight, weight), "bias": (dbias, bias)}
    page.gradients("5. Every", dy, lambda: F.batch_norm_forward(x, weight, bias, eps=EPS)[0], arrays)
