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
from math import isqrt, prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scratchnet.backend import Array, Backend, get, to_numpy
from scratchnet.layers import Chain, Conv2d, Layer, Linear, assemble, leaves
from scratchnet.models import ARCHITECTURES, VGG
from scratchnet.rebuild import ENTRIES, check_that_it_rebuilds, entries, plain, rebuilt, shapes
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
    mean, std : sequence of 3 float, optional
        The normalisation of the images: (pixel / 255 - mean) / std, channel by channel.
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
    info |= {"class_names": _checked_names(net, class_names)}
    info |= {"mean": _checked_channels("mean", mean), "std": _checked_channels("std", std)} | described
    stale = ENTRIES - described.keys()
    info = {key: value for key, value in info.items() if value is not None and key not in stale}
    header = json.dumps(info, default=plain)
    check_that_it_rebuilds(net, json.loads(header))
    flattened = _flattened(net, info)
    state = {name: p.data for name, p in net.parameters().items()} | net.buffers()
    owners = _owners(net)
    tensors = {
        name: _to_file(owners[name], to_numpy(array), flattened.get(name)) for name, array in state.items()
    }
    write_tensors(path, tensors, header)


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
        info = _read_header(path, file)
        net = _build(path, file, info)
        _put(path, net, file, info)
    net.info = info
    return net.to(backend).eval()


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
    >>> from scratchnet.models import vgg11
    >>> net = vgg11(num_classes=2, image_size=32, width=0.125, classifier_width=16)
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "net.safetensors")
    >>> save(path, net)
    >>> other = vgg11(num_classes=2, image_size=32, width=0.125, classifier_width=16, seed=1)
    >>> load_weights(path, other)
    >>> bool((other.features[0].weight.data == net.features[0].weight.data).all())
    True
    """
    with open_tensors(path) as file:
        _put(path, net, file, _read_header(path, file))


# Which network a file holds


def _build(path: str | os.PathLike[str], file: TensorFile, info: dict[str, Any]) -> Chain:
    """Return the network that a file holds, without its weights."""
    if "network" in info:
        raise FormatError(
            f"{path} holds the weights of a network with layers from outside scratchnet, of the class "
            f"{info['network']!r}: build it, then call checkpoint.load_weights(path, net)"
        )
    dtype = "float64" if "F64" in file.dtypes.values() else "float32"
    what = "has a header that describes no network"
    try:
        if "chain" in info or info.get("changes"):
            _check_sizes(info, limit=max(1 << 20, sum(map(prod, file.shapes.values()))))
        else:
            what = "has a header that describes no VGG" if "model" in info else "holds no VGG"
            _check_names_of_vgg(path, file)
            dtype = "float64" if file.dtypes["features.0.weight"] == "F64" else "float32"
        known = "chain" in info or "model" in info
        net = rebuilt(info if known else {"model": _guess_settings(file.shapes)}, dtype)
    except (TypeError, ValueError, ArithmeticError, MemoryError, RecursionError) as error:
        raise FormatError(f"{path} {what}: {error}") from error
    names, classes = info.get("class_names"), _number_of_classes(net)
    if names is not None and classes is not None and len(names) != classes:
        raise FormatError(f"{path} has a damaged header: {classes} classes, {len(names)} class names")
    return net


def _check_names_of_vgg(path: str | os.PathLike[str], file: TensorFile) -> None:
    for name, ndim in {"features.0.weight": 4, "classifier.0.weight": 2, "classifier.6.weight": 2}.items():
        if len(file.shapes.get(name, ())) != ndim or 0 in file.shapes[name]:
            raise FormatError(f"{path} holds no VGG: it has no {name} of {ndim} axes")


def _check_sizes(value: Any, limit: int) -> None:
    """Refuse a header with a size that no tensor of the file can have, before anything so large is made."""
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_sizes(inner, limit)
    elif isinstance(value, int) and value > limit:
        raise ValueError(f"{value} is a size that no tensor in it has")


def _number_of_classes(net: Layer) -> int | None:
    """Return how many classes a network tells apart, where its last layer says so."""
    _, last = leaves(net)[-1] if leaves(net) else ("", None)
    return last.out_features if isinstance(last, Linear) else None


# Layouts


def _owners(net: Layer) -> dict[str, Layer]:
    """Return the layer of each parameter and running statistic."""
    owners = dict(net.walk())
    return {name: owners[name.rpartition(".")[0]] for name in shapes(net)}


def _flattened(net: Layer, info: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Return (H, W, C) of the feature map that a VGG's first linear layer sees flattened, by its name.

    In a file of a chain all linear layers are as in memory, but for the order of the axes.
    """
    if "chain" in info or not isinstance(net, VGG) or net.settings()["head"] != "flatten":
        return {}
    size = net.settings()["image_size"]
    _, H, W, C = net.features.output_shape((1, size, size, 3))
    first = net.parameters().get("classifier.0.weight")
    return {"classifier.0.weight": (H, W, C)} if first is not None and first.shape[0] == H * W * C else {}


def _to_file(owner: Layer, array: Array, flattened: tuple[int, int, int] | None) -> Array:
    """Turn an array from memory's layout to the file's."""
    if isinstance(owner, Conv2d) and array.ndim == 4:
        return array.transpose(3, 2, 0, 1)  # (O, C, KH, KW)
    if isinstance(owner, Linear) and array.ndim == 2:
        if flattened:
            # Copied once, to (out, c, h, w), rather than twice: it may be most of a network.
            return array.reshape(*flattened, -1).transpose(3, 2, 0, 1).reshape(array.T.shape)
        return array.T  # (out, in)
    return array


