"""Saved weights: safetensors files with torchvision's names and layouts, which carry no code.

A file that is saved here loads into ``torchvision.models.vgg16()`` of the same shape as it is, and
torchvision's load here. In memory and on disk the axes stand in different orders:

=======================  =======================  =========================================================
tensor                   in memory                in the file (PyTorch's)
=======================  =======================  =========================================================
convolution              (KH, KW, C, O)           (O, C, KH, KW)
linear                   (in, out)                (out, in)
``classifier.0.weight``  rows in (h, w, c) order  columns in (c, h, w) order: PyTorch flattens channels first
all others               as they are              as they are
=======================  =======================  =========================================================

The file's header holds JSON under the key ``scratchnet``: what the network is (``rebuild.py``), and what else
its user needs to know (class names, normalisation, data set). All of it is optional when reading.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import ArrayLike

from scratchnet.backend import Array, Backend, get, to_numpy
from scratchnet.header import check_that_it_fits, checked
from scratchnet.layers import Chain, Conv2d, Layer, Linear, assemble
from scratchnet.models import VGG
from scratchnet.rebuild import ENTRIES, check_that_it_rebuilds, entries, plain, rebuilt, shapes
from scratchnet.recognise import check_size, check_that_it_is_a_vgg, vgg_settings
from scratchnet.tensorfile import HEADER, FormatError, TensorFile, open_tensors, write_tensors

__all__ = ["FormatError", "load", "load_weights", "save"]

NUMBERS_AT_A_TIME = 1 << 20  # that are read of one tensor


def save(
    path: str | os.PathLike[str],
    net: Layer,
    *,
    class_names: Sequence[str] | None = None,
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
    **info: Any,
) -> None:
    """Write a network's weights and running statistics to a file.

    The file appears whole or not at all: it is written under a temporary name and then renamed, so that a
    full disk or a crash leaves what was there before.

    Parameters
    ----------
    path : path
        By custom ``*.safetensors``.
    net : Layer
        A chain of this package's layers, such as a VGG, can be loaded again with ``load``; a network with
        other layers with ``load_weights``, once it has been built.
    class_names : sequence of str, optional
    mean, std : sequence of float, optional
        One per channel. The normalisation of the images: (pixel / 255 - mean) / std, channel by channel.
    **info
        Anything else that JSON can hold and a reader may want to know, such as ``data="CIFAR-10"``.

    Raises
    ------
    ValueError
        If an argument does not fit the network, or the network that the file would describe is not this one.
        Nothing has been written then.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from scratchnet.models import vgg11
    >>> net = vgg11(num_classes=2, image_size=32, width=0.125, classifier_width=16)
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "net.safetensors")
    >>> save(path, net, class_names=["cat", "dog"])
    >>> again = load(path)
    >>> bool((again.features[0].weight.data == net.features[0].weight.data).all())
    True
    >>> again.info["class_names"]
    ['cat', 'dog']
    """
    described = entries(net)
    info = checked(info | {"class_names": class_names, "mean": mean, "std": std} | described)
    info = {key: value for key, value in info.items() if key not in ENTRIES - described.keys()}
    check_that_it_fits(info, net)
    text = json.dumps(info, default=plain)
    check_that_it_rebuilds(net, json.loads(text))
    tensors = {name: to_numpy(p.data) for name, p in net.parameters().items()}
    tensors |= {name: _to_file(tensors[name], window) for name, window in windows_of(net, info).items()}
    tensors |= {name: to_numpy(array) for name, array in net.buffers().items()}
    write_tensors(path, tensors, text)


def load(path: str | os.PathLike[str], backend: str | Backend = "numpy") -> Chain:
    """Build the network that a file holds, and load its weights.

    Parameters
    ----------
    path : path
        Written by ``save``, or any safetensors file with the names of torchvision's VGG: without our header,
        the architecture is read from the names and shapes.
    backend : {"numpy", "cupy", "auto"} or Backend
        Where to put the network.

    Returns
    -------
    Chain
        In evaluation mode: a ``VGG``, a ``Sequential``, or a chain with the names of the layers of one's own
        class. Its attribute ``info`` is the header as a dict: ``class_names``, ``mean``, ``std`` and whatever
        else was saved.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FormatError
        If it is not a safetensors file, or it does not say which network it holds.

    Examples
    --------
    >>> import tempfile
    >>> from scratchnet.layers import Flatten, Sequential
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "net.safetensors")
    >>> save(path, Sequential(Flatten(), Linear(12, 2)), class_names=["cat", "dog"])
    >>> net = load(path)
    >>> net.training, net.info["class_names"]
    (False, ['cat', 'dog'])
    >>> net[1]
    Linear(in_features=12, out_features=2, bias=True)
    """
    backend = get(backend)
    with open_tensors(path) as file:
        return network_in(file).to(backend)


def network_in(file: TensorFile) -> Chain:
    """Return the network that an open file holds, in evaluation mode."""
    info = read_header(file)
    net = _build(file, info)
    _put(net, file, info)
    net.info = info
    return net.eval()


def load_weights(path: str | os.PathLike[str], net: Layer) -> None:
    """Load a file's weights into a network that has been built, in place, on whatever backend it is.

    Parameters
    ----------
    path : path
    net : Layer
        With the same names and shapes as the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FormatError
        If it is not a safetensors file, or does not fit. The network has not been changed then.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> net, other = Linear(3, 2), Linear(3, 2, rng=np.random.default_rng(1))
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "net.safetensors")
    >>> save(path, net)
    >>> load_weights(path, other)
    >>> bool((other.weight.data == net.weight.data).all())
    True
    """
    with open_tensors(path) as file:
        _put(net, file, read_header(file))


# Which network a file holds


def _build(file: TensorFile, info: dict[str, Any]) -> Chain:
    """Return the network that a file holds, without its weights."""
    if "network" in info:
        raise file.error(
            "holds the weights of a network with layers from outside scratchnet, of the class "
            f"{info['network']!r}: build it, then call checkpoint.load_weights(path, net)"
        )
    dtypes = {*file.dtypes.values()}
    described, what = "chain" in info or "model" in info, "has a header that describes no network"
    try:
        if "chain" not in info and not info.get("changes"):
            what = "holds no VGG"
            check_that_it_is_a_vgg(file.shapes)
            what = "has a header that describes no VGG" if described else what
            dtypes = {file.dtypes["features.0.weight"]}
        settings = info if described else {"model": vgg_settings(file.shapes)}
        check_size(settings, file.shapes)
        net = rebuilt(settings, "float64" if "F64" in dtypes else "float32")
        what = "has a damaged header"
        check_that_it_fits(info, net)
    except (TypeError, ValueError, LookupError, ArithmeticError, MemoryError, RecursionError) as error:
        raise file.error(f"{what}: {error}") from error
    return net


# Layouts. Linear layers are seen as convolutions with a kernel of one pixel, or of the whole image.


def windows_of(net: Layer, info: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Return what one output of a convolution or linear layer sees, (H, W, C), by the name of its weights.

    The first linear layer of a VGG sees a feature map; in a file of a chain each sees one pixel.
    """
    owners = dict(net.walk())
    windows: dict[str, tuple[int, int, int]] = {}
    for name, p in net.parameters().items():
        owner = owners[name.rpartition(".")[0]]
        if isinstance(owner, Conv2d) and p.ndim == 4:
            H, W, C, _ = p.shape
            windows[name] = (H, W, C)
        elif isinstance(owner, Linear) and p.ndim == 2:
            windows[name] = (1, 1, p.shape[0])
    if "chain" not in info and isinstance(net, VGG) and net.settings()["head"] == "flatten":
        size, channels, first = (
            net.settings()["image_size"],
            net.settings()["in_channels"],
            "classifier.0.weight",
        )
        _, H, W, C = net.features.output_shape((1, size, size, channels))
        if windows.get(first) == (1, 1, H * W * C):
            windows[first] = (H, W, C)
    return windows


