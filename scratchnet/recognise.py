"""Which network tensors are of, where no header says so; and whether a header's network can be theirs at all.

Told by the names that torchvision gives a VGG's parameters, and by their shapes, without a look at a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import isqrt, prod
from typing import Any, NamedTuple

from scratchnet.models import ARCHITECTURES
from scratchnet.models.vgg import scaled
from scratchnet.rebuild import Description

Shapes = Mapping[str, tuple[int, ...]]  # as in PyTorch: (O, C, KH, KW), (out, in)

FOUND_IN_EACH_VGG = {"features.0.weight": 4, "classifier.0.weight": 2, "classifier.6.weight": 2}  # their axes
SMALLEST = 1 << 20  # what a header may describe, however small its tensors are
MOST_LAYERS = 10_000


def vgg_settings(shapes: Shapes) -> dict[str, Any]:
    """Return the settings of the VGG whose tensors have these names and shapes, or raise a ValueError.

    >>> from scratchnet.models import vgg11
    >>> net = vgg11(10, image_size=96, width=0.25, classifier_width=16)
    >>> shapes = {name: p.shape[::-1] for name, p in net.parameters().items()}
    >>> settings = vgg_settings(shapes)
    >>> settings["image_size"], settings["num_classes"], settings["architecture"][:4]
    (96, 10, [16, 'M', 32, 'M'])
    """
    check_that_it_is_a_vgg(shapes)
    layers, batch_norm, in_channels = _features(shapes)
    hidden, inputs = shapes["classifier.0.weight"]
    side = _side(inputs, layers)
    if not side:
        raise ValueError(f"classifier.0 takes {inputs} inputs, which is no square image of the last channels")
    return {
        "architecture": next((name for name, known in ARCHITECTURES.items() if known == layers), layers),
        "num_classes": shapes["classifier.6.weight"][0],
        "image_size": side * 2 ** layers.count("M"),
        "batch_norm": batch_norm,
        "classifier_width": hidden,
        "in_channels": in_channels,
    }


def check_that_it_is_a_vgg(shapes: Shapes) -> None:
    """Raise a ValueError unless there are the tensors that every VGG has."""
    for name, ndim in FOUND_IN_EACH_VGG.items():
        if len(shapes.get(name, ())) != ndim or 0 in shapes[name]:
            raise ValueError(f"it has no {name} of {ndim} axes")


class PartOfVGG(NamedTuple):
    """What ``partial_vgg`` found."""

    description: Description  # a chain of features and, with a linear layer, pool and classifier
    linear: str  # the name of that layer in the file, or nothing
    side: int  # of the map that it sees; 1 if it sees the mean of each channel
    image_size: int  # the smallest for which the last map is as large as that


def partial_vgg(shapes: Shapes) -> PartOfVGG:
    """Describe a network of a VGG's convolutions, and of the linear layer after them if there is just one.

    >>> shapes = {"features.0.weight": (8, 3, 3, 3), "features.0.bias": (8,), "fc.weight": (10, 8 * 4)}
    >>> part = partial_vgg(shapes)
    >>> list(part.description["layers"]), part.linear, part.image_size
    (['features', 'pool', 'classifier'], 'fc', 4)
    """
    layers, batch_norm, channels = _features(shapes)
    features: list[Description] = []
    for c in layers:
        if isinstance(c, str):
            features.append(_layer("MaxPool2d", kernel_size=2))
            continue
        bias = f"features.{len(features)}.bias" in shapes
        features.append(_layer("Conv2d", in_channels=channels, out_channels=c, bias=bias))
        features += [_layer("BatchNorm2d", num_features=c)] if batch_norm else []
        features.append(_layer("ReLU"))
        channels = c
    indexed = {str(k): layer for k, layer in enumerate(features)}
    chain: dict[str, Any] = {"features": {"class": "Sequential", "layers": indexed}}
    rest = [name for name, s in shapes.items() if len(s) == 2 and not name.startswith("features.")]
    side = _side(shapes[rest[0]][1], layers) if len(rest) == 1 and rest[0].endswith(".weight") else 0
    linear = rest[0].removesuffix(".weight") if side else ""
    if linear:
        outputs, inputs = shapes[rest[0]]
        chain["pool"] = _layer("Flatten" if side > 1 else "GlobalAvgPool2d")
        bias = f"{linear}.bias" in shapes
        chain["classifier"] = _layer("Linear", in_features=inputs, out_features=outputs, bias=bias)
    description = {"class": "Chain", "layers": chain}
    return PartOfVGG(description, linear, max(1, side), max(1, side) * 2 ** layers.count("M"))


def _layer(name: str, **settings: Any) -> Description:
    return {"class": name, "settings": settings}


def _features(shapes: Shapes) -> tuple[list[int | str], bool, int]:
    """Return a VGG's list of layers, whether it has batch normalisation, and the channels of its images.

    Convolution, [batch normalisation], ReLU and, where an index is left free before the next, pooling.
    """
    batch_norm = any(name.startswith("features.") and name.endswith("running_mean") for name in shapes)
    names = [name for name, s in shapes.items() if name.startswith("features.") and len(s) == 4]
    kernels = {int(name.split(".")[1]): shapes[name] for name in names}  # by the convolution's index
    if 0 not in kernels:
        raise ValueError("it has no features.0.weight of 4 axes")
    layers: list[int | str] = []
    apart = 3 if batch_norm else 2
    end = max(kernels) + apart + 1  # pooling follows the last convolution
    for index, following in pairwise([*sorted(kernels), end]):
        layers.append(kernels[index][0])
        if 0 in kernels[index] or not apart <= following - index <= apart + 1:
            raise ValueError(f"features.{index} is followed by layers that no VGG has there")
        if batch_norm and f"features.{index + 1}.running_mean" not in shapes:
            raise ValueError(f"features.{index} is followed by no batch normalisation, as others are")
        if following - index > apart:
            layers.append("M")
    return layers, batch_norm, kernels[0][1]


def _side(inputs: int, layers: list[int | str]) -> int:
    """Return the side of the square map that a linear layer of so many inputs sees; 0 if there is none."""
    last = [c for c in layers if isinstance(c, int)][-1]
    pixels, rest = divmod(inputs, last)
    return 0 if rest or isqrt(pixels) ** 2 != pixels else isqrt(pixels)


# What a header may describe


def check_size(info: Mapping[str, Any], shapes: Shapes) -> None:
    """Refuse the network of a header that has sizes, or layers, that the tensors cannot have.

    Called before it is built: what then takes memory for its layers is in proportion to the tensors.

    >>> check_size({"chain": {"class": "BatchNorm2d", "settings": {"num_features": 10**9}}}, {"weight": (8,)})
    Traceback (most recent call last):
    ValueError: its sizes, 1,000,000,000 in all, are beyond the 8 numbers of its tensors
    """
    model = info.get("model", {})
    described = [info.get("chain", {}), info.get("changes", {})]
    if model:
        layers = scaled(model.get("architecture", "vgg16"), model.get("width", 1.0))
        described.append([c for c in layers if isinstance(c, int)])
        described.append(layers.count("M"))
    total, number = _totals(described)
    most = sum(map(prod, shapes.values()))
    if total > max(SMALLEST, most):
        raise ValueError(f"its sizes, {total:,} in all, are beyond the {most:,} numbers of its tensors")
    if number > MOST_LAYERS:
        raise ValueError(f"it describes {number:,} layers, where {MOST_LAYERS:,} are allowed")


def _totals(value: Any) -> tuple[int, int]:
    """Return the sum of all whole numbers within, and how many lists and dicts there are."""
    if isinstance(value, (dict, list)):
        found = [_totals(inner) for inner in (value.values() if isinstance(value, dict) else value)]
        return sum(total for total, _ in found), 1 + sum(number for _, number in found)
    return (abs(value), 0) if isinstance(value, int) else (0, 0)
