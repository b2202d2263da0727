"""Data: labelled images as host arrays, and everything done to them on their way into a network.

Images are uint8 (N, H, W, 3), channels last, until a `Loader` normalises them; labels are int64 (N,). Nothing
here knows of layers or of CuPy.
"""

from scratchnet.data._common import DataError, ImageData, MissingDataError
from scratchnet.data.augment import Augmentation, Normalisation
from scratchnet.data.cifar import cifar10, cifar100
from scratchnet.data.finding import images_in
from scratchnet.data.folder import ImageFiles, describe_left_out, image_folder, list_classes
from scratchnet.data.images import decode_ahead, image_to_array, load_image
from scratchnet.data.loader import Loader
from scratchnet.data.named import load
from scratchnet.data.remote import local_file
from scratchnet.data.shapes10 import shapes10
from scratchnet.data.split import divide, split_validation, subset

__all__ = [
    "Augmentation",
    "DataError",
    "ImageData",
    "ImageFiles",
    "Loader",
    "MissingDataError",
    "Normalisation",
    "cifar10",
    "cifar100",
    "decode_ahead",
    "describe_left_out",
    "divide",
    "image_folder",
    "image_to_array",
    "images_in",
    "list_classes",
    "load",
    "load_image",
    "local_file",
    "shapes10",
    "split_validation",
    "subset",
]
