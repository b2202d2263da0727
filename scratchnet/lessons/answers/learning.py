"""The answers of lessons 1 to 5, on how a network learns."""

from __future__ import annotations

import numpy as np

from scratchnet import functional as F

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
