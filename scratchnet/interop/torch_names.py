"""Names of VGG's parameters in PyTorch's world, translated to torchvision's, which are ours.

========================  ==================================================================================
a file of                 has
========================  ==================================================================================
torchvision               ``features.N``, ``classifier.0``, ``.3``, ``.6``
torchvision before 0.2    the linear layers as ``classifier.1``, ``.4``, ``.6``, since dropout came first
timm                      ``pre_logits.fc1``, ``pre_logits.fc2``, ``head.fc``; the first two are
                          convolutions of 7 x 7 and 1 x 1, which compute the same
a user's own program      ``module.`` (DataParallel), ``model.`` and the like before each name
========================  ==================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping

from scratchnet.backend import Array

PREFIXES = ("module.", "model.", "net.", "network.", "backbone.", "vgg.")
TIMM = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3", "head.fc": "classifier.6"}
DROPOUT_FIRST = {"classifier.1": "classifier.0", "classifier.4": "classifier.3"}


def as_torchvision(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Return the same tensors by torchvision's names.

    >>> import numpy as np
    >>> list(as_torchvision({"module.head.fc.weight": np.ones((10, 4096))}))
    ['classifier.6.weight']
    """
    named = dict(tensors)
    while prefix := next((p for p in PREFIXES if named and all(name.startswith(p) for name in named)), None):
        named = {name.removeprefix(prefix): array for name, array in named.items()}
    translation = dict(TIMM)
    if "classifier.1.weight" in named and "classifier.0.weight" not in named:
        translation |= DROPOUT_FIRST
    result = {}
    for name, array in named.items():
        layer, _, kind = name.rpartition(".")
        known = translation.get(layer, layer)
        if known.startswith("classifier.") and array.ndim == 4:  # a convolution that sees all of its input
            array = array.reshape(len(array), -1)
        result[f"{known}.{kind}" if layer else name] = array
    return result
