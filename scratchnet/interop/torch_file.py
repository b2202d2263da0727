"""PyTorch's files (``.pth``, ``.pt``), read without PyTorch and without running anything that they hold.

Such a file is a pickle that describes tensors, and beside it the numbers that they are views of (storages)::

    since PyTorch 1.6   a zip archive:  */data.pkl, */data/0, */data/1, ...
    before (and torchvision's VGG files of 2017)
                        five pickles, one after the other: a magic number, a version, facts about the
                        machine, the tensors, the keys of the storages; then the storages, each with its
                        length (8 bytes) and its numbers

    tensor = _rebuild_tensor_v2(Persistent("storage", torch.FloatStorage, key, device, length),
                                offset, size, stride, requires_grad, hooks)

The pickles are read as data (``pickles.py``), so that this call is a record, and the tensor is made from it
by ``numpy.frombuffer``, within the bytes that are there.
"""

from __future__ import annotations

import os
import re
import struct
import zipfile
from collections.abc import Callable
from math import prod
from typing import Any, BinaryIO

import numpy as np

from scratchnet import pickles
from scratchnet.backend import Array
from scratchnet.pickles import Call, Name, Persistent, PickleError
from scratchnet.tensorfile import FormatError

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
MOST_COPIES = 4  # of the file's numbers: half precision is widened, and tensors may share theirs
# bfloat16, which NumPy does not have, is the upper half of a float32.
STORAGES = {
    "torch.FloatStorage": "f4",
    "torch.DoubleStorage": "f8",
    "torch.HalfStorage": "f2",
    "torch.BFloat16Storage": "u2",
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
# Where training programs put a state_dict beside an epoch, an optimizer and the like.
KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights")
# All that zipfile raises for archives that are damaged, besides PickleError, which is a ValueError.
_INVALID = (ValueError, LookupError, ArithmeticError, RuntimeError)
_DAMAGED = (*_INVALID, zipfile.BadZipFile, OSError, EOFError, struct.error)
_RECORD = re.compile(r"([^/]+)/data/(\d+)")

Storages = Callable[[str, np.dtype[Any], int], Array]


def is_torch_file(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file begins as PyTorch's do, in either format."""
    with open(path, "rb") as file:
        start = file.read(16)
    return start[:4] == b"PK\x03\x04" or (start[:2] == b"\x80\x02" and start[2:3] == b"\x8a")


def read(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Return the tensors of a ``state_dict`` that PyTorch saved.

    Parameters
    ----------
    path : path
        A file of ``torch.save(model.state_dict(), path)``, or of a dict that has the state_dict under one of
        the usual keys.

    Returns
    -------
    dict of str to array
        By name, in order, with PyTorch's names and layouts. float16 and bfloat16 come as float32.

    Raises
    ------
    FormatError
        If it is damaged, or holds something else: the message names the class or function that it would
        have run.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = os.path.getsize(path)
                return _tensors(*_open_zip(archive, size), size)
        with open(path, "rb") as file:
            return _tensors(*_open_legacy(file), os.path.getsize(path))
    except _DAMAGED as error:
        raise FormatError(f"{path} is no file of weights that can be read: {error}") from error


def _open_zip(archive: zipfile.ZipFile, size: int) -> tuple[Any, Storages]:
    members = {info.filename: info for info in archive.infolist()}
    names = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(names) != 1:
        raise PickleError("it is a zip archive, but not one of PyTorch's: data.pkl is missing")
    folder = names[0].partition("/")[0]
    if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
        raise PickleError("it is compressed, which PyTorch's files are not")
    byte_order = archive.read(f"{folder}/byteorder") if f"{folder}/byteorder" in members else b"little"

    read: dict[str, bytes] = {}

    def storage(key: str, dtype: np.dtype[Any], length: int) -> Array:
        name = f"{folder}/data/{key}"
        if not _RECORD.fullmatch(name) or name not in members:
            raise PickleError(f"the numbers of storage {key!r} are missing")
        if members[name].file_size != length * dtype.itemsize:
            raise PickleError(f"storage {key!r} should have {length:,} numbers of {dtype}")
        if name not in read:  # once, however many tensors are views of it
            if sum(map(len, read.values())) + members[name].file_size > size:  # members may overlap
                raise PickleError("its storages are larger than the file")
            read[name] = archive.read(name)
        return np.frombuffer(read[name], np.dtype((">" if byte_order == b"big" else "<") + dtype.str[1:]))

    return pickles.load(archive.read(names[0])), storage


def _open_legacy(file: BinaryIO) -> tuple[Any, Storages]:
    try:
        magic, version = pickles.load(file), pickles.load(file)
    except PickleError:
        magic, version = None, None
    if magic != MAGIC or version != VERSION:
        raise PickleError("it is none of PyTorch's")
    facts, content, keys = pickles.load(file), pickles.load(file), pickles.load(file)
    if not isinstance(facts, dict) or facts.get("little_endian") is not True or not isinstance(keys, list):
        raise PickleError("it is damaged, or from a machine whose numbers have the other byte order")
    references = (item for item in pickles.records(content) if isinstance(item, Persistent))
    sizes = {key: (dtype, length) for key, dtype, length in map(_storage, references)}
    end = os.fstat(file.fileno()).st_size
    found: dict[str, Array] = {}
    for key in keys:
        dtype, length = sizes.get(str(_text(key)), (np.dtype("u1"), -1))
        count = int.from_bytes(file.read(8), "little", signed=True)
        if count != length or file.tell() + length * dtype.itemsize > end:
            raise PickleError(f"it is damaged, or ends too early: storage {key!r}")
        found[str(_text(key))] = np.frombuffer(file.read(length * dtype.itemsize), dtype)

    def storage(key: str, dtype: np.dtype[Any], length: int) -> Array:
        if key not in found or found[key].dtype != dtype or len(found[key]) != length:
            raise PickleError(f"the numbers of storage {key!r} are missing")
        return found[key]

    return content, storage


def _storage(reference: Any) -> tuple[str, np.dtype[Any], int]:
    """Return key, element type and length of a storage."""
    fields = reference.id if isinstance(reference, Persistent) else None
    if not isinstance(fields, tuple) or len(fields) < 5 or _text(fields[0]) != "storage":
        raise PickleError("a tensor has no storage")
    kind, key, length = fields[1], _text(fields[2]), fields[4]
    if not isinstance(kind, Name) or str(kind) not in STORAGES:
        raise PickleError(f"it has numbers of a kind that is not read: {kind}")
    if not isinstance(key, str) or type(length) is not int or length < 0:
        raise PickleError("a tensor has no storage")
    return key, np.dtype(STORAGES[str(kind)]), length


def _tensors(content: Any, storage: Storages, size: int) -> dict[str, Array]:
    """Return the tensors of a state_dict, wherever in the file it lies."""
    state = _items(content)
    while not any(map(_is_tensor, state.values())):
        inner = next((state[key] for key in KEYS if key in state), None)
        if inner is None:
            break
        state = _items(inner)
    tensors = {name: value for name, value in state.items() if _is_tensor(value)}
    if not tensors:
        raise PickleError("it has no tensors with names: torch.save(model.state_dict(), path) writes them")
    arrays: dict[str, Array] = {}
    left = MOST_COPIES * size
    for name, value in tensors.items():
        arrays[name] = _tensor(name, value, storage)
        left -= arrays[name].nbytes
        if left < 0:
            raise PickleError(f"its tensors are more than {MOST_COPIES} times as large as the file")
    return arrays


def _items(content: Any) -> dict[str, Any]:
    """Return a dict or an OrderedDict, with text as keys; name what else it is."""
    if isinstance(content, Call):
        if str(content.function) != "collections.OrderedDict":
            raise PickleError(
                f"it would run {content.function}. Nothing in a file is run here: if this is a model, save "
                "its weights alone, with torch.save(model.state_dict(), path)"
            )
        content = content.items
    if not isinstance(content, dict):
        raise PickleError(f"it holds a {type(content).__name__}, where a state_dict belongs")
    return {str(_text(key)): value for key, value in content.items()}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Call) and str(value.function) in (
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
    )


def _tensor(name: str, call: Call, storage: Storages) -> Array:
    if call.function.name == "_rebuild_parameter":
        if not call.arguments or not _is_tensor(call.arguments[0]):
            raise PickleError(f"{name} is no tensor")
        call = call.arguments[0]
    if len(call.arguments) < 4:
        raise PickleError(f"{name} is no tensor")
    reference, offset, size, stride = call.arguments[:4]
    key, dtype, length = _storage(reference)
    whole = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= 8
    if not whole or not all(type(n) is int and n >= 0 for n in (offset, *size, *stride)):
        raise PickleError(f"{name} has no shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if prod(size) and (prod(size) > length or last >= length):
        raise PickleError(f"{name} reaches beyond its numbers")
    numbers = storage(key, dtype, length)
    array = np.lib.stride_tricks.as_strided(
        numbers[offset:], size, [step * dtype.itemsize for step in stride], writeable=False
    )
    if str(reference.id[1]) == "torch.BFloat16Storage":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) if dtype == np.float16 else np.ascontiguousarray(array).reshape(size)


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
