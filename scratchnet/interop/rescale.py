"""Layers of other people's networks brought to one scale, so that all of them learn at the same rate.

Weights that were trained on pixels from 0 to 255 (Caffe's and Keras's VGG16) give feature maps of values in
the hundreds. A new head sees them, the first loss is 20 in place of log(number of classes), and no learning
rate suits both body and head. Krähenbühl, Doersch, Donahue and Darrell, "Data-dependent initializations of
convolutional neural networks" (2016), section 3.2, rescale such a network without changing what it computes:
ReLU, pooling and dropout are positively homogeneous, f(c x) = c f(x) for c > 0, and so with
z_l = W_l x_(l-1) + b_l and any factors c_l > 0 ::

    W_l <- W_l c_l / c_(l-1)      b_l <- b_l c_l      then   z_l <- c_l z_l

Here c_l = 1 / rms(z_l) on a batch of images: every layer's output has a root mean square of one.
"""

from __future__ import annotations

import numpy as np

from scratchnet.backend import Array, array_module
from scratchnet.layers import Conv2d, Layer, Linear, leaves
from scratchnet.state import preserved


def rescale_layers(net: Layer, x: Array, *, new_head: bool = False) -> float:
    """Give the output of every convolution and linear layer, but of the last, a root mean square of one.

    What the network computes stays the same but for rounding, since the last layer's weights take up the
    factor; with a new head, which has nothing to keep, all that was before it is divided by the factor.

    Parameters
    ----------
    net : Layer
        A chain of convolutions, linear layers and layers that are positively homogeneous.
    x : array (N, H, W, C)
        Normalised training images, on the network's backend; some 64 suffice.
    new_head : bool
        Leave the last convolution or linear layer as it is.

    Returns
    -------
    float
        How many times larger the input of the last layer was.

    Raises
    ------
    ValueError
        If a layer is not homogeneous, such as a batch normalisation, or a layer's output is zero or not
        finite. The network has not been changed then.

    Examples
    --------
    >>> from scratchnet.models import vgg11
    >>> net = vgg11(num_classes=3, image_size=32, width=0.125, classifier_width=16).eval()
    >>> for name, p in net.parameters().items():
    ...     p.data *= 3.0
    >>> x = np.random.default_rng(0).standard_normal((8, 32, 32, 3)).astype(np.float32)
    >>> before = net.forward(x)
    >>> factor = rescale_layers(net, x)
    >>> bool(np.allclose(net.forward(x), before, rtol=1e-3, atol=1e-3 * abs(before).max()))
    True
    >>> float(np.sqrt((net.features[0].forward(x) ** 2).mean()).round(3))
    1.0
    """
    layers = leaves(net)
    weighted = [layer for _, layer in layers if isinstance(layer, Conv2d | Linear)]
    factors = {}  # c_l of each layer
    with preserved(net):
        net.eval()
        for path, layer in layers:
            if weighted and layer is weighted[-1]:
                break
            y = layer.forward(x)
            if isinstance(layer, Conv2d | Linear):
                factors[layer] = 1.0 / _size(y, path)
            elif not bool((layer.forward(2 * x) == 2 * y).all()):
                raise ValueError(f"{path} ({type(layer).__name__}) is not homogeneous: f(2x) is not 2 f(x)")
            x = y
    before = 1.0
    for layer in weighted[:-1]:
        layer.weight.data *= factors[layer] / before
        before = factors[layer]
        if layer.bias is not None:
            layer.bias.data *= before
    if not new_head and weighted:
        weighted[-1].weight.data /= before
    return 1.0 / before


def _size(y: Array, path: str) -> float:
    """Return the root mean square of a layer's output."""
    size = float(array_module(y).sqrt((y.astype(np.float64) ** 2).mean()))
    if not 0 < size < float("inf"):
        raise ValueError(f"the output of {path} is {'zero' if size == 0 else 'not finite'} for these images")
    return size
