"""Safetensors files: read a tensor or some rows at a time, written whole or not at all.

They carry no code. One entry of their header, under the key ``scratchnet``, is JSON of ours. Files that are
written here have another, the digest of this JSON and of the tensors, which is checked when they are opened.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from safetensors import SafetensorError, safe_open

from scratchnet.digests import Bytes, digest
from scratchnet.untrusted import FileError

HEADER, DIGEST = "scratchnet", "digest"
OTHERS = {"format"}  # entries that other programs add
DTYPES = {"F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}  # NumPy has them
MOST_HEADER = 8 << 20  # bytes: to read one takes ten times its size
PARTIAL = ".partial"  # ends the temporary name of a file that is being written


class FormatError(FileError):
    """A file is not a checkpoint, or not one that fits. The message names the file and says what is wrong."""


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], str]:
    """Read all tensors of a safetensors file, and the JSON of ours in its header, ``"{}"`` if there is none.

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
    """An open safetensors file: the same one even if its name is given to another in the meantime."""

    def __init__(self, path: str | os.PathLike[str], stack: ExitStack):
        opened = stack.enter_context(open(path, "rb"))
        if (length := int.from_bytes(opened.read(8), "little")) > MOST_HEADER and length < os.path.getsize(
            path
        ):
            raise FormatError(f"{path} has a header of {length:,} bytes, where {MOST_HEADER:,} are allowed")
        self._same = f"/proc/self/fd/{opened.fileno()}"  # where the system has that
        self._name = self._same if os.path.exists(self._same) else path
        self._path = path
        self._file = stack.enter_context(safe_open(self._name, framework="numpy"))
        self.metadata = self._file.metadata() or {}
        slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
        self.shapes = {name: tuple(tensor.get_shape()) for name, tensor in slices.items()}
        self.dtypes = {name: tensor.get_dtype() for name, tensor in slices.items()}

    def check_digest(self) -> None:
        """Raise a FormatError unless header and tensors are as they were written; others' files pass."""
        if DIGEST not in self.metadata:
            if HEADER in self.metadata and not self.metadata.keys() <= {HEADER, *OTHERS}:
                raise self.error("has a damaged header: it names what it should not")
            return
        with open(self._name, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            places = json.loads(file.read(length))

        def read(first: int, start: int, stop: int) -> bytes:
            with open(self._name, "rb", buffering=0) as file:  # each worker its own
                file.seek(first + start)
                return file.read(stop - start)

        parts = {}
        for name, shape in self.shapes.items():
            start, stop = places[name]["data_offsets"]
            kind = _kind(self.dtypes[name], shape)
            parts[name] = Bytes(kind, stop - start, partial(read, 8 + length + start))
        if digest(self.metadata.get(HEADER, "{}"), parts) != self.metadata[DIGEST]:
            raise self.error("is damaged: its digest says that it was written with other contents")

    def error(self, what: str) -> FormatError:
        """Return the error that says what is wrong with this file."""
        return FormatError(f"{self._path} {what}")

    def read(self, name: str) -> np.ndarray:
        """Return a tensor."""
        return self._file.get_tensor(name)

    def read_rows(self, name: str, rows: slice) -> np.ndarray:
        """Return some rows of a tensor, and leave nothing else in memory.

        What was read of a mapped file stays there until the file is closed, so it is opened once more.
        """
        if self._name != self._same:
            return self._file.get_slice(name)[rows]
        with safe_open(self._name, framework="numpy") as file:
            return file.get_slice(name)[rows]


class TensorsInMemory(TensorFile):
    """Tensors that another kind of file held, as ``TensorFile`` hands them out."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        tensors: Mapping[str, np.ndarray],
        metadata: Mapping[str, str] | None = None,
    ):
        self._path, self._tensors, self.metadata = path, tensors, dict(metadata or {})
        self.shapes = {name: array.shape for name, array in tensors.items()}
        self.dtypes = {name: dtype_name(array.dtype) for name, array in tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """Return a tensor."""
        return self._tensors[name]

    def read_rows(self, name: str, rows: slice) -> np.ndarray:
        """Return some rows of a tensor."""
        return self._tensors[name][rows]


@contextmanager
def open_tensors(path: str | os.PathLike[str], check: bool = True) -> Iterator[TensorFile]:
    """Open a safetensors file to read tensors or parts of them; by default check its digest, if it has one.

    Raises FileNotFoundError if there is no such file, and a FormatError if it is no safetensors file, is cut
    short, or holds something that NumPy has no type for.
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
        for dtype in sorted({*file.dtypes.values()} - DTYPES):
            dtype = dtype.replace("BF16", "bfloat16")
            raise file.error(f"holds numbers that NumPy has no type for ({dtype}): save them as float32")
        if check:
            file.check_digest()
        try:
            yield file
        except SafetensorError as error:
            raise file.error(f"cannot be read to its end: {error}") from error


def metadata_of(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the entries of a file's header, without a look at its tensors or at whether its digest holds."""
    with open_tensors(path, check=False) as file:
        return file.metadata


def digest_of(path: str | os.PathLike[str]) -> str | None:
    """Return the digest that a file has in its header; None if it has none, or there is no such file."""
    try:
        return metadata_of(path).get(DIGEST)
    except (FileNotFoundError, FormatError):
        return None


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], header: str) -> None:
    """Write a safetensors file, whole or not at all, with JSON of ours and a digest in its header.

    The old file is kept until the new one has been read back and has the right digest. The same tensors and
    header give the same bytes.
    """
    with replacing(path) as temporary:
        with open(temporary, "wb") as file:
            _write(file, tensors, header)
        try:
            with open_tensors(temporary):
                pass
        except FormatError as error:
            raise OSError("what was read back is not what was written") from error


