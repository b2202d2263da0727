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

The file's header holds JSON under the key ``scratchnet``: how the network was built, and what else its user
needs to know (class names, input size, normalisation, data set). All of it is optional when reading.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from scratchnet.backend import Backend, get, to_numpy
from scratchnet.layers import Conv2d, Layer, Linear
from scratchnet.models import ARCHITECTURES, VGG

HEADER = "scratchnet"
KINDS = {"F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}  # NumPy has them
PART = 1 << 20  # numbers that are read at a time
PARTIAL = ".partial"  # ends the temporary name of a file that is being written


class FormatError(Exception):
    """A file is not a checkpoint, or not one that fits. The message names the file and says what is wrong."""


def save(
    path: str | os.PathLike,
    net: Layer,
    *,
    class_names: list[str] | tuple[str, ...] | None = None,
    mean: Any = None,
    std: Any = None,
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
        A VGG can be loaded again with ``load``; any other network with ``load_weights``.
    class_names : sequence of str, optional
    mean, std : sequence of 3 float, optional
        The normalisation of the images: (pixel / 255 - mean) / std, channel by channel.
    **info
        Anything else that JSON can hold and a reader may want to know, such as ``data="CIFAR-10"``.

    Raises
    ------
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> from scratchnet.models import vgg11
    >>> net = vgg11(num_classes=2, image_size=32, width=0.125, classifier_width=16)
    >>> folder = tempfile.TemporaryDirectory()
    >>> save(Path(folder.name, "net.safetensors"), net, class_names=["cat", "dog"])
    >>> again = load(Path(folder.name, "net.safetensors"))
    >>> bool((again.features[0].weight.data == net.features[0].weight.data).all())
    True
    >>> again.info["class_names"]
    ['cat', 'dog']
    """
    info |= {"class_names": None if class_names is None else list(class_names)}
    info |= {"mean": _floats(mean), "std": _floats(std)}
    if isinstance(net, VGG):
        classes = net.settings()["num_classes"]
        if class_names is not None and len(class_names) != classes:
            raise ValueError(f"the network has {classes} classes, and class_names {len(class_names)}")
        info |= {"model": net.settings()}
    info = {key: value for key, value in info.items() if value is not None}
    header = json.dumps(info, default=_plain)
    tensors = {name: _to_file(net, name, to_numpy(array)) for name, array in _state(net).items()}
    write_tensors(path, tensors, header)


def load(path: str | os.PathLike, backend: str | Backend = "numpy") -> VGG:
    """Build the VGG that a file holds, and load its weights.

    Parameters
    ----------
    path : path
        Written by ``save``, or any safetensors file with the names of torchvision's VGG: without our header,
        the architecture is read from the names and shapes.
    backend : {"numpy", "cupy", "auto"} or Backend
        Where to put the network.

    Returns
    -------
    VGG
        In evaluation mode. Its attribute ``info`` is the header as a dict: ``class_names``, ``mean``, ``std``
        and whatever else was saved.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FormatError
        If it is not a safetensors file, or not one of a VGG.

    Examples
    --------
    >>> from scratchnet.models import vgg11
    >>> net = vgg11(num_classes=2, image_size=32, width=0.125, classifier_width=16)
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name, "net.safetensors")
    >>> save(path, net, class_names=["cat", "dog"])
    >>> again = load(path)
    >>> again.training, again.info["class_names"]
    (False, ['cat', 'dog'])
    """
    backend = get(backend)
    with open_tensors(path) as file:
        net = _build(path, file, _read_header(path, file.metadata.get(HEADER, "{}")))
        _put(path, net, file)
    return net.to(backend).eval()


def _build(path: str | os.PathLike, file: TensorFile, info: dict[str, Any]) -> VGG:
    """Return the network that a file describes, without its weights."""
    shapes = file.shapes
    for name, ndim in {"features.0.weight": 4, "classifier.0.weight": 2, "classifier.6.weight": 2}.items():
        if len(shapes.get(name, ())) != ndim or 0 in shapes[name]:
            raise FormatError(f"{path} holds no VGG: it has no {name} of {ndim} axes")
    dtype = "float64" if file.kinds["features.0.weight"] == "F64" else "float32"
    try:
        net = VGG(**(info["model"] if "model" in info else _guess_settings(shapes)), dtype=dtype)
    except (TypeError, ValueError, ArithmeticError, MemoryError) as error:
        what = "has a header that describes no VGG" if "model" in info else "holds no VGG"
        raise FormatError(f"{path} {what}: {error}") from error
    names = info.get("class_names")
    if names is not None and len(names) != net.settings()["num_classes"]:
        raise FormatError(
            f"{path} has a damaged header: {net.settings()['num_classes']} classes, {len(names)} class names"
        )
    net.info = info
    return net


def load_weights(path: str | os.PathLike, net: Layer) -> None:
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
    >>> from scratchnet.models import vgg11
    >>> net = vgg11(num_classes=2, image_size=32, width=0.125, classifier_width=16)
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name, "net.safetensors")
    >>> save(path, net)
    >>> other = vgg11(num_classes=2, image_size=32, width=0.125, classifier_width=16, seed=1)
    >>> load_weights(path, other)
    >>> bool((other.features[0].weight.data == net.features[0].weight.data).all())
    True
    """
    with open_tensors(path) as file:
        _put(path, net, file)


def read_tensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], str]:
    """Read all tensors of a safetensors file, and the JSON of ours in its header, ``"{}"`` if there is none.

    Parameters
    ----------
    path : path

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FormatError
        If it is not one, is cut short, or holds something that NumPy has no type for.

    Examples
    --------
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name, "two.safetensors")
    >>> write_tensors(path, {"a": np.arange(3.0), "b": np.ones((2, 2))}, header='{"step": 7}')
    >>> tensors, header = read_tensors(path)
    >>> tensors["a"], header
    (array([0., 1., 2.]), '{"step": 7}')
    """
    with open_tensors(path) as file:
        return {name: file.read(name) for name in file.shapes}, file.metadata.get(HEADER, "{}")


