"""Walk through a linear layer: see ``functional/linear.py`` for the mathematics."""

from __future__ import annotations

import numpy as np

from scratchnet import functional as F
from scratchnet.explain.page import Page, number, products, signed, small_integers

N, O = 2, 3  # two rows in the batch, three outputs


def walk(page: Page, size: int, backward: bool, seed: int) -> None:
    """Write the walk: the product, and with ``backward`` the three gradients."""
    rng = np.random.default_rng(seed)
    I = size
    x, weight, bias = small_integers(rng, N, I), small_integers(rng, I, O), small_integers(rng, O)
    page.heading("1. A product of matrices, and the bias")
    page.say(f"A batch of N = {N} rows with I = {I} features each, and O = {O} outputs: y = x W + b.")
    row = {(0, i) for i in range(I)}
    column = {(i, 0) for i in range(I)}
    page.show(page.matrix("x", x, row), page.matrix("W", weight, column), between="@")
    y, cache = F.linear_forward(x, weight, bias)
    page.show(page.matrix("b", bias, {(0, 0)}), page.matrix("y", x @ weight + bias, {(0, 0)}))
    page.say("The numbers in brackets, written out: row 0 of x times column 0 of W, and b[0].")
    terms = products(zip(x[0], weight[:, 0], strict=True))
    page.say(f"y[0, 0] = {terms} + {signed(bias[0])} = {number(x[0] @ weight[:, 0] + bias[0])}", indent=2)
    page.same("linear_forward(x, W, b)", x @ weight + bias, y)
    if not backward:
        return

    dy = small_integers(rng, N, O)
    dx, dweight, dbias = F.linear_backward(dy, cache)
    page.heading("2. The way back")
    page.say("""The next layer hands back dy: how much the loss changes with each number of y. In y[n, o] =
        the sum over i of x[n, i] W[i, o] + b[o] every product has two factors; the gradient of one is dy
        times the other, summed over the index that the two share. (To check: L = the sum of dy * y.)""")
    page.show(page.matrix("dy", dy))
    page.say(f"dx = dy W^T, summed over the outputs o: {dy.shape} times {weight.T.shape}.")
    page.show(page.matrix("dx", dy @ weight.T, {(0, 0)}))
    terms = products(zip(dy[0], weight[0], strict=True))
    page.say(f"dx[0, 0] = {terms} = {number(dy[0] @ weight[0])}", indent=2)
    page.same("linear_backward's dx", dy @ weight.T, dx)
    page.say(f"dW = x^T dy, summed over the batch n: {x.T.shape} times {dy.shape}.")
    page.show(page.matrix("dW", x.T @ dy, {(0, 0)}))
    terms = products(zip(x[:, 0], dy[:, 0], strict=True))
    page.say(f"dW[0, 0] = {terms} = {number(x[:, 0] @ dy[:, 0])}", indent=2)
    page.same("linear_backward's dW", x.T @ dy, dweight)
    page.say("db = the sum of dy over the batch: the bias was added to every row.")
    page.show(page.matrix("db", dy.sum(axis=0)))
    page.same("linear_backward's db", dy.sum(axis=0), dbias)

    arrays = {"x": (dx, x), "W": (dweight, weight), "b": (dbias, bias)}
    page.gradients("3. Every", dy, lambda: F.linear_forward(x, weight, bias)[0], arrays)
