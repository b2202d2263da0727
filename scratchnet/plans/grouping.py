"""Grouping: which layers of a network are computed together.

A convolution, the ReLU behind it and the pooling behind that are one group: the result of the product is
pooled and rectified while it is in the cache, and only the pooled map is ever stored. Batch normalisation
needs the statistics of the whole batch before the first number can be normalised, so in training it begins
a group of its own, with the ReLU and pooling behind it; in evaluation, where its statistics are fixed, it is
part of the convolution before it. A linear layer takes along its ReLU and its dropout.

Nothing here knows how anything is computed, or on what.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scratchnet.layers import (
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
    assemble,
    leaves,
)


@dataclass
class Group:
    """Layers that are computed together.

    Attributes
    ----------
    kind : {"conv", "norm", "linear", "flatten", "average", "nothing", "other"}
        "other" is a layer that a plan does not know, or a ReLU, pooling or dropout that no group took along:
        it runs by its own forward and backward. "nothing", a
        dropout that drops nothing, only stands where a network has no other layer.
    main : Layer
        The one that gives the group its kind.
    layers : list of Layer
        All of them, in order.
    paths : list of str
        Where they stand in the network.
    input_shape, output_shape : tuple of int
    norm, relu, pool, dropout : Layer or None
        What was taken along.
    """

    kind: str
    main: Layer
    layers: list[Layer]
    paths: list[str]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    norm: Layer | None = None
    relu: Layer | None = None
    pool: Layer | None = None
    dropout: Layer | None = None

    @property
    def name(self) -> str:
        """Where the group stands, as in ``features.2-4``."""
        first, last = self.paths[0], self.paths[-1]
        return first if first == last else f"{first}-{last.rsplit('.', 1)[-1]}"

    @property
    def title(self) -> str:
        """What it is made of, as in ``Conv2d+ReLU+MaxPool2d``."""
        return "+".join(type(layer).__name__ for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of a forward pass, by the definition of its layers."""
        return self.main.multiply_adds(self.input_shape)


KINDS = {
    Conv2d: "conv",
    BatchNorm2d: "norm",
    Linear: "linear",
    Flatten: "flatten",
    GlobalAvgPool2d: "average",
}


def is_own(layer: Layer, kind: type[Layer]) -> bool:
    """Tell whether a layer computes as scratchnet's own does.

    Subclasses may, unless they change a pass, and so may objects, unless a pass of theirs was wrapped.
    """
    return isinstance(layer, kind) and all(
        getattr(type(layer), name) is getattr(kind, name) and name not in vars(layer)
        for name in ("forward", "backward", "output_shape")
    )


def group(net: Layer, input_shape: tuple[int, ...]) -> list[Group]:
    """Divide a network into groups.

    Parameters
    ----------
    net : Layer
    input_shape : tuple of int
        Of the batch, (N, H, W, C).

    Returns
    -------
    list of Group

    Raises
    ------
    ValueError
        If a layer does not fit the shape that reaches it.

    Examples
    --------
    >>> from scratchnet.models import vgg11
    >>> net = vgg11(num_classes=10, image_size=32, width=0.125, classifier_width=64)
    >>> for g in group(net, (2, 32, 32, 3))[-5:]:
    ...     print(g.name, g.title)
    features.18-20 Conv2d+ReLU+MaxPool2d
    pool Flatten
    classifier.0-2 Linear+ReLU+Dropout
    classifier.3-5 Linear+ReLU+Dropout
    classifier.6 Linear
    """
    rest = [(path or type(layer).__name__, layer) for path, layer in leaves(assemble(net), net.path)]
    groups: list[Group] = []
    shape = tuple(input_shape)

    def take(kind: type[Layer], follows: bool = True) -> Layer | None:
        """Take the next layer into the group that is being made, if it is of that kind."""
        nonlocal shape
        if not follows or not rest or not is_own(rest[0][1], kind):
            return None
        path, layer = rest.pop(0)
        groups[-1].layers.append(layer)
        groups[-1].paths.append(path)
        groups[-1].output_shape = shape = _after(layer, shape)
        return layer

    while rest:
        path, layer = rest.pop(0)
        kind = next((name for known, name in KINDS.items() if is_own(layer, known)), "other")
        if is_own(layer, Dropout) and (layer.p == 0.0 or not layer.training):
            kind = "nothing"
            if groups or rest:
                continue
        after = _after(layer, shape)
        groups.append(Group(kind, layer, [layer], [path], shape, after))
        shape = after
        if kind == "conv" and rest and is_own(rest[0][1], BatchNorm2d):
            if layer.training or rest[0][1].training:
                continue
            groups[-1].norm = take(BatchNorm2d)
        if kind in ("conv", "norm"):
            groups[-1].relu = take(ReLU)
            groups[-1].pool = take(MaxPool2d, follows=bool(rest) and _halves(rest[0][1]))
        if kind == "linear":
            groups[-1].relu = take(ReLU)
            groups[-1].dropout = take(Dropout, follows=groups[-1].relu is not None)
    return groups


def _halves(layer: Layer) -> bool:
    return isinstance(layer, MaxPool2d) and layer.kernel_size == layer.stride == 2


def _after(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape behind a layer, or say what does not fit."""
    wanted: Any = None
    if isinstance(layer, (Conv2d, BatchNorm2d)):
        wanted = (None, None, None, getattr(layer, "in_channels", None) or layer.num_features)
    elif isinstance(layer, Linear):
        wanted = (None, layer.in_features)
    elif isinstance(layer, (MaxPool2d, GlobalAvgPool2d)):
        wanted = (None, None, None, None)
    if wanted is not None and (
        len(wanted) != len(shape) or any(w not in (None, s) for w, s in zip(wanted, shape, strict=True))
    ):
        names = ("N", "H", "W", "C")
        text = ", ".join(names[i] if w is None else str(w) for i, w in enumerate(wanted))
        raise ValueError(f"{layer.label}: expected ({text}), got {shape}")
    after = tuple(layer.output_shape(shape))
    if min(after) < 1:
        raise ValueError(f"{layer.label}: {shape} is too small, nothing would be left of it: {after}")
    return after
