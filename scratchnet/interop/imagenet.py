"""What networks trained on ImageNet expect and name, as torchvision's and timm's do.

Their classes are in ``imagenet_classes.txt``, a name per line. Images are resized, the shorter side to 256
pixels (bilinear), and the centre, 224 x 224, is cut out: seven eighths. For networks of another size both
sizes are in the same proportion. Mean and standard deviation are those of torchvision's documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from scratchnet.header import channels
from scratchnet.layers import Layer, Linear, leaves

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP = 224 / 256
CLASSES = 1000


def class_names() -> list[str]:
    """Return the names of ImageNet's 1000 classes, in their usual order.

    >>> class_names()[281:283]
    ['tabby', 'tiger cat']
    """
    text = files("scratchnet.interop").joinpath("imagenet_classes.txt").read_text("utf-8")
    return [line for line in text.splitlines() if not line.startswith("#")]


def normalisation_of(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return mean and deviation for weights that name a thousand classes; for others nothing.

    >>> import numpy as np
    >>> sorted(normalisation_of({"head.fc.bias": np.zeros(1000)})), normalisation_of({"bias": np.zeros(10)})
    (['mean', 'std'], {})
    """
    named = any(tensor.shape == (CLASSES,) for tensor in tensors.values())  # the last layer's bias
    return {"mean": [*MEAN], "std": [*STD]} if named else {}


def header_for(net: Layer) -> dict[str, Any]:
    """Return what a header says of a network of 1000 classes, for images of three colours; of others nothing.

    >>> from scratchnet.layers import Conv2d, GlobalAvgPool2d, Sequential
    >>> net, other = (Sequential(Conv2d(3, 4), GlobalAvgPool2d(), Linear(4, n)) for n in (1000, 10))
    >>> sorted(header_for(net)), header_for(other)
    (['class_names', 'crop', 'mean', 'std'], {})
    """
    last = leaves(net)[-1][1]
    if not isinstance(last, Linear) or last.out_features != CLASSES or channels(net) != len(MEAN):
        return {}
    return {"class_names": class_names(), "mean": [*MEAN], "std": [*STD], "crop": CROP}
