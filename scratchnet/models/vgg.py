"""VGG: Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition" (2015).

The networks of their Table 1, as lists: a number is a 3 x 3 convolution with that many output channels,
followed by a ReLU; "M" is max pooling, which halves the image. Three fully connected layers follow, 4096,
4096 and one output per class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np
from numpy.typing import DTypeLike

from scratchnet import layers as nn
from scratchnet.backend import Array
from scratchnet.checks import MOST, real, shown, whole
from scratchnet.checks import seed as check_seed
from scratchnet.layers.summary import show

__all__ = ["ARCHITECTURES", "VGG", "vgg11", "vgg13", "vgg16", "vgg19"]


def from_positions(channels: list[int], pool_positions: list[int]) -> list[int | str]:
    """Translate the notation of the article: channels, the image's first, and which convolutions are pooled.

    Examples
    --------
    >>> from_positions([3, 64, 64, 128], pool_positions=[2, 3])
    [64, 64, 'M', 128, 'M']
    """
    layers: list[int | str] = []
    for position, channel in enumerate(channels[1:], start=1):
        layers += [channel, "M"] if position in pool_positions else [channel]
    return layers


# The lists of the article "Implementing VGG16 from Scratch", as printed. They have 12 convolutions, one of
# 256 channels fewer than configuration D, so with the three linear layers 15 layers have weights, although
# the text says 16.
CHANNEL = [3, 64, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512]
POOL_POS = [2, 4, 6, 9, 12]

# fmt: off
ARCHITECTURES: dict[str, list[int | str]] = {
    # Table 1, configurations A, B, D and E: 11, 13, 16 and 19 layers with weights
    "vgg11": [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "vgg13": [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "vgg16": [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"],
    "vgg19": [64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M",
              512, 512, 512, 512, "M"],
    "article": from_positions(CHANNEL, POOL_POS),
}
# fmt: on

HEADS = ("flatten", "gap")


class VGG(nn.Chain):
    """A VGG network.

    Parameters
    ----------
    architecture : str or list
        A name in ``ARCHITECTURES``, or a list of the same kind.
    num_classes : int
    image_size : int
        Side of the images, in pixels: any from 32 on, which five poolings halve, rounding down. With
        ``head="gap"`` images of any other size from 32 on will do, too, of any shape, and each batch may
        have its own.
    batch_norm : bool
        Put batch normalisation between each convolution and its ReLU.
    width : float
        Channels are ``int(c * width)``.
    classifier_width : int
        Of the two hidden linear layers.
    dropout : float
        After each hidden linear layer.
    head : {"flatten", "gap"}
        What turns the last feature map into a row: all of it, or the mean of each channel.
    dtype : {"float32", "float64"}
    seed : int
        Of the initial weights and of dropout, each with a generator of its own.
    init : {"he", "pytorch", "normal"}, see ``initialise.py``
    output_scale : float
        Multiplies the weights that the last layer begins with. Below 1 the first logits are nearly equal, and
        so the first steps are small; see ``initialise.py``.
    in_channels : int
        Of the images: 3 for colours.

    Attributes
    ----------
    features, classifier : Sequential
        With the names and indices of torchvision's VGG. In front of the classifier stands ``pool``, which has
        none.
    shrink : int
        How many times smaller the last feature map is than the image: 32, for five poolings.

    Examples
    --------
    >>> net = VGG("vgg16", num_classes=10, image_size=32, width=0.25, classifier_width=128)
    >>> net.forward(np.zeros((2, 32, 32, 3), "float32")).shape
    (2, 10)
    """

    def __init__(
        self,
        architecture: str | list[int | str] = "vgg16",
        num_classes: int = 1000,
        image_size: int = 224,
        batch_norm: bool = False,
        width: float = 1.0,
        classifier_width: int = 4096,
        dropout: float = 0.5,
        head: str = "flatten",
        dtype: DTypeLike = "float32",
        seed: int = 0,
        init: str = "he",
        output_scale: float = 1.0,
        in_channels: int = 3,
    ):
        super().__init__(dtype=dtype)
        layers = scaled(architecture, width)
        whole(num_classes=num_classes, classifier_width=classifier_width, in_channels=in_channels)
        if head not in HEADS:
            raise ValueError(f"head must be 'flatten' or 'gap', not {head!r}")
        real(0.0, 1.0, dropout=dropout)
        real(0.0, output_scale=output_scale)
        check_seed(seed)
        self.shrink = 2 ** layers.count("M")
        whole(self.shrink, image_size=image_size)
        # Numbers of NumPy's, such as labels.max() + 1, would not go into a file's header.
        self._settings: dict[str, Any] = {
            "architecture": architecture if isinstance(architecture, str) else list(architecture),
            "num_classes": int(num_classes),
            "image_size": int(image_size),
            "batch_norm": bool(batch_norm),
            "width": float(width),
            "classifier_width": int(classifier_width),
            "dropout": float(dropout),
            "head": head,
            "in_channels": int(in_channels),
        }

        init_seed, *dropout_seeds = np.random.SeedSequence(seed).spawn(3)
        weights: dict[str, Any] = {"dtype": dtype, "rng": np.random.default_rng(init_seed), "init": init}
        features: list[nn.Layer] = []
        channels = in_channels
        for c in layers:
            if isinstance(c, str):
                features.append(nn.MaxPool2d(2, dtype=dtype))
            else:
                norm = [nn.BatchNorm2d(c, dtype=dtype)] if batch_norm else []
                features += [nn.Conv2d(channels, c, **weights), *norm, nn.ReLU(dtype=dtype)]
                channels = c
        self.features = nn.Sequential(*features, dtype=dtype)

        flat = head == "flatten"
        self.pool: nn.Layer = nn.Flatten(dtype=dtype) if flat else nn.GlobalAvgPool2d(dtype=dtype)
        inputs = channels * (image_size // self.shrink) ** 2 if flat else channels
        hidden: list[nn.Layer] = []
        for size, dropout_seed in zip((inputs, classifier_width), dropout_seeds, strict=True):
            drop = nn.Dropout(dropout, dtype=dtype, rng=np.random.default_rng(dropout_seed))
            hidden += [nn.Linear(size, classifier_width, **weights), nn.ReLU(dtype=dtype), drop]
        last = nn.Linear(classifier_width, num_classes, **weights)
        self.classifier = nn.Sequential(*hidden, last, dtype=dtype)
        nn.assemble(self)
        if output_scale != 1.0:
            last.weight.data[...] *= output_scale

    def settings(self) -> dict[str, Any]:
        """Return the arguments from which the same network can be built again."""
        return dict(self._settings)

    def chain(self) -> list[nn.Layer]:
        """Return the three parts."""
        return [self.features, self.pool, self.classifier]

    @property
    def layers(self) -> list[nn.Layer]:
        """All layers, first to last."""
        return [layer for _, layer in nn.leaves(self)]

    def forward(self, x: Array) -> Array:
        """Return the logits (N, num_classes) of images (N, H, W, in_channels)."""
        self.check_input(x, "N", "H", "W", self._settings["in_channels"])
        self._check_size(*x.shape[1:3])
        return super().forward(x)

    def multiply_adds(self, shape: tuple[int, ...]) -> int:
        """Return the multiply-adds of a forward pass of images of this shape (N, H, W, C)."""
        self._check_size(*shape[1:3])
        return super().multiply_adds(shape)

    def summary(self, image_size: int | tuple[int, ...] | None = None, file: TextIO | None = None) -> None:
        """Print a table with a row per layer: the article's, with what the layer costs for one image.

        By default the image has the size that the network was built for. Memory is that of the layer's
        parameters plus that of its output.

        Examples
        --------
        >>> net = vgg11(num_classes=10, image_size=32, width=0.125, classifier_width=64)
        >>> net.summary()  # doctest: +ELLIPSIS
        Layer                   Output size    Kernel   Stride   Activation   Parameters ...
        Input                   32 x 32 x 3                                            0 ...
        features.0 Conv2d       32 x 32 x 8    3 x 3    1        relu                224 ...
        """
        size = image_size or self._settings["image_size"]
        H, W, C = size if isinstance(size, tuple) else (size, size, self._settings["in_channels"])
        self._check_size(H, W)
        show(self, (H, W, C), activation="softmax", file=file)

    def _check_size(self, H: int, W: int) -> None:
        size = self._settings["image_size"]
        if self._settings["head"] == "flatten" and (H, W) != (size, size):
            raise ValueError(
                f"VGG: expected images of {size} x {size}, got {H} x {W}: resize them, or build the "
                f"network with {f'image_size={H} or ' if H == W >= self.shrink else ''}head='gap'"
            )
        least = self.shrink
        if min(H, W) < least:
            raise ValueError(f"VGG: images of {H} x {W} are too small: {least} x {least} at least")


def scaled(architecture: str | list[int | str], width: float) -> list[int | str]:
    """Return the list of an architecture, given by name or itself, with its channels scaled.

    Parameters
    ----------
    architecture : str or list
    width : float

    Examples
    --------
    >>> scaled([64, "M", 128], 0.5)
    [32, 'M', 64]
    """
    if isinstance(architecture, str):
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, not {architecture!r}")
        architecture = ARCHITECTURES[architecture]
    known = isinstance(architecture, (list, tuple)) and all(c == "M" or _is_whole(c) for c in architecture)
    channels = [int(c) for c in architecture if c != "M"] if known else []
    if not channels or min(channels) < 1 or max(channels) > MOST:
        wanted = "a list of numbers of channels and 'M' for pooling"
        raise ValueError(f"architecture must be {wanted}, not {shown(architecture)}")
    real(0.0, MOST / max(channels), width=width)
    if int(min(channels) * width) < 1:
        raise ValueError(f"width must leave at least one channel everywhere, and {width} does not")
    return [c if isinstance(c, str) else int(c * width) for c in architecture]


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _builder(name: str, letter: str, convolutions: int, size: int) -> Callable[..., VGG]:
    """Return a function that builds a configuration of Table 1, with the documentation of one."""

    def build(*arguments: Any, **settings: Any) -> VGG:
        return VGG(name, *arguments, **settings)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""Build configuration {letter}: {convolutions} convolutions and 3 linear layers.

    Arguments: those of ``VGG`` but the first.

    Examples
    --------
    >>> sum(p.size for p in {name}().parameters().values())
    {size}
    """
    arguments = list(inspect.signature(VGG).parameters.values())[1:]  # for help() and editors
    vars(build)["__signature__"] = inspect.Signature(arguments, return_annotation=VGG)
    return build


vgg11 = _builder("vgg11", "A", 8, 132863336)
vgg13 = _builder("vgg13", "B", 10, 133047848)
vgg16 = _builder("vgg16", "D", 13, 138357544)
vgg19 = _builder("vgg19", "E", 16, 143667240)
