"""Data: labelled images as host arrays, and what is done to them on their way into a network.

Images are uint8 (N, H, W, 3), channels last, until a `Loader` normalises them; labels are int64 (N,). Nothing
in here knows of layers or of CuPy.
"""

from ._common import DataError, ImageData, MissingDataError
from .augment import Augmentation, Normalisation
from .cifar10 import cifar10
from .loader import Loader
from .pictures import decode_ahead, load_picture, picture_to_array, pictures_in
from .shapes10 import shapes10
from .split import split_validation, subset

__all__ = [
    "Augmentation",
    "DataError",
    "ImageData",
    "Loader",
    "MissingDataError",
    "Normalisation",
    "cifar10",
    "decode_ahead",
    "load_picture",
    "picture_to_array",
    "pictures_in",
    "shapes10",
    "split_validation",
    "subset",
]
