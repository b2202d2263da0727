"""A network from tensors with names of others: a VGG, or as much of one as there is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from scratchnet import checkpoint
from scratchnet.backend import Array
from scratchnet.interop import imagenet, torch_names
from scratchnet.layers import Chain
from scratchnet.rebuild import rebuilt, shapes
from scratchnet.recognise import check_size, partial_vgg, vgg_settings
from scratchnet.tensorfile import HEADER, FormatError, TensorsInMemory


def network_of(path: str | os.PathLike[str], tensors: Mapping[str, Array]) -> Chain:
    """Return the network of tensors with PyTorch's layouts, and torchvision's names or their like.

    A VGG; or its convolutions, with the linear layer that follows if there is one alone. In ``info`` stand
    ``left_out``, the names of the tensors that it has no place for, and, with 1000 classes, ImageNet's names
    and preprocessing.
    """
    named = torch_names.as_torchvision(tensors)
    named = {name: array for name, array in named.items() if not name.endswith("num_batches_tracked")}
    found = {name: array.shape for name, array in named.items()}
    try:
        info = _described(named, found)
        check_size(info, {name: array.shape for name, array in named.items()})
        net = rebuilt(info, np.float32)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise FormatError(f"{path} holds no VGG: {error}") from error
    info |= imagenet.header_for(net)
    left_out = [name for name in named if name not in shapes(net)]
    kept = {name: array for name, array in named.items() if name not in left_out}
    net = checkpoint.network_in(TensorsInMemory(path, kept, {HEADER: json.dumps(info)}))
    net.info["left_out"] = left_out
    return net


def _described(named: dict[str, Array], found: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the header that describes the network; a linear layer alone gets our name and order."""
    try:
        whole = {"model": vgg_settings(found)}
        check_size(whole, found)
        if shapes(rebuilt(whole, np.float32)).keys() <= found.keys():
            return whole
    except ValueError:
        pass
    part = partial_vgg(found)
    if part.linear:
        for kind in ("weight", "bias"):
            if f"{part.linear}.{kind}" in named:
                named[f"classifier.{kind}"] = named.pop(f"{part.linear}.{kind}")
        outputs, side = len(named["classifier.weight"]), part.side
        maps = named["classifier.weight"].reshape(outputs, -1, side, side)  # (O, C, H, W)
        named["classifier.weight"] = maps.transpose(0, 2, 3, 1).reshape(outputs, -1)  # as in a chain's file
    return {"chain": part.description, "image_size": part.image_size}
