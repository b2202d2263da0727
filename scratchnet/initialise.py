"""Weight initialisation. Whether VGG16 learns at all is decided here.

A layer computes z = sum of ``fan_in`` products x w. With independent weights of mean 0 the variance of z is
fan_in * Var(w) * E[x^2], and after a ReLU, which halves the second moment, E[x^2] = Var(z_previous) / 2. So
every layer multiplies the variance of the signal by fan_in * Var(w) / 2 (He et al. 2015, eq. 7 to 10):

===========  ============  ==================================================================================
name         Var(w)        factor per layer
===========  ============  ==================================================================================
``he``       2 / fan_in    1: the signal arrives at layer 16 as strong as it began
``pytorch``  1/(3 fan_in)  1/6: after 13 convolutions the signal is 10^-10 of what it was, and what reaches
                           the output is the bias alone: loss log(10), accuracy 10 %, hardly a gradient
``normal``   0.01^2        fan_in / 20,000, 0.001 to 0.23 in VGG16: the same fate
===========  ============  ==================================================================================

``he`` takes the fan-in, which keeps the forward signal; the fan-out would keep the backward one. In VGG the
two differ only where the number of channels doubles, by that factor of two, and it is the forward signal that
sets the scale of the logits, and so the first loss, which should be near log(number of classes).

The last layer has no ReLU after it and no layer to pass a signal to. If it begins with ``he`` all the same,
the first logits are of size one, most images are wrong with some confidence, and the gradients of the first
steps are large. Convolutions with batch normalisation shrug that off, and take learning rates that the two
hidden linear layers after them do not survive: VGG16-BN of half the width, at rate 0.05, has 88 % dead units
there after 40 steps, and after 150 steps 13 % right; with a last layer of a tenth the size it has 46 %
(``VGG(..., output_scale=0.1)``; Zhang, Dauphin and Ma 2019, "Fixup", begin it with zeros).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import sqrt

import numpy as np

Fill = Callable[[np.ndarray], None]


# Each returns two functions, which fill the weights and the biases in place. ``fan_in`` is how many products
# an output adds up: KH * KW * C for a convolution, the inputs for a linear layer.


def he(fan_in: int, rng: np.random.Generator) -> tuple[Fill, Fill]:
    """Normal weights of variance 2 / fan_in, biases zero (He et al. 2015, eq. 10). The default.

    Examples
    --------
    >>> weight = np.empty((9, 100))
    >>> he(fan_in=9, rng=np.random.default_rng(0))[0](weight)
    >>> bool(abs(weight.std() - sqrt(2 / 9)) < 0.02)
    True
    """
    return partial(_draw_normal, std=sqrt(2.0 / fan_in), rng=rng), zeros


def pytorch(fan_in: int, rng: np.random.Generator) -> tuple[Fill, Fill]:
    """PyTorch's default: weights and biases uniform between -1 / sqrt(fan_in) and 1 / sqrt(fan_in).

    ``torch.nn.Conv2d.reset_parameters`` calls it Kaiming with a = sqrt(5), which is a sixth of the variance
    that He et al. derive. A plain VGG16 does not learn from it. Kept by name, for lessons.

    Examples
    --------
    >>> weight = np.empty((9, 100))
    >>> pytorch(fan_in=9, rng=np.random.default_rng(0))[0](weight)
    >>> bool(abs(weight).max() <= 1 / 3)
    True
    """
    fill = partial(_draw_uniform, bound=1.0 / sqrt(fan_in), rng=rng)
    return fill, fill


def normal(fan_in: int, rng: np.random.Generator) -> tuple[Fill, Fill]:
    """Weights from N(0, 0.01^2), biases zero, whatever the fan-in (Krizhevsky et al. 2012, sec. 5).

    Simonyan and Zisserman (sec. 3.1) took it for VGG and could train only the shallow configuration A that
    way; the deeper ones began from A's trained layers. Kept by name, for lessons.

    Examples
    --------
    >>> weight = np.empty((9, 100))
    >>> normal(fan_in=9, rng=np.random.default_rng(0))[0](weight)
    >>> bool(abs(weight.std() - 0.01) < 0.001)
    True
    """
    return partial(_draw_normal, std=0.01, rng=rng), zeros


INITIALISATIONS = {"he": he, "pytorch": pytorch, "normal": normal}


def fills(name: str, fan_in: int, rng: np.random.Generator | None = None) -> tuple[Fill, Fill]:
    """Return what fills weights and biases, by the name of an initialisation; by default with a fixed seed.

    Examples
    --------
    >>> fill_weight, fill_bias = fills("he", fan_in=9)
    >>> bias = np.empty(2)
    >>> fill_bias(bias)
    >>> bias
    array([0., 0.])
    """
    if name not in INITIALISATIONS:
        raise ValueError(f"init must be one of {', '.join(INITIALISATIONS)}, not {name!r}")
    return INITIALISATIONS[name](fan_in, rng if rng is not None else np.random.default_rng(0))


# Partial functions of these, rather than closures: so a network that is copied or pickled before it is filled
# takes a generator of its own along, and draws the same weights as the original.


def zeros(out: np.ndarray) -> None:
    """Fill with zeros."""
    out[...] = 0.0


def ones(out: np.ndarray) -> None:
    """Fill with ones."""
    out[...] = 1.0


def _draw_normal(out: np.ndarray, std: float, rng: np.random.Generator) -> None:
    rng.standard_normal(out=out, dtype=out.dtype)
    out *= std


def _draw_uniform(out: np.ndarray, bound: float, rng: np.random.Generator) -> None:
    rng.random(out=out, dtype=out.dtype)
    out *= 2.0 * bound
    out -= bound
