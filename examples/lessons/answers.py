"""The right answers to the exercises. Solve them first, then look.

Each is a dict of arguments for ``lesson.check`` or ``lesson.check_layer``: the right answer, the inputs, and
the common mistakes, each as a function that makes it.
"""

from __future__ import annotations

import numpy as np

from scratchnet import functional as F
from scratchnet.plans.cpu import winograd

_rng = np.random.default_rng(0)


def _normal(*shape):
    return _rng.standard_normal(shape)


# ---- 1: a neuron ---------------------------------------------------------------------------------------


def _neuron_gradient(x, t, w, b):
    dz = (1 / (1 + np.exp(-(x @ w + b))) - t) / len(x)  # (N,)
    return x.T @ dz, dz.sum()


neuron_gradient = dict(
    right=_neuron_gradient,
    inputs=[
        (np.array([[2.0, 1.0]]), np.array([1]), np.array([0.5, -1.5]), 0.2),
        (_normal(50, 2), np.arange(50) % 2, np.array([0.3, -0.2]), 0.1),
    ],
    results=("dw", "db"),
    mistakes={
        "The loss is a mean over the points: divide by N.": lambda x, t, w, b: tuple(
            len(x) * d for d in _neuron_gradient(x, t, w, b)
        ),
        "The sign is wrong: the minus belongs to the step.": lambda x, t, w, b: tuple(
            -d for d in _neuron_gradient(x, t, w, b)
        ),
        "db is one number, the sum over the points.": lambda x, t, w, b: (
            _neuron_gradient(x, t, w, b)[0],
            (1 / (1 + np.exp(-(x @ w + b))) - t) / len(x),
        ),
    },
)

first_loss = dict(
    right=np.log(10),
    name="first_loss",
    tolerance=1e-3,
    mistakes={
        "That is the probability. The loss is minus its logarithm.": 0.1,
        "Take the natural logarithm, np.log.": 1.0,
        "A minus is missing.": -np.log(10),
    },
)

with_weight_decay = dict(
    right=lambda loss, dW, W, decay: (loss + decay / 2 * (W * W).sum(), dW + decay * W),
    inputs=[
        (2.3, np.ones((3, 2)), np.arange(6.0).reshape(3, 2), 0.1),
        (1.0, _normal(4, 3), _normal(4, 3), 5e-4),
    ],
    results=("loss", "dW"),
    mistakes={
        "The derivative of W^2 / 2 is W, not 2 W.": lambda loss, dW, W, decay: (
            loss + decay / 2 * (W * W).sum(),
            dW + 2 * decay * W,
        ),
        "The one half is missing in the loss.": lambda loss, dW, W, decay: (
            loss + decay * (W * W).sum(),
            dW + decay * W,
        ),
    },
)


# ---- 2: convolution as one matrix product --------------------------------------------------------------


output_size = dict(
    right=F.conv_output_size,
    inputs=[(4, 3, 1, 0), (32, 3, 1, 1), (32, 2, 2, 0), (7, 3, 2, 0), (6, 3, 2, 0), (224, 7, 2, 3)],
    mistakes={
        "A kernel of side 1 finds a place at every pixel: add one.": lambda s, k, step, p: (
            (s + 2 * p - k) // step
        ),
        "There is padding on both sides.": lambda s, k, step, p: (s + p - k) // step + 1,
        "What fills no whole window is left out: round down.": lambda s, k, step, p: (
            (s + 2 * p - k) / step + 1
        ),
    },
)


def _im2col(x, kernel):
    return F.im2col(x[None], kernel)


def _channels_first(x, kernel):
    patches = _im2col(x, kernel).reshape(-1, kernel * kernel, x.shape[2])
    return patches.transpose(0, 2, 1).reshape(len(patches), -1)


def _down_first(x, kernel):
    OH, OW = x.shape[0] - kernel + 1, x.shape[1] - kernel + 1
    return _im2col(x, kernel).reshape(OH, OW, -1).transpose(1, 0, 2).reshape(OH * OW, -1)


