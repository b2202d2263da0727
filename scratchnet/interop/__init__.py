"""Other people's weights and networks: PyTorch's files, ONNX, safetensors, told apart by their content.

=====================  =================================================================================
``torch_file.py``      PyTorch's files as tensors, without PyTorch
``torch_names.py``     the names that torchvision and timm give them
``onnx_read.py``       ONNX graphs as networks, by the operators of ``onnx_operators.py``
``onnx_write.py``      networks as ONNX graphs
=====================  =================================================================================
"""

from __future__ import annotations

import os

from scratchnet import checkpoint
from scratchnet.backend import Backend
from scratchnet.interop import onnx_read, onnx_write, torch_file, torch_names
from scratchnet.layers import Chain
from scratchnet.tensorfile import FormatError, TensorsInMemory

__all__ = ["load", "load_onnx", "load_torch", "save_onnx"]

HDF5 = b"\x89HDF\r\n\x1a\n"
KERAS = "is a file of Keras (HDF5), which is not read here. With Keras at hand, this converts it:"
KERAS_ADVICE = """
    import keras, tf2onnx, tensorflow as tf
    model = keras.models.load_model({path!r})
    shape = [tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="images")]
    function = tf.function(model.call, input_signature=shape)
    model.output_names = ["output"]
    tf2onnx.convert.from_function(function, shape, output_path="model.onnx")"""

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
    if not os.path.isfile(path):
        return checkpoint.load(path, backend)  # says what it is instead
    with open(path, "rb") as file:
        start = file.read(16)
    if start.startswith(HDF5):
        raise FormatError(f"{path} {KERAS}", KERAS_ADVICE.format(path=os.fspath(path)))
    if torch_file.is_torch_file(path):
        return load_torch(path, backend)
    # A safetensors file begins with the length of its header, and with the brace of that header's JSON.
    return checkpoint.load(path, backend) if start[8:9] == b"{" else load_onnx(path, backend)


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
