"""Walk through softmax and cross-entropy: see ``functional/softmax.py`` for the mathematics."""

from __future__ import annotations

import numpy as np

from scratchnet import functional as F
from scratchnet.explain.page import Page, number

N = 3  # rows of the batch


def walk(page: Page, size: int, backward: bool, seed: int) -> None:
    """Write the walk: the shift, the probabilities, the loss, and with ``backward`` p - t."""
    rng = np.random.default_rng(seed)
    K = size
    z = rng.integers(-6, 7, (N, K)) / 2
    labels = rng.integers(0, K, N)
    right = {(n, int(k)) for n, k in enumerate(labels)}

    page.heading("1. Subtract the largest")
    page.say(f"""Logits z for N = {N} images and K = {K} classes; the right class of each image is in
        brackets. Softmax is p[k] = exp(z[k]) / the sum of all exp(z[j]).""")
    largest = z.max(axis=1, keepdims=True)
    shifted = z - largest
    page.show(page.matrix("z", z, right), page.matrix("max", largest, shape=""), between="-")
    page.show(page.matrix("z - max", shifted, right))
    page.say("""Subtracting the same number from a whole row changes nothing: exp(z - m) = exp(z) / exp(m),
        and exp(m) cancels in the quotient. But now no exponent is above 0, so nothing overflows. Row 0 with
        1000 added:""")
    large = z[0] + 1000.0
    with np.errstate(over="ignore", invalid="ignore"):
        plain = np.exp(large) / np.exp(large).sum()
    page.show(page.matrix("exp(z) / sum, as written", plain, shape="", digits=4))
    page.show(page.matrix("with the largest subtracted", F.softmax(large), shape="", digits=4))

    page.heading("2. Probabilities")
    e = np.exp(shifted)
    sums = e.sum(axis=1, keepdims=True)
    p = e / sums
    page.show(page.matrix("exp(z - max)", e, right), page.matrix("its sum", sums, shape=""), between="/")
    page.say("Every row divided by its sum, so that it adds up to one:")
    page.show(page.matrix("p", p, right))
    page.same("softmax(z)", p, F.softmax(z))

    page.heading("3. The loss")
    loss, cache = F.softmax_cross_entropy_forward(z, labels)
    losses = -np.log(p[range(N), labels])
    page.say("Each image costs -log p[right class]: nothing if p is 1, and more the smaller p is.")
    page.write(
        *[f"image {n}: -log {p[n, k]:.4f} = {losses[n]:.4f}" for n, k in enumerate(labels)],
        f"mean over the batch: L = {losses.mean():.4f}",
    )
    page.same("softmax_cross_entropy_forward(z, labels)", losses.mean(), loss)
    page.say(f"""Without any knowledge, a network says 1 / {K} for each class and pays log {K} =
        {np.log(K):.4f}.""")
    if not backward:
        return

    page.heading("4. The way back: p - t, over N")
    page.say(f"""For one image L = log of the sum of exp(z[j]) - z[right class]. The derivative of the
        logarithm is exp(z[k]) / the sum = p[k]; that of the second term is -1 for the right class. So dL/dz =
        p - t, where t is 1 for the right class and 0 elsewhere; the mean over the batch divides by N =
        {N}.""")
    t = np.zeros((N, K))
    t[range(N), labels] = 1.0
    dz = F.softmax_cross_entropy_backward(cache)
    page.show(page.matrix("p", p, right), page.matrix("t", t, right), between="-")
    page.show(page.matrix(f"dz = (p - t) / {N}", (p - t) / N, right))
    page.same("softmax_cross_entropy_backward", (p - t) / N, dz)
    page.say(f"""Every row adds up to 0 (row 0: {number(dz[0].sum(), 4)}): what the right class gains the
        others lose.""")

    page.gradients("5. The", 1.0, lambda: F.softmax_cross_entropy_forward(z, labels)[0], {"z": (dz, z)})
