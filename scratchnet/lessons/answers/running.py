"""The answers of lessons 6 to 9, on how a network runs, what it has learned, and layers of one's own."""

from __future__ import annotations

import numpy as np

from scratchnet import functional as F
from scratchnet.plans.cpu import winograd

_rng = np.random.default_rng(0)


def _normal(*shape):
    return _rng.standard_normal(shape)


# ---- 6: Winograd ---------------------------------------------------------------------------------------


saving = dict(
    right=lambda m, r: (m * r) ** 2 / (m + r - 1) ** 2,
    inputs=[(2, 3), (4, 3), (1, 3), (6, 5)],
    mistakes={
        "That is one dimension; here are two.": lambda m, r: m * r / (m + r - 1),
        "That is the inverse ratio.": lambda m, r: (m + r - 1) ** 2 / (m * r) ** 2,
        "There are m x m outputs, and each takes r x r.": lambda m, r: m * r**2 / (m + r - 1) ** 2,
    },
)

_BT, _G, _AT = winograd.matrices(winograd.POINTS[4])


def _winograd(tiles, U, BT, AT):
    V = np.einsum("ij,tjkc,lk->iltc", BT, tiles, BT)  # (6, 6, T, C)
    return np.einsum("ij,jkto,lk->tilo", AT, V @ U, AT)


winograd_convolution = dict(
    right=_winograd,
    inputs=[
        (_normal(5, 6, 6, 3), _normal(6, 6, 3, 2), _BT, _AT),
        (_normal(1, 6, 6, 1), _normal(6, 6, 1, 1), _BT, _AT),
    ],
    mistakes={
        "The tiles must come first: (T, 4, 4, O).": lambda *a: np.moveaxis(_winograd(*a), 0, 2),
        "The input transform is missing.": lambda tiles, U, BT, AT: _winograd(tiles, U, np.eye(6), AT),
    },
)

share_of_direct = dict(
    right=lambda C, O: (36 * C * O + 432 * C + 240 * O) / (144 * C * O),
    inputs=[(3, 64), (64, 64), (512, 512)],
    mistakes={
        "The transforms are missing.": lambda C, O: 0.25,
        "The input transform is two products of (6, 6) by (6, 6), 216 multiplications each.": lambda C, O: (
            (36 * C * O + 216 * C + 240 * O) / (144 * C * O)
        ),
        "The inverse is (4, 6) by (6, 6), then (4, 6) by (6, 4): 144 + 96 multiplications.": lambda C, O: (
            (36 * C * O + 432 * C + 288 * O) / (144 * C * O)
        ),
        "Not all of them but their share: divide by 144 C O.": lambda C, O: 36 * C * O + 432 * C + 240 * O,
    },
)


# ---- 7: CuPy -------------------------------------------------------------------------------------------


def _gradient(probabilities, labels):
    return (probabilities - np.eye(probabilities.shape[1])[labels]) / len(labels)


gradient = dict(  # for the wrapper that runs the answer on both libraries and counts copies
    right=lambda p, t: (_gradient(p, t), _gradient(p, t), 0),
    inputs=[(F.softmax(_normal(n, 10)), np.arange(n) % 10) for n in (2, 13)],
    results=("on NumPy", "on the device", "copies to the host"),
    mistakes={
        "The loss is a mean: divide by N.": lambda p, t: (
            _gradient(p, t) * len(t),
            _gradient(p, t) * len(t),
            0,
        ),
        "The result is right, but it went through the host: leave out .get() and float().": lambda p, t: (
            _gradient(p, t),
            _gradient(p, t),
            1,
        ),
    },
)

bytes_up = dict(
    right=256 * (32 * 32 * 3 + 8),
    name="bytes_up",
    mistakes={
        "The labels are missing.": 256 * 32 * 32 * 3,
        "A pixel has three bytes here: it becomes float32 on the device only.": 256 * (32 * 32 * 3 * 4 + 8),
        "An int64 has eight bytes.": 256 * (32 * 32 * 3 + 1),
        "A whole batch, not one image.": 32 * 32 * 3 + 8,
    },
)

operations_per_byte = dict(
    right=lambda N, I, O: 2 * N * I * O / (4 * (N * I + I * O + N * O)),
    inputs=[(128, 512, 4096), (1, 4096, 4096), (8, 100, 10)],
    mistakes={
        "Bytes, not numbers: a float32 has four.": lambda N, I, O: 2 * N * I * O / (N * I + I * O + N * O),
        "A multiply-add is two operations.": lambda N, I, O: N * I * O / (4 * (N * I + I * O + N * O)),
        "The result has to be written, too.": lambda N, I, O: 2 * N * I * O / (4 * (N * I + I * O)),
        "The weights have to be read, too.": lambda N, I, O: 2 * N * I * O / (4 * (N * I + N * O)),
    },
)


# ---- 8: a trained network ------------------------------------------------------------------------------


def _grad_cam(maps, weights):
    return np.maximum((maps * weights).sum(axis=3), 0)


def _mean(gradient):
    return gradient.mean(axis=(1, 2), keepdims=True)


