"""Views into a network: its first filters, its feature maps, where it looks, and what it mistakes.

Arrays in, arrays out, and nothing is drawn here. Networks must be chains of layers, as a ``Sequential`` or a
VGG is. They are run in evaluation mode, layer by layer; afterwards mode and gradients are what they were.
Images ``x`` are normalised, float, (N, H, W, 3), on the host, and so is every result.

Sources: Zeiler and Fergus, "Visualizing and understanding convolutional networks" (2014); Selvaraju et al.,
"Grad-CAM: visual explanations from deep networks via gradient-based localization" (2017).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from scratchnet.backend import Array, to_numpy
from scratchnet.layers import Conv2d, Layer, MaxPool2d, ReLU, leaves
from scratchnet.state import preserved

# From cold to hot, each colour brighter than the one before: it also reads without colours.
RAMP = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))


def filters(net: Layer) -> np.ndarray:
    """Return the first convolution's filters as images, one for each output channel.

    A filter has a weight for each of red, green and blue at each place of its kernel, so it is a small
    image of what it answers to (Zeiler and Fergus 2014, fig. 2). Grey, 0.5, is a weight of zero; all
    filters share one scale, so that weak ones look weak.

    Parameters
    ----------
    net : Layer

    Returns
    -------
    array (O, KH, KW, 3), float from 0 to 1

    Raises
    ------
    ValueError
        If the first convolution does not see three channels, or there is none.

    Examples
    --------
    >>> from scratchnet.models import vgg11
    >>> filters(vgg11(num_classes=10, image_size=32, width=0.125, classifier_width=16)).shape
    (8, 3, 3, 3)
    """
    first = next((layer for _, layer in leaves(net) if isinstance(layer, Conv2d)), None)
    if first is None or first.in_channels != 3:
        raise ValueError("only a network whose first convolution sees red, green and blue has such filters")
    weight = to_numpy(first.weight.data).transpose(3, 0, 1, 2)  # (O, KH, KW, 3)
    return 0.5 + 0.5 * weight / max(abs(weight).max(), np.finfo(weight.dtype).tiny)


def feature_maps(net: Layer, x: np.ndarray) -> dict[str, np.ndarray]:
    """Return the output of every ReLU and every pooling that gives feature maps, (N, H, W, C).

    Parameters
    ----------
    net : Layer
    x : array (N, H, W, 3)

    Returns
    -------
    dict
        From the layer's path to its output (N, OH, OW, C), first to last.

    Examples
    --------
    >>> from scratchnet.models import vgg11
    >>> net = vgg11(num_classes=10, image_size=32, width=0.125, classifier_width=16)
    >>> maps = feature_maps(net, np.zeros((1, 32, 32, 3), "float32"))
    >>> [(path, y.shape) for path, y in maps.items()][:2]
    [('features.1', (1, 32, 32, 8)), ('features.2', (1, 16, 16, 8))]
    """
    found = {}
    with preserved(net):
        net.eval()
        x = net.backend.asarray(x)
        for path, layer in leaves(net):
            x = layer.forward(x)
            if x.ndim == 4 and isinstance(layer, (ReLU, MaxPool2d)):
                found[path] = to_numpy(x)
    return found


def most_active(maps: np.ndarray, count: int = 12) -> np.ndarray:
    """Return the most active channels of one image's maps, by their mean over all pixels.

    Parameters
    ----------
    maps : array (H, W, C)
    count : int, how many at most

    Returns
    -------
    array of int, the most active first

    Examples
    --------
    >>> most_active(np.array([[[0.0, 3.0, 1.0]]]), count=2)
    array([1, 2])
    """
    return np.argsort(-maps.mean(axis=(0, 1)), kind="stable")[:count]


def logit_gradient(
    net: Layer, x: np.ndarray, classes: int | Sequence[int] | None = None, layer: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return a layer's output and the gradient of one logit per image with respect to it.

    The logit is a number for each image, so its gradient with respect to the logits is one at that class and
    zero elsewhere; from there the layers' own ``backward`` carries it down, and stops at the layer. In
    evaluation no image sees another, therefore a whole batch can go at once.

    Parameters
    ----------
    net : Layer
    x : array (N, H, W, 3)
    classes : int or sequence of N int, optional
        Whose logit; by default each image's highest.
    layer : str, optional
        Path of the layer, such as ``features.29``; by default the last ReLU that gives feature maps.

    Returns
    -------
    maps, gradient : array (N, H, W, C)

    Raises
    ------
    ValueError
        If there is no such layer, its output is no feature map, or a class does not exist.

    Examples
    --------
    A logit that is the mean of a map's pixels has the gradient one over their number:

    >>> from scratchnet.layers import GlobalAvgPool2d, Sequential
    >>> net = Sequential(Conv2d(3, 2), ReLU(), GlobalAvgPool2d())
    >>> maps, gradient = logit_gradient(net, np.ones((1, 2, 2, 3), "float32"), classes=1)
    >>> gradient[0, 0, 0]
    array([0.  , 0.25], dtype=float32)
    """
    layers = leaves(net)
    with preserved(net), net.eval().recording():
        y = net.backend.asarray(x)
        outputs: list[Array] = []
        for _, each in layers:
            y = each.forward(y)
            outputs.append(y)
        stop = _find(layer, layers, outputs)
        dy = net.backend.asarray(_one_hot(classes, to_numpy(y)))  # (N, K)
        for _, each in reversed(layers[stop + 1 :]):
            dy = each.backward(dy)
    return to_numpy(outputs[stop]), to_numpy(dy)