class TensorFile:
    """An open safetensors file. It stays the same one, whatever becomes of its name in the meantime.

    Parameters
    ----------
    path : path
    stack : ExitStack
        Closes it.

    Examples
    --------
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name, "two.safetensors")
    >>> write_tensors(path, {"a": np.arange(3.0), "b": np.ones((2, 2))}, header='{"step": 7}')
    >>> with ExitStack() as stack:
    ...     TensorFile(path, stack).read("a")
    array([0., 1., 2.])
    """

    def __init__(self, path: str | os.PathLike, stack: ExitStack):
        whole = stack.enter_context(open(path, "rb"))
        self._same = f"/proc/self/fd/{whole.fileno()}"  # where the system has that
        self._name = self._same if os.path.exists(self._same) else path
        self._file = stack.enter_context(safe_open(self._name, framework="numpy"))
        self.metadata = self._file.metadata() or {}
        slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
        self.shapes = {name: tuple(tensor.get_shape()) for name, tensor in slices.items()}
        self.kinds = {name: tensor.get_dtype() for name, tensor in slices.items()}

    def read(self, name: str) -> np.ndarray:
        """Return a tensor."""
        return self._file.get_tensor(name)

    def read_rows(self, name: str, rows: slice) -> np.ndarray:
        """Return some rows of a tensor, and leave nothing else in memory.

        What was read of a mapped file stays there until the file is closed, so it is opened anew.
        """
        if self._name != self._same:
            return self._file.get_slice(name)[rows]
        with safe_open(self._name, framework="numpy") as file:
            return file.get_slice(name)[rows]