my_im2col = dict(
    right=_im2col,
    inputs=[(_normal(4, 5, 1), 3), (_normal(4, 5, 1), 2), (_normal(4, 5, 2), 3)],
    mistakes={
        "The rows should be patches, not the columns.": lambda x, kernel: _im2col(x, kernel).T,
        "Channels come last within a patch: (i, j, c).": _channels_first,
        "Row oh * OW + ow: ow has to run faster than oh.": _down_first,
    },
)

_looks_left = np.array([[0, 0, 0], [1, 0, 0], [0, 0, 0]])

shift = dict(
    right=_looks_left,
    name="shift",
    mistakes={
        "That moves it to the left: an output pixel shows what its kernel looks at.": _looks_left[:, ::-1],
        "That moves it down.": _looks_left.T,
        "That moves it up.": _looks_left.T[::-1],
    },
)


# ---- 3: backward ---------------------------------------------------------------------------------------


product_backward = dict(
    right=lambda columns, W, dy: (columns.T @ dy, dy.sum(axis=0), dy @ W.T),
    inputs=[(_normal(4, 9), _normal(9, 1), _normal(4, 1)), (_normal(6, 4), _normal(4, 3), _normal(6, 3))],
    results=("dW", "db", "dcolumns"),
    mistakes={
        "db has one number for each output channel: sum over the rows, axis 0.": lambda columns, W, dy: (
            columns.T @ dy,
            dy.sum(),
            dy @ W.T,
        ),
        "The gradients are sums; the mean over the batch is already in dy.": lambda columns, W, dy: (
            columns.T @ dy / len(dy),
            dy.sum(axis=0),
            dy @ W.T,
        ),
        "db is a sum; the mean over the batch is already in dy.": lambda columns, W, dy: (
            columns.T @ dy,
            dy.mean(axis=0),
            dy @ W.T,
        ),
    },
)


def _overwrites(columns, shape, kernel):
    H, W, C = shape
    x = np.zeros(shape)
    for row, (oh, ow) in zip(columns, np.ndindex(H - kernel + 1, W - kernel + 1), strict=True):
        x[oh : oh + kernel, ow : ow + kernel] = row.reshape(kernel, kernel, C)
    return x


my_col2im = dict(
    right=lambda columns, shape, kernel: F.col2im(columns, (1, *shape), kernel)[0],
    inputs=[(np.ones((4, 4)), (3, 3, 1), 2), (_normal(6, 18), (4, 5, 2), 3)],
    mistakes={"Patches overlap: add with +=, do not overwrite with =.": _overwrites},
)


def _pool_backward(x, dy):
    _, cache = F.max_pool2d_forward(x[None, :, :, None])
    return F.max_pool2d_backward(dy[None, :, :, None], cache)[0, :, :, 0]


def _pays_every_winner(x, dy):
    y = F.max_pool2d_forward(x[None, :, :, None])[0][0, :, :, 0]
    return (x == np.kron(y, np.ones((2, 2)))) * np.kron(dy, np.ones((2, 2)))


my_pool_backward = dict(
    right=_pool_backward,
    inputs=[(_normal(4, 6), _normal(2, 3)), (np.maximum(_normal(6, 6), 0).round(), _normal(3, 3))],
    mistakes={
        "In a tie only the first gets the gradient: np.argmax finds the first.": _pays_every_winner,
        "Only the winner gets it, not the whole window.": lambda x, dy: np.kron(dy, np.ones((2, 2))),
        "In a tie the first counts, not the last.": lambda x, dy: _pool_backward(
            x[::-1, ::-1], dy[::-1, ::-1]
        )[::-1, ::-1],
    },
)


# ---- 4: ten per cent -----------------------------------------------------------------------------------