def _write(file: IO[bytes], tensors: Mapping[str, np.ndarray], header: str) -> None:
    """Write what a file holds: the length of its header, the header, and the tensors.

    The format is that of https://huggingface.co/docs/safetensors, and the order its library's: wide types
    first, so that each tensor lies where its type may.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    described, flats, parts, place = {}, {}, {}, 0
    for name in names:
        array = arrays[name]
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        flat = flats[name] = little.reshape(-1).view(np.uint8)
        dtype = dtype_name(array.dtype)
        described[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": (place, place + flat.size)}
        place += flat.size
        parts[name] = Bytes(_kind(dtype, array.shape), flat.size, partial(_slice, flat))
    ours = {HEADER: header, DIGEST: digest(header, parts)}
    text = json.dumps({"__metadata__": ours, **described}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for flat in flats.values():
        file.write(flat.data)


def dtype_name(dtype: np.dtype) -> str:
    """Return the name that these files have for a type of NumPy's.

    >>> dtype_name(np.dtype("float32")), dtype_name(np.dtype("bool"))
    ('F32', 'BOOL')
    """
    return "BOOL" if dtype.kind == "b" else f"{dtype.kind.upper()}{8 * dtype.itemsize}"


def _slice(flat: np.ndarray, start: int, stop: int) -> np.ndarray:
    return flat[start:stop]


def _kind(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} {list(shape)}"


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield a temporary name in the same folder; then rename it to ``path``, or remove it after an error.

    >>> folder = tempfile.TemporaryDirectory()
    >>> with replacing(Path(folder.name, "log.csv")) as temporary:
    ...     _ = Path(temporary).write_text("epoch")
    >>> os.listdir(folder.name)
    ['log.csv']
    """
    target, temporary = Path(path), None
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=PARTIAL)
        os.close(handle)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # on the disk before it takes the old one's name
        os.umask(mask := os.umask(0))
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp's own are for the owner alone
        os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:  # of the system's, the reason without the temporary name
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.remove(temporary)


def sync_folder(folder: Path) -> None:
    """Put a folder's names on the disk, where the system can: else a power cut may take a rename back."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that does not sync folders
            raise
    finally:
        os.close(descriptor)
