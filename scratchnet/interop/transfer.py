"""Weights of one network for another: all that fits, by name and shape, and what did not.

The tensors of a VGG's file have names, torchvision's, and go by them. Any other chain, such as that of an
ONNX file, goes by position: its third convolution is the network's third, and a normalisation belongs to the
convolution or linear layer before it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scratchnet import checkpoint
from scratchnet.backend import Array
from scratchnet.interop import imagenet, onnx_read, torch_file, torch_names
from scratchnet.interop.kinds import kind_of
from scratchnet.layers import Conv2d, Layer, Linear, assemble, leaves
from scratchnet.rebuild import shapes
from scratchnet.tables import aligned
from scratchnet.tensorfile import FormatError, TensorFile, TensorsInMemory, open_tensors
from scratchnet.untrusted import printable

CHANNELS = ("rgb", "bgr")
SHOWN = 12  # names of tensors that are not used


@dataclass
class Initialised:
    """What ``initialise`` did; ``print`` it.

    Attributes
    ----------
    path : str
        Of the file.
    loaded : list of str
        The names of parameters and running statistics that are now those of the file.
    missed : dict of str to str
        Layers of the network that are as they were, by path, and why.
    unused : list of str
        Tensors of the file that have no place in the network.
    info : dict
        What else the file says: ``class_names``, ``mean``, ``std``.

    Examples
    --------
    >>> print(Initialised("a.pth", ["0.weight"], {"1": "is not in the file"}))
    Weights: 1 tensor from a.pth; not from it:
      1  is not in the file
    """

    path: str
    loaded: list[str]
    missed: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        number = len(self.loaded)
        first = f"Weights: {number} tensor{'s' * (number != 1)} from {printable(self.path)}"
        rows = list(self.missed.items())
        if self.unused:
            more = f" and {len(self.unused) - SHOWN} more" if len(self.unused) > SHOWN else ""
            rows.append(("unused", printable(", ".join(self.unused[:SHOWN]))[:1000] + more))
        return "\n".join(
            [f"{first}; not from it:" if rows else first, *(f"  {r}" for r in aligned(rows, 2, "  "))]
        )


def initialise(
    net: Layer, path: str | os.PathLike[str], *, new_head: bool = False, channels: str = "rgb"
) -> Initialised:
    """Give a network all weights of a file that fit; what does not fit stays as it is.

    A layer takes all that the file has for it, or nothing.

    Parameters
    ----------
    net : Layer
        On whatever backend it is. Its architecture, image size and classes need not be the file's.
    path : path
        Safetensors, PyTorch's or ONNX.
    new_head : bool
        Leave the last linear layer as it is, even if the file's would fit: its classes are others.
    channels : {"rgb", "bgr"}
        Which order of colours the file's first convolution expects. With "bgr" (Caffe, and Keras's VGG) its
        input channels are reversed, so that the network takes RGB, as ``data.Loader`` hands it out.

    Returns
    -------
    Initialised
        What was loaded, and what was not.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FormatError
        If it is damaged, or nothing in it fits. The network has not been changed then.

    Examples
    --------
    >>> import tempfile
    >>> from scratchnet import models
    >>> small = {"image_size": 32, "width": 0.125, "classifier_width": 16}
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "ten.safetensors")
    >>> checkpoint.save(path, models.vgg11(10, **small))
    >>> net = models.vgg11(num_classes=3, **small)
    >>> result = initialise(net, path)
    >>> len(result.loaded), result.missed
    (20, {'classifier.6': 'weight is (16, 3) here, and (16, 10) in the file'})
    >>> net = net.freeze("features")
    """
    if channels not in CHANNELS:
        raise ValueError(f"channels must be 'rgb' or 'bgr', not {channels!r}")
    tensors, info = _tensors_for(net, path)
    wanted = shapes(net)
    missed: dict[str, str] = {}
    for name, shape in wanted.items():
        where, _, kind = name.rpartition(".")
        if kind == "bias" and f"{where}.weight" in tensors:
            tensors.setdefault(name, np.zeros(shape, np.float32))  # what a layer without one adds
        if name not in tensors:
            missed.setdefault(where, f"{kind} is not in the file")
        elif tensors[name].shape != shape:
            missed.setdefault(where, f"{kind} is {shape} here, and {tensors[name].shape} in the file")
        elif tensors[name].dtype.kind != "f":
            missed.setdefault(where, f"{kind} is {tensors[name].dtype} in the file")
    linear = [where for where, layer in leaves(net) if isinstance(layer, Linear)]
    if new_head and linear:
        missed[linear[-1]] = "is new"
    chosen = [name for name in wanted if name.rpartition(".")[0] not in missed]
    if not chosen:
        where, reason = next(iter(missed.items()), ("it", "has no weights"))
        raise FormatError(f"{path} holds nothing that fits the network: {where}: {reason}")
    first = next((name for name in chosen if len(wanted[name]) == 4), None)
    if channels == "bgr":
        if first is None or wanted[first][2] != 3:
            raise FormatError(f"{path} has no first convolution of three colours to reverse")
        tensors[first] = tensors[first][:, :, ::-1]  # (KH, KW, C, O)
    assemble(net)
    for name, p in net.parameters().items():
        if name in chosen:
            p.data = net.backend.asarray(tensors[name].astype(p.dtype))
    for name, buffer in net.buffers().items():
        if name in chosen:
            buffer[...] = net.backend.asarray(tensors[name])
    unused = [name for name in tensors if name not in wanted]
    return Initialised(os.fspath(path), chosen, missed, unused, info)


def _tensors_for(net: Layer, path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return a file's tensors in memory's layout, by the names that they have in ``net``; and its header."""
    kind = kind_of(path)
    if kind == "torch":
        names = torch_names.as_torchvision(torch_file.read(path))
        return _turned(net, TensorsInMemory(path, names)), imagenet.normalisation_of(names)
    if kind == "onnx":
        read = onnx_read.read(path)
        return _by_position(read.net, net), read.metadata
    with open_tensors(path) as file:
        info = checkpoint.read_header(file)
        if "chain" not in info:
            tensors = _turned(net, file)
            return tensors, info if "mean" in info else info | imagenet.normalisation_of(tensors)
        return _by_position(checkpoint.network_in(file), net), info


