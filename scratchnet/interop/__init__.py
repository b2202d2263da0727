"""Other people's weights and networks: PyTorch's files, ONNX, safetensors, told apart by their content.

=====================  =================================================================================
``torch_file.py``      PyTorch's files as tensors, without PyTorch
``torch_names.py``     the names that torchvision and timm give them
``onnx_read.py``       ONNX graphs as networks, by the operators of ``onnx_operators.py``
``onnx_write.py``      networks as ONNX graphs
``kinds.py``           which of these a file is
``transfer.py``        all weights of a file that fit a network of one's own
``rescale.py``         its layers brought to one scale, so that body and head learn at one rate
=====================  =================================================================================
"""

from __future__ import annotations

import os

from scratchnet import checkpoint
from scratchnet.backend import Backend
from scratchnet.interop import onnx_read, onnx_write, torch_file, torch_names
from scratchnet.interop.kinds import kind_of
from scratchnet.interop.rescale import rescale_layers
from scratchnet.interop.transfer import CHANNELS, Initialised, initialise
from scratchnet.layers import Chain
from scratchnet.tensorfile import TensorsInMemory

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
        In evaluation mode, with what the file says besides its weights in ``info``.

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
    loaders = {"safetensors": checkpoint.load, "torch": load_torch, "onnx": load_onnx}
    return loaders[kind_of(path)](path, backend)


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
    VGG
        In evaluation mode.

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
    tensors = torch_names.as_torchvision(torch_file.read(path))
    return checkpoint.network_in(TensorsInMemory(path, tensors)).to(backend)


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
    read.net.info = read.metadata | {"input_shape": list(read.input_shape), "left_out": read.left_out}
    read.net.info |= {"image_size": H} if H == W else {}
    return read.net.to(backend)
