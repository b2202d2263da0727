"""Data sets by their names."""

from __future__ import annotations

import os
from collections.abc import Callable
from math import inf

from scratchnet import checks
from scratchnet.data._common import ImageData
from scratchnet.data.cifar import cifar10, cifar100
from scratchnet.data.folder import MEMORY, image_folder
from scratchnet.data.shapes10 import shapes10

NAMES = ("cifar10", "cifar100", "shapes10")


def load(
    name: str,
    root: str | os.PathLike[str] = "data",
    download: bool = True,
    image_size: int = 224,
    memory: int = MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> ImageData:
    """Return a data set by its name, or by that of a folder of images.

    Parameters
    ----------
    name : str
        One of ``NAMES``, or a folder, see ``image_folder``.
    root : path
        Where data sets with a name lie, or are downloaded to.
    download : bool
        Whether one that is not there may be downloaded.
    image_size, memory, progress
        As for ``image_folder``.

    Examples
    --------
    >>> load("shapes10").name
    'shapes10'
    """
    checks.whole(1, image_size=image_size)
    checks.whole(0, inf, memory=memory)
    if name == "shapes10":
        return shapes10()
    if name in ("cifar10", "cifar100"):
        return (cifar10 if name == "cifar10" else cifar100)(root, download)
    return image_folder(name, image_size, memory=memory, progress=progress)