my_grad_cam = dict(
    right=lambda maps, gradient: _grad_cam(maps, _mean(gradient)),
    inputs=[(_normal(2, 4, 4, 8), _normal(2, 4, 4, 8)), (_normal(1, 8, 8, 3), _normal(1, 8, 8, 3))],
    mistakes={
        "Only evidence for the class is kept: the maximum with 0 is missing.": lambda A, g: (
            A * _mean(g)
        ).sum(axis=3),
        "The weight of a channel is the mean over the pixels, not the sum.": lambda A, g: _grad_cam(
            A, g.sum(axis=(1, 2), keepdims=True)
        ),
        "First the mean of the gradient, then the product with the maps.": _grad_cam,
        "Add up the channels, do not average them.": lambda A, g: _grad_cam(A, _mean(g)) / A.shape[3],
    },
)


def occlusion(image, score, patch, step, colour=None):
    """Return how much the score falls where a patch of the mean colour covers an image, (rows, columns)."""
    colour = image.mean(axis=(0, 1)) if colour is None else colour
    tops = range(0, image.shape[0] - patch + 1, step)
    lefts = range(0, image.shape[1] - patch + 1, step)
    covered = np.stack([image] * (len(tops) * len(lefts)))
    for n, (i, j) in enumerate(np.ndindex(len(tops), len(lefts))):
        covered[n, tops[i] : tops[i] + patch, lefts[j] : lefts[j] + patch] = colour
    return (score(image[None])[0] - score(covered)).reshape(len(tops), len(lefts))


def _total(images):  # a score that is easily computed by hand
    return images.sum(axis=(1, 2, 3))


my_occlusion = dict(
    right=occlusion,
    inputs=[(np.arange(90.0).reshape(5, 6, 3) + 1, _total, patch, step) for patch, step in ((2, 1), (3, 2))],
    mistakes={
        "A fall counts as positive: score before minus score after.": lambda *a: -occlusion(*a),
        "That is the score of the covered image; the fall is the difference.": lambda image, score, *a: (
            score(image[None])[0] - occlusion(image, score, *a)
        ),
        "Rows first: the result is (rows, columns).": lambda *a: occlusion(*a).T,
        "The patch has the image's own mean colour, not zero.": lambda x, score, n, step: occlusion(
            x, score, n, step, 0
        ),
    },
)

fool = dict(
    right=lambda x, gradient, amount: x + amount * np.sign(gradient),
    inputs=[(_normal(2, 4, 4, 3), _normal(2, 4, 4, 3), 0.1)],
    mistakes={
        "The loss must grow: follow the gradient, not its opposite.": lambda x, g, a: x - a * np.sign(g),
        "Each pixel moves by the same amount: take the sign only.": lambda x, g, a: x + a * g,
    },
)


# ---- 9: a layer of your own ----------------------------------------------------------------------------


leaky_relu = dict(
    forward=lambda x: np.where(x > 0, x, 0.1 * x),
    x=_normal(2, 4, 4, 3),
    mistakes={
        "That is the derivative alone. The chain rule multiplies it by dy.": lambda x, dy: np.where(
            x > 0, 1, 0.1
        ),
        "That is the plain ReLU's: where x is negative, a tenth of dy passes.": lambda x, dy: dy * (x > 0),
        "It is the sign of x that decides, not that of dy.": lambda x, dy: np.where(dy > 0, dy, 0.1 * dy),
        "A tenth of dy, not of x.": lambda x, dy: np.where(x > 0, dy, 0.1 * x),
    },
)


def _slope_terms(x, dy):
    return np.where(x > 0, 0, dy * x)  # (N, H, W, C): each place's part of the slope's gradient


prelu = dict(
    forward=lambda x, w: np.where(x > 0, x, w * x),
    x=_normal(2, 4, 4, 3),
    mistakes={
        "It is a sum over the batch, not a mean: the loss already contains the mean.": lambda x, dy, w: (
            _slope_terms(x, dy).mean(axis=(0, 1, 2))
        ),
        "The slope is used where x is negative, and only there.": lambda x, dy, w: (dy * x).sum(
            axis=(0, 1, 2)
        ),
        "dy/dw is x: sum dy times x, where x is negative.": lambda x, dy, w: np.where(x > 0, 0, dy).sum(
            axis=(0, 1, 2)
        ),
        "Sum over all images, not only the first.": lambda x, dy, w: _slope_terms(x, dy)[0].sum(axis=(0, 1)),
        "Where x is negative, w times dy comes back to x.": lambda x, dy, w: dy * (x > 0),
    },
)


def _first_only(x, dy):
    dx = np.zeros_like(x)
    dx[:, ::2, ::2] = dy / 4
    return dx


avg_pool = dict(
    forward=lambda x: sum(x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4,
    x=_normal(2, 4, 4, 3),
    mistakes={
        "Each of the four counts for a quarter of the mean: divide by 4.": lambda x, dy: dy.repeat(
            2, axis=1
        ).repeat(2, axis=2),
        "All four pixels of a window get a share, not only the first.": _first_only,
    },
)
