"""What a network's file says besides its weights: class names, normalisation, which images it takes.

A dict of what JSON can hold, ``net.info``, in which anything may stand. The entries below are used by this
package; they are checked here, both before they are written and after they were read.

``class_names``
    a list of strings
``mean``, ``std``
    a number for each channel of the images: (pixel / 255 - mean) / std
``crop``
    the part of the shorter side that is seen, when images are cut square: 1 where it does not say, 0.875
    where the network was trained on ImageNet
``image_size``, ``input_shape``
    the side of square images; [H, W, C] where there are others
``data``
    the name of the data set
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from scratchnet.checks import real, whole
from scratchnet.layers import Conv2d, Layer, Linear, leaves


def checked(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return a header whose entries are of the kinds above; those that are None are left out.

    >>> checked({"class_names": ("cat", "dog"), "mean": np.array([0.5]), "std": None, "epoch": 3})
    {'class_names': ['cat', 'dog'], 'mean': [0.5], 'epoch': 3}
    >>> checked({"std": [1.0, 0.0]})
    Traceback (most recent call last):
    ValueError: std must be finite numbers above zero, one per channel, not [1.0, 0.0]
    """
    if not isinstance(info, Mapping):
        raise ValueError("not a JSON object")
    known: dict[str, Any] = {key: value for key, value in info.items() if value is not None}
    for key, value in known.items():
        if key == "class_names":
            listed = isinstance(value, Iterable) and not isinstance(value, (str, Mapping))
            if not listed or not all(isinstance(name, str) for name in value):
                raise ValueError(f"class_names must be a list of strings, not {value!r:.100}")
            known[key] = list(value)
        elif key in ("mean", "std"):
            known[key] = _per_channel(key, value)
        elif key == "crop":
            real(0.1, 1.0, crop=value)
        elif key == "image_size":
            whole(1, image_size=value)
        elif key == "input_shape":
            if not isinstance(value, (list, tuple)) or len(value) != 3:
                raise ValueError(f"input_shape must be [H, W, C], not {value!r:.100}")
            for size in value:
                whole(1, input_shape=size)
        elif key == "data" and not isinstance(value, str):
            raise ValueError(f"data must be the name of a data set, not {value!r:.100}")
    return known


def _per_channel(key: str, values: Any) -> list[float]:
    try:
        numbers = np.array(values, dtype=float)
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty(0)
    if (
        numbers.ndim != 1
        or not numbers.size
        or not np.isfinite(numbers).all()
        or (key == "std" and numbers.min() <= 0)
    ):
        above = " above zero" if key == "std" else ""
        raise ValueError(f"{key} must be finite numbers{above}, one per channel, not {values!r:.100}")
    return [float(number) for number in numbers]


def check_that_it_fits(info: Mapping[str, Any], net: Layer) -> None:
    """Refuse a checked header that is not this network's, as far as its layers tell.

    >>> check_that_it_fits({"class_names": ["cat"]}, Linear(3, 2))
    Traceback (most recent call last):
    ValueError: the network has 2 classes, and class_names 1
    """
    layers = [layer for _, layer in leaves(net)]
    names, last = info.get("class_names"), layers[-1] if layers else None
    if names is not None and isinstance(last, Linear) and len(names) != last.out_features:
        raise ValueError(f"the network has {last.out_features} classes, and class_names {len(names)}")
    C = channels(net)
    for key in ("mean", "std"):
        if C is not None and key in info and len(info[key]) != C:
            numbers = f"{C} finite number{'s' * (C > 1)}"
            raise ValueError(f"{key} is not {numbers}, one per channel, but {len(info[key])}")


def input_shape(net: Layer) -> tuple[int, int, int] | None:
    """Return the shape (H, W, C) of the images that a network was made for; None if nothing says so.

    >>> from scratchnet.models import vgg11
    >>> input_shape(vgg11(10, image_size=33, width=0.125, classifier_width=16, in_channels=1))
    (33, 33, 1)
    """
    info = vars(net).get("info", {})
    size = info.get("image_size", net.settings().get("image_size"))
    if size is not None:
        return size, size, channels(net) or 3
    shape = info.get("input_shape")
    return None if shape is None else (shape[0], shape[1], shape[2])


def channels(net: Layer) -> int | None:
    """Return the channels of the images that a chain takes: those that its first convolution sees."""
    return next((layer.in_channels for _, layer in leaves(net) if isinstance(layer, Conv2d)), None)