def _to_memory(owner: Layer, array: Array, flattened: tuple[int, int, int] | None) -> Array:
    """Turn an array, or some rows of it, from the file's layout to memory's: the inverse of ``_to_file``."""
    if isinstance(owner, Conv2d):
        return array.transpose(2, 3, 1, 0)  # (KH, KW, C, O)
    array = array.T  # (in, out)
    if flattened:
        H, W, C = flattened
        array = array.reshape(C, H, W, -1).transpose(1, 2, 0, 3).reshape(array.shape)  # (h, w, c)
    return array


def _has_outputs_first(owner: Layer, ndim: int) -> bool:
    """Tell whether a tensor's outputs come first in the file and last in memory."""
    return (isinstance(owner, Conv2d) and ndim == 4) or (isinstance(owner, Linear) and ndim == 2)


def _put(path: str | os.PathLike[str], net: Layer, file: TensorFile, info: Mapping[str, Any]) -> None:
    """Load a file's tensors into a network: all of them or, if one does not fit, none.

    Large ones are read a part at a time, straight into the network's buffer, so that nothing is in memory
    twice.
    """
    parameters, buffers, owners, expected = net.parameters(), net.buffers(), _owners(net), shapes(net)
    names = [name for name in file.shapes if not name.endswith("num_batches_tracked")]
    for name in [*expected, *names]:
        if name not in names or name not in expected:
            lacking = "the file lacks" if name not in names else "the network lacks"
            raise FormatError(f"{path} does not fit the network: {lacking} {name}")
    for name, shape in expected.items():
        found = file.shapes[name]
        if _has_outputs_first(owners[name], len(found)):
            found = (*found[2:], found[1], found[0])
        if found != shape:
            raise FormatError(
                f"{path} does not fit the network: {name} is {found}, where {shape} is expected"
            )
        if not file.dtypes[name].startswith("F"):
            dtype = file.read(name).dtype
            raise FormatError(
                f"{path} does not fit the network: {name} is {dtype}, where floating point is expected"
            )
    assemble(net)
    flattened = _flattened(net, info)
    for name in expected:
        if name in buffers:
            buffers[name][...] = net.backend.asarray(file.read(name))
            continue
        p = parameters[name]
        if not _has_outputs_first(owners[name], p.ndim):
            p.data = p.buffer.backend.asarray(file.read(name))
            continue
        outputs = p.shape[-1]  # the file's first axis
        step = max(1, NUMBERS_AT_A_TIME * outputs // max(1, p.size))
        for start in range(0, outputs, step):
            rows = slice(start, min(start + step, outputs))
            part = _to_memory(owners[name], file.read_rows(name, rows), flattened.get(name))
            p.assign((..., rows), p.buffer.backend.asarray(part))


# The header


def _read_header(path: str | os.PathLike[str], file: TensorFile) -> dict[str, Any]:
    """Return our part of a file's header, checked as far as it can be without the network."""
    try:
        info = json.loads(file.metadata.get(HEADER, "{}"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} has a damaged header: {error}") from error
    if not isinstance(info, dict):
        raise FormatError(f"{path} has a damaged header: not a JSON object")
    names = info.get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FormatError(f"{path} has a damaged header: class_names is no list of names")
    for key in ("model", "changes", "chain"):
        if not isinstance(info.get(key, {}), dict):
            raise FormatError(f"{path} has a damaged header: {key} is no JSON object")
    for key in sorted(info.keys() & {"mean", "std"}):
        try:
            _checked_channels(key, info[key])
        except ValueError as error:
            raise FormatError(f"{path} has a damaged header: {error}") from error
    return info


def _checked_channels(name: str, values: ArrayLike | None) -> list[float] | None:
    """Return one number per channel as a list: of ``mean``, or of ``std``, which must be above zero."""
    if values is None:
        return None
    try:
        numbers = np.array(values, dtype=float)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (3,) or not np.isfinite(numbers).all() or (name == "std" and numbers.min() <= 0):
        raise ValueError(f"{name} is not three finite numbers{' above zero' if name == 'std' else ''}")
    return [float(number) for number in numbers]


def _checked_names(net: Layer, class_names: Sequence[str] | None) -> list[str] | None:
    if class_names is None:
        return None
    names = list(class_names)
    if isinstance(class_names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names must be a list of strings, not {class_names!r}")
    classes = _number_of_classes(net)
    if classes is not None and len(names) != classes:
        raise ValueError(f"the network has {classes} classes, and class_names {len(names)}")
    return names


def _guess_settings(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Read from torchvision's names and shapes how the VGG was built.

    Convolution, [batch normalisation], ReLU and, where an index is left free before the next, pooling.
    """
    convolutions = {  # from the index to the number of output channels
        int(name.split(".")[1]): shape[0]
        for name, shape in shapes.items()
        if name.startswith("features.") and len(shape) == 4
    }
    batch_norm = any(name.endswith("running_mean") for name in shapes)
    step = 3 if batch_norm else 2
    layers: list[int | str] = []
    last = 1  # the channels of the last convolution
    indices = sorted(convolutions)
    for index, following in zip(indices, [*indices[1:], None], strict=True):
        last = convolutions[index]
        layers.append(last)
        if following is None or following - index > step:
            layers.append("M")
    inputs = shapes["classifier.0.weight"][1]
    pixels, rest = divmod(inputs, last)
    if rest or isqrt(pixels) ** 2 != pixels:
        raise ValueError(f"classifier.0 takes {inputs} inputs, which is no square image of the last channels")
    known = next((name for name, known in ARCHITECTURES.items() if known == layers), layers)
    return {
        "architecture": known,
        "num_classes": shapes["classifier.6.weight"][0],
        "image_size": isqrt(pixels) * 2 ** layers.count("M"),
        "batch_norm": batch_norm,
        "classifier_width": shapes["classifier.0.weight"][0],
    }