def grad_cam(
    net: Layer, x: np.ndarray, classes: int | Sequence[int] | None = None, layer: str | None = None
) -> np.ndarray:
    """Return where in each image a network sees a class: Grad-CAM (Selvaraju et al. 2017, sec. 3).

    With A the feature maps of a layer and y the logit of the class, the weight of channel k is how much the
    logit grows with it, on the mean over its Z pixels (their eq. 1), and the map is the weighted sum of the
    channels, of which only what speaks for the class is kept (eq. 2)::

        alpha_k = 1/Z sum over i, j of dy / dA_ijk
        L_ij    = max(0, sum over k of alpha_k A_ijk)

    Parameters
    ----------
    net : Layer
    x : array (N, H, W, 3)
    classes, layer : as of ``logit_gradient``
        With small images the maps of the last ReLU, the paper's choice, have few pixels: an earlier layer
        shows more.

    Returns
    -------
    array (N, H, W)
        Not scaled; H and W are those of the layer's maps. ``heat_overlay`` lays it over an image.

    Examples
    --------
    >>> from scratchnet.models import vgg11
    >>> net = vgg11(num_classes=10, image_size=32, width=0.125, classifier_width=16)
    >>> grad_cam(net, np.ones((2, 32, 32, 3), "float32"), classes=[3, 7], layer="features.9").shape
    (2, 8, 8)
    """
    maps, gradient = logit_gradient(net, x, classes, layer)
    weights = gradient.mean(axis=(1, 2))  # (N, C), equation 1
    return np.maximum(np.einsum("nhwc,nc->nhw", maps, weights), 0)  # equation 2


def confident_mistakes(probabilities: np.ndarray, labels: np.ndarray, count: int = 24) -> np.ndarray:
    """Return the images that were given a wrong class, the surest mistake first.

    Parameters
    ----------
    probabilities : array (N, K)
    labels : array (N,) of int
    count : int, how many at most

    Returns
    -------
    array of int, indices into the N images

    Examples
    --------
    >>> confident_mistakes(np.array([[0.6, 0.4], [0.2, 0.8], [0.9, 0.1]]), np.array([1, 1, 1]))
    array([2, 0])
    """
    probabilities, labels = to_numpy(probabilities), to_numpy(labels)
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:count]


# From arrays to pixels