@contextmanager
def open_tensors(path: str | os.PathLike) -> Iterator[TensorFile]:
    """Open a safetensors file, to read a tensor or a part of one at a time; else as ``read_tensors``.

    Parameters
    ----------
    path : path

    Examples
    --------
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name, "two.safetensors")
    >>> write_tensors(path, {"a": np.arange(3.0), "b": np.ones((2, 2))}, header='{"step": 7}')
    >>> with open_tensors(path) as file:
    ...     file.shapes["b"], file.read_rows("a", slice(1, 3))
    ((2, 2), array([1., 2.]))
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no file {os.fspath(path)}")
    if not os.path.isfile(path):
        what = "a folder" if os.path.isdir(path) else "no regular file"
        raise FormatError(f"{path} is {what}, not a safetensors file")
    with ExitStack() as stack:
        try:
            file = TensorFile(path, stack)
        except (SafetensorError, ValueError, AttributeError) as error:
            reason = str(error).removeprefix("Error while deserializing header: ")
            raise FormatError(f"{path} is damaged, or not a safetensors file at all ({reason})") from error
        for kind in sorted({*file.kinds.values()} - KINDS):
            kind = {"BF16": "bfloat16"}.get(kind, kind)
            raise FormatError(
                f"{path} holds numbers that NumPy has no type for ({kind}): save them as float32"
            )
        try:
            yield file
        except SafetensorError as error:
            raise FormatError(f"{path} cannot be read to its end: {error}") from error


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray], header: str) -> None:
    """Write a safetensors file, whole or not at all, with one entry of JSON in its header.

    One and no more: safetensors writes several in random order, and the same run shall leave the same bytes.

    Parameters
    ----------
    path : path
    tensors : mapping from name to array
    header : str
        JSON.

    Examples
    --------
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name, "two.safetensors")
    >>> write_tensors(path, {"a": np.arange(3.0), "b": np.ones((2, 2))}, header='{"step": 7}')
    >>> sorted(read_tensors(path)[0])
    ['a', 'b']
    """
    tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {HEADER: header})


@contextmanager
def replacing(path: str | os.PathLike) -> Any:
    """Yield a temporary name in the same folder; afterwards rename it to ``path``, or remove it after an
    error.

    Parameters
    ----------
    path : path

    Examples
    --------
    >>> folder = tempfile.TemporaryDirectory()
    >>> with replacing(Path(folder.name, "log.csv")) as temporary:
    ...     _ = Path(temporary).write_text("epoch")
    >>> os.listdir(folder.name)
    ['log.csv']
    """
    path, temporary = Path(path), None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
        os.close(handle)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # on the disk before it takes the old one's name
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's own are for the owner alone
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # of the system's, the reason without the temporary name
        raise OSError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.remove(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _state(net: Layer) -> dict[str, Any]:
    """Everything that a file holds: parameters and running statistics, from name to array."""
    return {name: p.data for name, p in net.parameters().items()} | net.buffers()


def _layer_of(net: Layer, name: str) -> Layer:
    return dict(net.walk())[name.rpartition(".")[0]]


def _flattened(net: Layer, name: str) -> tuple[int, int, int] | None:
    """Return (H, W, C) of the feature map that a VGG's first linear layer sees flattened, else None."""
    if name != "classifier.0.weight" or not isinstance(net, VGG) or net.settings()["head"] != "flatten":
        return None
    size = net.settings()["image_size"]
    return net.features.output_shape((1, size, size, 3))[1:]


def _to_file(net: Layer, name: str, array: np.ndarray) -> np.ndarray:
    """Turn an array from memory's layout to the file's."""
    layer = _layer_of(net, name)
    if isinstance(layer, Conv2d) and array.ndim == 4:
        return array.transpose(3, 2, 0, 1)  # (O, C, KH, KW)
    if isinstance(layer, Linear) and array.ndim == 2:
        if shape := _flattened(net, name):
            # Copied once, to (out, c, h, w), rather than twice: it may be most of a network.
            return array.reshape(*shape, -1).transpose(3, 2, 0, 1).reshape(array.T.shape)
        return array.T  # (out, in)
    return array


