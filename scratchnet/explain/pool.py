"""Walk through max pooling: see ``functional/pool.py`` for the mathematics."""

from __future__ import annotations

import numpy as np

from scratchnet import functional as F
from scratchnet.explain.page import Page, number, small_integers

K = 2  # 2 x 2 windows
DRAWN = 4  # windows to draw


def walk(page: Page, size: int, backward: bool, seed: int, stride: int = 2) -> None:
    """Write the walk: windows and winners, and with ``backward`` where the gradient goes."""
    rng = np.random.default_rng(seed)
    S = stride
    image = rng.permutation(size * size).astype(float).reshape(size, size)
    image[0, 1] = image[1, 0] = size * size  # a tie in the first window
    x = image.reshape(1, size, size, 1)
    OH = OW = F.conv_output_size(size, K, S)
    windows = {(oh, ow): (oh * S, ow * S) for oh in range(OH) for ow in range(OW)}

    page.heading("1. The largest of each window")
    page.say(f"""An image of {size} x {size} pixels, one channel: x (N, H, W, C) = {x.shape}. A window of {K}
        x {K} moves by {S}: OH = (H - K) // S + 1 = ({size} - {K}) // {S} + 1 = {OH} positions down, {OW}
        across.""")
    values = np.array([image[t : t + K, l : l + K].ravel() for t, l in windows.values()])
    winners = values.argmax(axis=1)  # the first of equals
    for n, ((oh, ow), (t, l)) in enumerate(list(windows.items())[:DRAWN]):
        mark = {(t + i, l + j) for i in range(K) for j in range(K)}
        page.write(f"Output pixel ({oh},{ow}): rows {t} to {t + K - 1}, columns {l} to {l + K - 1}")
        winner = {(0, int(winners[n]))}
        window = page.matrix("window", values[n], winner, columns=[("", range(K * K))], shape="")
        page.show(page.matrix("x", image, mark, shape=""), window, between="->")
        if (values[n] == values[n].max()).sum() > 1:
            page.say("A tie. Only the first counts, so exactly one will get the gradient.", indent=2)
    if len(windows) > DRAWN:
        page.say(f"The other {len(windows) - DRAWN} windows go the same way.")
    page.say("""The output is the largest of each window. The backward pass keeps only its position, a byte
        each, counted row by row: 0 1 above 2 3.""")
    y, cache = F.max_pool2d_forward(x, K, S)
    expected = values.max(axis=1).reshape(OH, OW)
    places = winners.reshape(OH, OW)
    page.show(page.matrix("y", expected, shape=y.shape), page.matrix("winner", places, shape=""))
    page.same("max_pool2d_forward(x)", expected, y[0, :, :, 0])
    page.same("the winners that it keeps", places, cache[0][0, :, :, 0])
    if not backward:
        return

    page.heading("2. The way back: dy goes to the winner")
    page.say("""y = x[winner], so dy goes to the winner of each window; the other pixels did not matter, and
        get 0. (To check: L = the sum of dy * y has the gradient dy.)""")
    dy = small_integers(rng, OH, OW)
    dx = F.max_pool2d_backward(dy.reshape(1, OH, OW, 1), cache)[0, :, :, 0]
    own = np.zeros_like(image)
    shares: dict[tuple[int, int], list[float]] = {}
    for g, (t, l), k in zip(dy.ravel(), windows.values(), winners, strict=True):
        pixel = t + int(k) // K, l + int(k) % K
        own[pixel] += g
        shares.setdefault(pixel, []).append(g)
    page.show(page.matrix("dy", dy, shape=""), page.matrix("dx", own, set(shares)), between="->")
    pixel, gradients = max(shares.items(), key=lambda item: len(item[1]))
    if len(gradients) > 1:
        terms = " + ".join(number(g) if g >= 0 else f"({number(g)})" for g in gradients)
        page.say(f"""Windows overlap here: pixel {pixel} won {len(gradients)} of them, and adds up what it
            gets from each: {terms} = {number(sum(gradients))}.""")
    page.same("max_pool2d_backward(dy)", own, dx)

    tied = np.zeros(image.shape, bool)
    for v, (t, l) in zip(values, windows.values(), strict=True):
        largest = (v == v.max()).reshape(K, K)
        if largest.sum() > 1:
            tied[t : t + K, l : l + K] |= largest
    arrays = {"x": (dx, image)}  # x is a view of the image
    page.gradients("3. The", dy, lambda: F.max_pool2d_forward(x, K, S)[0][0, :, :, 0], arrays, kinks=tied)
    page.say("""In brackets are ties: a kink, without a derivative. Moved up, a pixel of a tie wins; moved
        down, the other does; so the central difference gives each of the two half of that window's dy. Max
        pooling gives the first all of it and the other nothing.""")
