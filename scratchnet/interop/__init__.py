"""Other people's weights and networks: PyTorch's files, ONNX, safetensors, told apart by their content.

=====================  =================================================================================
``torch_file.py``      PyTorch's files as tensors, without PyTorch
``torch_names.py``     the names that torchvision and timm give them
``onnx_read.py``       ONNX graphs as networks, by the operators of ``onnx_operators.py``
``onnx_write.py``      networks as ONNX graphs
``foreign.py``         networks, or parts of one, from tensors of others
``imagenet.py``        ImageNet's classes and preprocessing
``kinds.py``           which of these a file is
``transfer.py``        all weights of a file that fit a network of one's own
``rescale.py``         its layers brought to one scale, so that body and head learn at one rate
=====================  =================================================================================
"""

from __future__ import annotations

import os
from typing import Any

from scratchnet import checkpoint
from scratchnet.backend import Backend
from scratchnet.header import check_that_it_fits, checked
from scratchnet.interop import foreign, imagenet, onnx_read, onnx_write, torch_file
from scratchnet.interop.kinds import kind_of
from scratchnet.interop.rescale import rescale_layers
from scratchnet.interop.transfer import CHANNELS, Initialised, initialise
from scratchnet.layers import Chain
from scratchnet.tensorfile import HEADER, open_tensors

__all__ = ["CHANNELS", "Initialised", "initialise", "load", "load_onnx", "load_torch"]
__all__ += ["rescale_layers", "save_onnx"]

save_onnx = onnx_write.save


def load(path: str | os.PathLike[str], backend: str | Backend = "numpy") -> Chain:
    """Return the network of a file, whatever wrote it.

    Parameters
    ----------
    path : path
        A safetensors file (ours, or one with torchvision's names), a file of PyTorch, or an ONNX file.
    backend : {"numpy", "cupy", "auto"} or Backend

    Returns
    -------
    Chain
        In evaluation mode. ``info`` has what the file says besides its weights, and as ``left_out`` what of a
        file of others has no place in the network: of a VGG that has not its three linear layers, but none,
        or one, the convolutions are loaded, and that one.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FormatError
        If it is of another kind, damaged, or holds a network that cannot be built here. Nothing in a file is
        ever run.

    Examples
    --------
    >>> import tempfile
    >>> from scratchnet.layers import Flatten, Linear, Sequential
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "net.safetensors")
    >>> checkpoint.save(path, Sequential(Flatten(), Linear(12, 2)))
    >>> load(path)[1]
    Linear(in_features=12, out_features=2, bias=True)
    """
    kind = kind_of(path)
    if kind != "safetensors":
        return {"torch": load_torch, "onnx": load_onnx}[kind](path, backend)
    with open_tensors(path) as file:
        if HEADER in file.metadata:
            return checkpoint.network_in(file).to(backend)
        return foreign.network_of(path, {name: file.read(name) for name in file.shapes}).to(backend)


def load_torch(path: str | os.PathLike[str], backend: str | Backend = "numpy") -> Chain:
    """Return the VGG whose ``state_dict`` PyTorch saved, without PyTorch.

    Parameters
    ----------
    path : path
        In the format of today or the one of before 2020, with torchvision's names (also those before 0.2) or
        timm's.
    backend : {"numpy", "cupy", "auto"} or Backend

    Returns
    -------
    Chain
        In evaluation mode: a ``VGG``, or as much of one as there is, see ``load``. Where it has 1000 classes,
        ``info`` has ImageNet's class names and preprocessing.

    Raises
    ------
    FormatError
        If it is damaged, holds no VGG, or anything besides tensors: the message says what it would have run.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "vgg16.pth")
    >>> with open(path, "wb") as file:
    ...     _ = file.write(b"not PyTorch's")
    >>> load_torch(path)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    scratchnet.tensorfile.FormatError: ...vgg16.pth is no file of weights that can be read: ...
    """
    return foreign.network_of(path, torch_file.read(path)).to(backend)


def load_onnx(path: str | os.PathLike[str], backend: str | Backend = "numpy") -> Chain:
    """Return the network of an ONNX file whose graph is a chain of layers that exist here.

    Parameters
    ----------
    path : path
    backend : {"numpy", "cupy", "auto"} or Backend

    Returns
    -------
    Sequential
        In evaluation mode. ``info`` has ``image_size`` where images are square, ``input_shape`` (H, W, C),
        what was ``left_out``, and the file's own metadata.

    Raises
    ------
    FormatError
        If it is damaged, or no such chain: the message names the first node that does not fit.
    ImportError
        If the package onnx is not installed.

    Examples
    --------
    >>> load_onnx("no such file.onnx")  # doctest: +SKIP
    """
    read = onnx_read.read(path)
    H, W, _ = read.input_shape
    info: dict[str, Any] = {}
    left_out = [*read.left_out]
    for key, value in read.metadata.items():
        try:
            info |= (known := checked({key: value}))
            check_that_it_fits(known, read.net)
        except ValueError as error:  # a word of others, that means something else to them
            left_out.append(f"metadata: {error}")
            info.pop(key, None)
    info |= {"input_shape": list(read.input_shape)} | ({"image_size": H} if H == W else {})
    if "class_names" not in info and "class_names" in (known := imagenet.header_for(read.net)):
        info["class_names"] = known["class_names"]  # how to normalise, files of others do not say
    read.net.info = info | {"left_out": left_out}
    return read.net.to(backend)