def _to_memory(net: Layer, name: str, array: np.ndarray) -> np.ndarray:
    """Turn an array, or some rows of it, from the file's layout to memory's: the inverse of ``_to_file``."""
    layer = _layer_of(net, name)
    if isinstance(layer, Conv2d) and array.ndim == 4:
        return array.transpose(2, 3, 1, 0)  # (KH, KW, C, O)
    if isinstance(layer, Linear) and array.ndim == 2:
        array = array.T  # (in, out)
        if shape := _flattened(net, name):
            H, W, C = shape
            array = array.reshape(C, H, W, -1).transpose(1, 2, 0, 3).reshape(array.shape)  # (h, w, c)
    return array


def _put(path: str | os.PathLike, net: Layer, file: TensorFile) -> None:
    """Load a file's tensors into a network: all of them or, if one does not fit, none.

    Large ones are read a part at a time, straight into the network's buffer, so that nothing is in memory
    twice.
    """
    parameters, buffers = net.parameters(), net.buffers()
    state = {name: p.shape for name, p in parameters.items()}
    state |= {name: tuple(array.shape) for name, array in buffers.items()}
    names = [name for name in file.shapes if not name.endswith("num_batches_tracked")]
    for name in [*state, *names]:
        if name not in names or name not in state:
            who = "the file lacks" if name not in names else "the network lacks"
            raise FormatError(f"{path} does not fit the network: {who} {name}")
    for name in state:
        shape = file.shapes[name]
        if _has_channels_last(net, name, len(shape)):
            shape = (*shape[2:], shape[1], shape[0])
        if shape != state[name]:
            raise FormatError(
                f"{path} does not fit the network: {name} is {shape}, where {state[name]} is expected"
            )
        if not file.kinds[name].startswith("F"):
            kind = file.read(name).dtype
            raise FormatError(
                f"{path} does not fit the network: {name} is {kind}, where floating point is expected"
            )
    for name in state:
        if name in buffers:
            buffers[name][...] = net.backend.asarray(file.read(name))
            continue
        p = parameters[name]
        if not _has_channels_last(net, name, p.ndim):
            p.data = p.buffer.backend.asarray(file.read(name))
            continue
        outputs = p.shape[-1]  # the file's first axis
        step = max(1, PART * outputs // max(1, p.size))
        for start in range(0, outputs, step):
            rows = slice(start, min(start + step, outputs))
            part = _to_memory(net, name, file.read_rows(name, rows))
            p.assign((..., rows), p.buffer.backend.asarray(part))


def _has_channels_last(net: Layer, name: str, ndim: int) -> bool:
    """Tell whether a tensor's outputs come first in the file and last in memory."""
    layer = _layer_of(net, name)
    return (isinstance(layer, Conv2d) and ndim == 4) or (isinstance(layer, Linear) and ndim == 2)


def _read_header(path: str | os.PathLike, header: str) -> dict[str, Any]:
    """Return what our part of a file's header says, checked as far as it can be without the network."""
    try:
        info = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} has a damaged header: {error}") from error
    if not isinstance(info, dict):
        raise FormatError(f"{path} has a damaged header: not a JSON object")
    names, model = info.get("class_names", []), info.get("model", {})
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FormatError(f"{path} has a damaged header: class_names is no list of names")
    if not isinstance(model, dict):
        raise FormatError(f"{path} has a damaged header: model is no JSON object")
    for key in info.keys() & {"mean", "std"}:
        try:
            values = np.array(info[key], dtype=float)
        except (TypeError, ValueError):
            values = np.empty(0)
        if values.shape != (3,) or not np.isfinite(values).all() or (key == "std" and values.min() <= 0):
            raise FormatError(f"{path} has a damaged header: {key} is not three numbers that can be used")
    return info


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
    indices = sorted(convolutions)
    for index, following in zip(indices, [*indices[1:], None], strict=True):
        layers.append(convolutions[index])
        if following is None or following - index > step:
            layers.append("M")
    inputs = shapes["classifier.0.weight"][1]
    pixels, rest = divmod(inputs, next(c for c in reversed(layers) if c != "M"))
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


def _plain(value: Any) -> Any:
    """Turn a number or array of NumPy's into what JSON can hold."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"a file's header cannot hold {type(value).__name__}")


def _floats(values: Any) -> list[float] | None:
    return None if values is None else [float(value) for value in values]