def grid(images: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
    """Lay images out in rows, with transparent gaps between them.

    Parameters
    ----------
    images : array (N, H, W) or (N, H, W, 3)
        Grey or coloured, from 0 to 1.
    columns : int
    gap : int, in pixels

    Returns
    -------
    array of uint8 (rows * (H + gap) - gap, columns * (W + gap) - gap, 4)
        Red, green, blue and opacity.

    Examples
    --------
    >>> grid(np.ones((3, 2, 2)), columns=2)[:, :, 3]
    array([[255, 255,   0, 255, 255],
           [255, 255,   0, 255, 255],
           [  0,   0,   0,   0,   0],
           [255, 255,   0,   0,   0],
           [255, 255,   0,   0,   0]], dtype=uint8)
    """
    images = to_numpy(images)
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=3)
    N, H, W, _ = images.shape
    rows, columns = -(-N // columns), min(columns, N)
    sheet = np.zeros((rows * (H + gap) - gap, columns * (W + gap) - gap, 4), np.uint8)
    for n, image in enumerate(images):
        top, left = n // columns * (H + gap), n % columns * (W + gap)
        sheet[top : top + H, left : left + W, :3] = np.rint(255 * np.clip(image, 0, 1))
        sheet[top : top + H, left : left + W, 3] = 255
    return sheet


def heat_overlay(image: np.ndarray, heat: np.ndarray, strength: float = 0.6) -> np.ndarray:
    """Lay a heat map over an image, which turns grey below it: dark is cold, bright yellow is hottest.

    Parameters
    ----------
    image : array of uint8 (H, W, 3)
    heat : array (h, w)
        At least zero, of any scale and size: it is divided by its largest value, and enlarged (bilinear).
    strength : float
        From 0, only the image, to 1, only the heat.

    Returns
    -------
    array of uint8 (H, W, 3)

    Examples
    --------
    >>> heat_overlay(np.zeros((4, 4, 3), np.uint8), np.array([[0.0, 1.0]]), strength=1.0)[0, 3]
    array([252, 255, 164], dtype=uint8)
    """
    height, width = image.shape[:2]
    heat = np.asarray(heat, np.float32)
    heat = heat / max(heat.max(), np.finfo(np.float32).tiny)
    heat = np.asarray(Image.fromarray(heat).resize((width, height), Image.Resampling.BILINEAR))  # (H, W)
    grey = image.mean(axis=2, keepdims=True)  # (H, W, 1)
    return np.rint((1 - strength) * grey + strength * 255 * heat_colours(heat)).astype(np.uint8)


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Return colours for numbers from 0 to 1: from black over violet and orange to bright yellow.

    Parameters
    ----------
    values : array (...)

    Returns
    -------
    array (..., 3), red, green and blue from 0 to 1

    Examples
    --------
    >>> heat_colours(np.array([0.0, 1.0])).round(2)
    array([[0.  , 0.  , 0.02],
           [0.99, 1.  , 0.64]])
    """
    stops = np.linspace(0, 1, len(RAMP))
    return np.stack([np.interp(values, stops, channel) for channel in zip(*RAMP, strict=True)], axis=-1) / 255


# Which layer, and which class


def _find(path: str | None, layers: list[tuple[str, Layer]], outputs: list[Array]) -> int:
    """Return the index of the layer whose maps are asked for."""
    if path is None:
        relus = [i for i, (_, layer) in enumerate(layers) if isinstance(layer, ReLU) and outputs[i].ndim == 4]
        if not relus:
            raise ValueError("this network has no ReLU that gives feature maps: say which layer to look at")
        return relus[-1]
    names = [name for name, _ in layers]
    if path not in names:
        raise ValueError(f"there is no layer {path!r}: {', '.join(names)}")
    if outputs[names.index(path)].ndim != 4:
        raise ValueError(f"the output of {path} is no feature map: choose a layer before it")
    return names.index(path)


def _one_hot(classes: int | Sequence[int] | None, logits: np.ndarray) -> np.ndarray:
    """Return the gradient (N, K) of one logit per image with respect to all of them."""
    N, K = logits.shape
    chosen: Array = logits.argmax(axis=1) if classes is None else np.broadcast_to(np.asarray(classes), (N,))
    if not np.issubdtype(chosen.dtype, np.integer) or chosen.min() < 0 or chosen.max() >= K:
        raise ValueError(f"classes must be whole numbers from 0 to {K - 1}")
    return np.eye(K, dtype=logits.dtype)[chosen]