weight_std = dict(
    right=lambda k, c, slope: np.sqrt(2 / ((1 + slope**2) * k * k * c)),
    inputs=[(3, 64, 0.0), (3, 512, 0.2), (5, 16, 1.0)],
    mistakes={
        "That is the variance; its square root is wanted.": lambda k, c, s: 2 / ((1 + s**2) * k * k * c),
        "A patch has its height times its width times the channels in it.": lambda k, c, s: np.sqrt(
            2 / ((1 + s**2) * k * c)
        ),
        "Each output adds up all input channels.": lambda k, c, s: np.sqrt(2 / ((1 + s**2) * k * k)),
        "The ReLU halves the mean square: a 2 is missing.": lambda k, c, s: np.sqrt(
            1 / ((1 + s**2) * k * k * c)
        ),
    },
)

verdicts = {
    ("pytorch", 0.01): "vanished",
    ("he", 0.1): "dead",
    ("he", 0.01): "learns",
    ("he", 1.0): "not finite",
}


# ---- 5: batch normalisation ----------------------------------------------------------------------------


def _normalise_over(axes, ddof=0):
    def wrong(x, gamma, beta, eps=1e-5):
        mean, var = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True, ddof=ddof)
        return gamma * (x - mean) / np.sqrt(var + eps) + beta

    return wrong


_maps = _normal(4, 3, 3, 2) * [1, 5] + [0, 7]

normalise = dict(
    right=lambda x, gamma, beta: F.batch_norm_forward(x, gamma, beta)[0],
    inputs=[(_maps, np.ones(2), np.zeros(2)), (_maps, np.array([2.0, 0.5]), np.array([1.0, -1.0]))],
    mistakes={
        "One mean for all channels: average over axes (0, 1, 2) only.": _normalise_over((0, 1, 2, 3)),
        "Not each image separately: the mean includes the batch, axis 0, too.": _normalise_over((1, 2)),
        "Not each place separately: the mean includes axes 1 and 2, too.": _normalise_over(0),
        "The variance divides by M here, not by M - 1.": _normalise_over((0, 1, 2), ddof=1),
    },
)


def _normalise_backward(x, gamma, dy):
    return F.batch_norm_backward(dy, F.batch_norm_forward(x, gamma, np.zeros_like(gamma))[1])


def _backward_without(mean=False, variance=False, scale=False):
    def wrong(x, gamma, dy):
        _, dgamma, dbeta = _normalise_backward(x, gamma, dy)
        s = np.sqrt(x.var(axis=0) + 1e-5)
        h = (x - x.mean(axis=0)) / s
        dh = dy if scale else dy * gamma
        dx = dh - (0 if mean else dh.mean(axis=0)) - (0 if variance else h * (dh * h).mean(axis=0))
        return dx / s, dgamma, dbeta

    return wrong


normalise_backward = dict(
    right=_normalise_backward,
    inputs=[(_normal(6, 1), np.ones(1), _normal(6, 1)), (3 + 2 * _normal(9, 4), _normal(4), _normal(9, 4))],
    results=("dx", "dgamma", "dbeta"),
    mistakes={
        "That is the direct path alone.": _backward_without(mean=True, variance=True),
        "The path through the mean is missing.": _backward_without(mean=True),
        "The path through the variance is missing.": _backward_without(variance=True),
        "dh is gamma times dy.": _backward_without(scale=True),
    },
)


def _fold(W, b, gamma, beta, mean, var):
    factor = gamma / np.sqrt(var + 1e-5)
    return W * factor, (b - mean) * factor + beta


fold = dict(
    right=_fold,
    inputs=[(_normal(3, 3, 2, 3), _normal(3), _normal(3), _normal(3), _normal(3), np.array([0.5, 2.0, 4.0]))],
    results=("weight", "bias"),
    mistakes={
        "The convolution's own bias is scaled, too.": lambda W, b, gamma, beta, mean, var: (
            _fold(W, b, gamma, beta, mean, var)[0],
            b - mean * gamma / np.sqrt(var + 1e-5) + beta,
        ),
        "Divide by the standard deviation, not by the variance.": lambda W, b, gamma, beta, mean, var: (
            W * gamma / (var + 1e-5),
            (b - mean) * gamma / (var + 1e-5) + beta,
        ),
    },
)


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
        "The patch has the image's own mean colour, not zero.": lambda *a: occlusion(*a, colour=0),
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
