"""Networks, composed from lists of numbers."""

from scratchnet.models.vgg import ARCHITECTURES, VGG, vgg11, vgg13, vgg16, vgg19

__all__ = ["ARCHITECTURES", "VGG", "vgg11", "vgg13", "vgg16", "vgg19"]
