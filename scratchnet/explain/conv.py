"""Walk through a convolution: see ``functional/conv.py`` for the mathematics."""

from __future__ import annotations

import numpy as np

from scratchnet import functional as F
from scratchnet.backend import Array
from scratchnet.explain.page import Page, Parts, number, products, signed, small_integers

K, O = 3, 2  # a 3 x 3 kernel, two output channels
DRAWN = 4  # patches to draw


def walk(
    page: Page, size: int, backward: bool, seed: int, channels: int = 1, stride: int = 1, padding: int = 0
) -> None:
    """Write the walk: patches to rows, the product, and with ``backward`` the way back."""
    if size + 2 * padding < K:
        raise ValueError(
            f"a {K} x {K} kernel does not fit into {size} x {size} pixels with padding {padding}: "
            f"take --size {K - 2 * padding} or more"
        )
    rng = np.random.default_rng(seed)
    H = W = size
    C, S, P = channels, stride, padding
    # The pixels are numbered so that each can be recognised wherever it turns up.
    x = np.arange(1.0, H * W * C + 1).reshape(1, H, W, C)
    weight, bias = small_integers(rng, K, K, C, O, largest=2), small_integers(rng, O)
    OH = OW = F.conv_output_size(H, K, S, P)
    places = [(oh, ow) for oh in range(OH) for ow in range(OW)]

    page.heading("The input, the weight and the bias")
    page.say(f"""One image of {H} x {W} pixels, channels last: x (N, H, W, C) = {x.shape}. Its numbers count
        up so that each can be recognised wherever it turns up.""")
    page.show(*[page.matrix(f"x, channel {c}", x[0, :, :, c], shape="") for c in range(C)])
    page.say(f"A {K} x {K} kernel for each output channel o: weight (KH, KW, C, O) = {weight.shape}.")
    names = [(f"o = {o}" if C == 1 else f"o = {o}, c = {c}", o, c) for o in range(O) for c in range(C)]
    page.show(*[page.matrix(name, weight[:, :, c, o], shape="") for name, o, c in names])
    page.show(page.matrix("bias", bias))

    page.heading("1. Every patch becomes a row (im2col)")
    border = f"Around the image stands a border of zeros, {P} wide (padding)." if P else ""
    page.say(f"""The kernel moves by {S}: OH = (H + 2 P - KH) // S + 1 = ({H} + {2 * P} - {K}) // {S} + 1 =
        {OH} positions down, and {OW} across. Under each of the {len(places)} output pixels lies a patch.
        {border}""")
    columns = F.im2col(x, K, S, P)
    for r, (oh, ow) in enumerate(places[:DRAWN]):
        _draw_patch(page, x, r, oh, ow, S, P, columns[r])
    if len(places) > DRAWN:
        page.say(f"The other {len(places) - DRAWN} patches go the same way.")
    page.say(f"""All of them, the column matrix. Row (oh, ow) belongs to that output pixel; the columns go
        through the kernel's rows i and columns
        j{", and in each pixel through its channels c" if C > 1 else ""}.""")
    order = list(np.ndindex(K, K, C))
    heads = [(letter, [place[a] for place in order]) for a, letter in enumerate("ijc"[: 2 + (C > 1)])]
    labels = [f"row {r} ({oh},{ow})" for r, (oh, ow) in enumerate(places)]
    shape = f"(N*OH*OW, KH*KW*C) = {columns.shape}"
    page.show(page.matrix("columns", columns, rows=labels, columns=heads, shape=shape))
    padded = np.pad(x[0], ((P, P), (P, P), (0, 0)))
    patches = [padded[oh * S : oh * S + K, ow * S : ow * S + K].ravel() for oh, ow in places]
    page.same("the patches, cut out one by one", columns, np.array(patches))
    many = ": pixels under several patches are copied" if columns.size > x.size else ""
    page.say(f"The image has {x.size} numbers, the column matrix {columns.size}{many}.")

    page.heading("2. One matrix product")
    page.say("The weight as a matrix, W2, in the same order i, j, c. It shares the weight's memory.")
    W2 = weight.reshape(K * K * C, O)
    taps = [",".join(map(str, place[: 2 + (C > 1)])) for place in order]
    page.show(page.matrix("W2", W2, rows=taps, columns=[("o", range(O))], shape=f"(KH*KW*C, O) = {W2.shape}"))
    y2 = columns @ W2 + bias
    page.say(f"""columns W2 + bias: {columns.shape} times {W2.shape} gives {y2.shape}, a row for each output
        pixel.""")
    page.show(page.matrix("y2", y2, {(0, 0)}, rows=labels, columns=[("o", range(O))]))
    product = number(columns[0] @ W2[:, 0])
    page.say("The number in brackets, written out:")
    page.say(
        f"""{products(zip(columns[0], W2[:, 0], strict=True))} = {product}, and with the bias {product} +
        {signed(bias[0])} = {number(y2[0, 0])}""",
        indent=2,
    )

    page.heading("3. The rows are the output's pixels")
    y, cache = F.conv2d_forward(x, weight, bias, S, P)
    page.say(f"Reshaped, without a copy: y (N, OH, OW, O) = {y.shape}, channels last again.")
    page.show(*[page.matrix(f"y, channel {o}", y2.reshape(y.shape)[0, ..., o], shape="") for o in range(O)])
    page.same("conv2d_forward(x, weight, bias)", y2.reshape(y.shape), y)
    page.same("the convolution by its definition, six loops", y, F.conv2d_six_loops(x, weight, bias, S, P))
    if not backward:
        return

    dy = small_integers(rng, *y.shape)
    dx, dweight, dbias = F.conv2d_backward(dy, cache)
    page.heading("4. The way back: dy, then dW and db")
    page.say(f"""The next layer hands back dy {dy.shape}: how much the loss L changes with each number of y.
        As rows it is dy2. (To check: L = the sum of dy * y has exactly this gradient.)""")
    dy2 = dy.reshape(-1, O)
    page.show(page.matrix("dy2", dy2, rows=labels, columns=[("o", range(O))]))
    page.say(f"""y2 = columns W2 + bias is a linear layer, so dW = columns^T dy2: {columns.T.shape} times
        {dy2.shape} gives {(columns.shape[1], O)}. Every output pixel used the same weights, so all add to
        their gradient.""")
    page.say("For the kernel's first number and o = 0, row by row:")
    terms = products(zip(columns[:, 0], dy2[:, 0], strict=True))
    page.say(f"{terms} = {number(columns[:, 0] @ dy2[:, 0])}", indent=2)
    page.same("conv2d_backward's dW", (columns.T @ dy2).reshape(weight.shape), dweight)
    page.say(f"db = the sum of dy over all pixels, {dbias.shape}: the bias was added to each of them.")
    page.show(page.matrix("db", dy2.sum(axis=0)))
    page.same("conv2d_backward's db", dy2.sum(axis=0), dbias)

    page.heading("5. dcolumns: what each copy of a pixel gets")
    dcolumns = dy2 @ W2.T
    page.say(f"dcolumns = dy2 W2^T: {dy2.shape} times {W2.T.shape} gives {dcolumns.shape}, as columns.")
    counts = F.col2im(np.ones_like(columns), x.shape, K, S, P)[0, :, :, 0]
    h, w = divmod(int(counts.argmax()), W)  # the first pixel that is copied most often
    windows = ((r, oh * S - P, ow * S - P) for r, (oh, ow) in enumerate(places))
    inside = [(r, h - top, w - left) for r, top, left in windows if 0 <= h - top < K and 0 <= w - left < K]
    copies = [(r, (i * K + j) * C, i, j) for r, i, j in inside]  # row and column of the matrix, tap
    mark = {(r, k) for r, k, *_ in copies}
    page.show(page.matrix("dcolumns", dcolumns, mark, rows=labels, columns=heads))

    page.heading("6. The copies are added up (col2im)")
    which = f"pixel ({h},{w})" + (" (its channel 0)" if C > 1 else "")
    rows = "row" if len(copies) == 1 else "rows"
    page.say(f"""im2col copied {which} into {len(copies)} {rows}, in brackets above. Change it, and every copy
        changes; so its gradient is the sum of {len(copies)} numbers:""")
    page.write(
        *[f"row {r}, as tap ({i},{j}):".ljust(24) + f"{number(dcolumns[r, k]):>8}" for r, k, i, j in copies],
        "sum:".ljust(24) + f"{number(dx[0, h, w, 0]):>8}",
    )
    page.same(f"conv2d_backward's dx of {which}", sum(dcolumns[r, k] for r, k, *_ in copies), dx[0, h, w, 0])
    ending = " (what falls on the padding is dropped)" if P else ", and as many numbers add up"
    page.say(f"The column matrix holds this many copies of each pixel{ending}:")
    page.show(page.matrix("copies", counts, {(h, w)}))
    page.same("conv2d_backward's dx, all of col2im(dcolumns)", F.col2im(dcolumns, x.shape, K, S, P), dx)

    arrays = {"x": (dx, x), "weight": (dweight, weight), "bias": (dbias, bias)}
    parts: dict[str, Parts] = {"x": [(f", channel {c}", np.s_[0, :, :, c]) for c in range(C)]}
    parts["weight"] = [(f", {name}", np.s_[:, :, c, o]) for name, o, c in names]
    page.gradients("7. Every", dy, lambda: F.conv2d_forward(x, weight, bias, S, P)[0], arrays, parts=parts)


def _draw_patch(page: Page, x: Array, r: int, oh: int, ow: int, S: int, P: int, row: Array) -> None:
    """Show the image with one patch in brackets, and the row that it becomes."""
    padded = np.pad(x[0, :, :, 0], P)
    top, left = oh * S, ow * S
    mark = {(top + i, left + j) for i in range(K) for j in range(K)}
    at = f"rows {top - P} to {top - P + K - 1}, columns {left - P} to {left - P + K - 1}"
    page.write(f"Output pixel ({oh},{ow}): {at} become row {r} of the matrix")
    channel = "x, channel 0" if x.shape[3] > 1 else "x"
    whole = page.matrix(f"{channel}, padded" if P else channel, padded, mark, shape="")
    page.show(whole, page.matrix(f"row {r}", row, shape=""), between="->")
