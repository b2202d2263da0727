"""What networks trained on ImageNet expect and name, as torchvision's and timm's do.

Their classes are in ``imagenet_classes.txt``, a name per line. Images are resized, the shorter side to 256
pixels (bilinear), and the centre, 224 x 224, is cut out: seven eighths. For networks of another size both
sizes are in the same proportion. Mean and standard deviation are those of torchvision's documentation.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

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


def header(num_classes: int) -> dict[str, Any]:
    """Return what a header says of a network with ImageNet's classes, of any other nothing.

    >>> sorted(header(1000)), header(10)
    (['class_names', 'crop', 'mean', 'std'], {})
    """
    if num_classes != CLASSES:
        return {}
    return {"class_names": class_names(), "mean": [*MEAN], "std": [*STD], "crop": CROP}