def _turned(net: Layer, file: TensorFile) -> dict[str, Array]:
    """Return the tensors of a file with PyTorch's layouts, those with a place in the network turned."""
    windows, tensors = checkpoint.windows_of(net, {}), {}
    for name in file.shapes:
        tensor = file.read(name)
        if name in windows and tensor.ndim in (2, 4):
            H, W, C = windows[name]
            if tensor.ndim == 4 or tensor[0].size != H * W * C:  # turned as what it is itself
                C, H, W = (*tensor.shape[1:], 1, 1)[:3]
            tensor = checkpoint.to_memory(tensor, (H, W, C), tensor.ndim)
        tensors[name] = tensor
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def _by_position(source: Layer, net: Layer) -> dict[str, Array]:
    """Return a network's tensors by the names of those that stand in the same place in another network."""
    names = {place: name for name, place in _places(net).items()}
    tensors = {name: p.data for name, p in source.parameters().items()} | source.buffers()
    return {names.get(place, name): tensors[name] for name, place in _places(source).items()}


def _places(net: Layer) -> dict[str, tuple[str, int, int, str]]:
    """Return where tensors stand: of what, after how many convolutions and linear layers, and which it is."""
    places, convolutions, linears = {}, 0, 0
    for path, layer in leaves(net):
        convolutions += isinstance(layer, Conv2d)
        linears += isinstance(layer, Linear)
        kind = next((k.__name__ for k in (Conv2d, Linear) if isinstance(layer, k)), "other")
        for name in shapes(layer):
            places[f"{path}.{name}"] = kind, convolutions, linears, name
    return places