def _to_file(weights: Array, window: tuple[int, int, int]) -> Array:
    """Turn weights from memory's layout to the file's."""
    turned = weights.reshape(*window, -1).transpose(3, 2, 0, 1)  # (O, C, H, W)
    # Copied once, at most, rather than twice: they may be most of a network.
    return turned if weights.ndim == 4 else turned.reshape(weights.T.shape)  # (out, in)


def to_memory(rows: Array, window: tuple[int, int, int], ndim: int) -> Array:
    """Turn some rows of weights from the file's layout to memory's: the inverse of ``_to_file``."""
    H, W, C = window
    turned = rows.reshape(-1, C, H, W).transpose(2, 3, 1, 0)  # (H, W, C, O)
    return turned if ndim == 4 else turned.reshape(H * W * C, -1)  # (in, out)


def _put(net: Layer, file: TensorFile, info: Mapping[str, Any]) -> None:
    """Load a file's tensors into a network: all of them or, if one does not fit, none.

    Large ones are read a part at a time, straight into the network's buffer, so that nothing is in memory
    twice.
    """
    buffers, expected, windows = net.buffers(), shapes(net), windows_of(net, info)
    names = [name for name in file.shapes if not name.endswith("num_batches_tracked")]
    misfit = "does not fit the network"
    for name in [*expected, *names]:
        if name not in names or name not in expected:
            lacking = "the file lacks" if name not in names else "the network lacks"
            raise file.error(f"{misfit}: {lacking} {name}")
    for name, shape in expected.items():
        found = file.shapes[name]
        if name in windows and len(found) == len(shape):
            found = (*found[2:], found[1], found[0])
        if found != shape:
            raise file.error(f"{misfit}: {name} is {found}, where {shape} is expected")
        if not file.dtypes[name].startswith("F"):
            dtype = file.read(name).dtype
            raise file.error(f"{misfit}: {name} is {dtype}, where floating point is expected")
    assemble(net)
    for name, p in net.parameters().items():
        asarray = p.buffer.backend.asarray
        if name not in windows:
            p.data = asarray(file.read(name))
            continue
        outputs = p.shape[-1]  # the file's first axis
        step = max(1, NUMBERS_AT_A_TIME * outputs // p.size)
        for start in range(0, outputs, step):
            rows = slice(start, min(start + step, outputs))
            p.assign((..., rows), asarray(to_memory(file.read_rows(name, rows), windows[name], p.ndim)))
    for name, buffer in buffers.items():
        buffer[...] = net.backend.asarray(file.read(name))


# The header


def read_header(file: TensorFile) -> dict[str, Any]:
    """Return our part of a file's header, checked as far as it can be without the network."""
    try:
        info = checked(json.loads(file.metadata.get(HEADER, "{}")))
        for key in ("model", "changes", "chain"):
            if not isinstance(info.get(key, {}), dict):
                raise ValueError(f"{key} is no JSON object")
    except (TypeError, ValueError, RecursionError) as error:
        raise file.error(f"has a damaged header: {error}") from error
    return info
