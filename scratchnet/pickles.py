"""Pickles read as data: a machine that can run nothing, since it knows no class and calls no function.

A pickle is a program for a stack machine (``pickletools`` lists its instructions), and Python's own machine
imports and calls whatever the program names. An allow-list does not make that safe: NumPy's own callables,
given the right arguments, turn bytes of the file into pointers. So this machine has no import and no call::

    GLOBAL  numpy dtype        pushes  Name("numpy", "dtype")
    REDUCE                     pushes  Call(Name(...), arguments)        what would have been called
    BUILD                      sets    call.state                        what would have been its state
    BINPERSID                  pushes  Persistent(id)                    a reference out of the pickle

What comes out is a tree of plain numbers, text, bytes, lists, tuples, dicts and these three inert records.
The reader of a format takes from the tree what that format has, checks it, and makes arrays with
``numpy.frombuffer``.

The threat model: the file is an attacker's, byte for byte. It gets no code run, no class looked up, no memory
beyond a fixed multiple of its own size (at most ``MAX_OPERATIONS`` objects besides the text and bytes that
the file really contains), no recursion, and no dictionary keys but text, bytes and small integers.
"""

from __future__ import annotations

import io
import os
import pickletools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any, BinaryIO

import numpy as np

from scratchnet.backend import Array

MAX_OPERATIONS = 2_000_000  # CIFAR-100's training file has about 300,000, a VGG of PyTorch 2,000
MAX_KEY = 1 << 31  # integers up to this size cannot be made to collide in a dictionary


class PickleError(ValueError):
    """A pickle that is damaged, too large, or asks for what no data file needs. The message says which."""


@dataclass(frozen=True, eq=False)
class Name:
    """Something that the pickle names: a class or a function, which is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Call:
    """A call that the pickle asks for, and that is never made."""

    function: Name
    arguments: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)  # what it would put into the result, as into a dict


@dataclass(frozen=True, eq=False)
class Persistent:
    """A reference to something that lies outside the pickle."""

    id: Any


def load(file: bytes | BinaryIO) -> Any:
    """Return what a pickle of protocols 2 to 5 holds, as plain data, ``Name``, ``Call`` and ``Persistent``.

    A file is read from its position up to the end of one pickle, and no further. Strings of Python 2 come as
    bytes. What is damaged, or more than such a file needs, raises a PickleError.

    >>> import pickle
    >>> load(pickle.dumps({"a": [1, 2.5, "b"]}))
    {'a': [1, 2.5, 'b']}
    >>> print(load(pickle.dumps(print)))
    builtins.print
    """
    stream = _Bounded(io.BytesIO(file) if isinstance(file, bytes) else file)
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]
            if machine.step(opcode.name, argument):
                return machine.result()
    except PickleError:
        raise
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeError) as error:
        raise PickleError(f"it is damaged: {error or type(error).__name__}") from error
    raise PickleError("it is damaged: it has no end")


class _Bounded:
    """A file from which nothing is read that is not there: a size in the file is not believed beforehand."""

    def __init__(self, file: BinaryIO):
        self.file = file
        position = file.tell()
        self.left = file.seek(0, os.SEEK_END) - position
        file.seek(position)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise PickleError("it is damaged: it ends too early")
        self.left -= size
        return self.file.read(size)

    def readline(self) -> bytes:
        line = self.file.readline(min(self.left, 1024))  # a module or a class: no name is longer
        self.left -= len(line)
        return line

    def tell(self) -> int:
        return self.file.tell()


MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {  # instructions that push their argument
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_NOTHING = {"PROTO", "FRAME"}


class _Machine:
    """The stack, the memo, and one method that carries out an instruction."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.operations = 0

    def result(self) -> Any:
        if len(self.stack) != 1 or self.stack[0] is MARK:
            raise PickleError("it is damaged: it does not end with one value")
        return self.stack[0]

    def step(self, name: str, argument: Any) -> bool:
        """Carry out one instruction; return whether it was the last."""
        self.operations += 1
        if self.operations > MAX_OPERATIONS:
            raise PickleError(f"it has more than {MAX_OPERATIONS:,} instructions")
        stack = self.stack
        if name in _NOTHING:
            return False
        if name == "STOP":
            return True
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _VALUES:
            stack.append(argument)
        elif name in ("BINSTRING", "SHORT_BINSTRING"):  # Python 2's str
            stack.append(argument.encode("latin-1"))
        elif name == "BYTEARRAY8":
            stack.append(bytes(argument))
        elif name == "MARK":
            stack.append(MARK)
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._since_mark()
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self._top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self._top()
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_DICT"):
            stack.append({"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}[name]())
        elif name in ("LIST", "TUPLE"):
            values = self._since_mark()
            stack.append(values if name == "LIST" else tuple(values))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            values = [self._pop() for _ in range(int(name[-1]))]
            stack.append(tuple(reversed(values)))
        elif name == "DICT":
            stack.append(_put({}, self._since_mark()))
        elif name in ("APPEND", "APPENDS"):
            values = [self._pop()] if name == "APPEND" else self._since_mark()
            self._expect(list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = [self._pop(), self._pop()][::-1] if name == "SETITEM" else self._since_mark()
            target = self._expect(dict, Call)
            _put(target.items if isinstance(target, Call) else target, values)
        elif name == "GLOBAL":
            stack.append(Name(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            what, module = self._pop(), self._pop()
            if not isinstance(what, str) or not isinstance(module, str):
                raise PickleError("it is damaged: a name is no text")
            stack.append(Name(module, what))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = self._pop(), self._pop()
            if isinstance(function, Persistent) and isinstance(function.id, tuple):  # a class kept outside
                function = next((part for part in function.id if isinstance(part, Name)), None)
            if isinstance(function, Call):
                raise PickleError(f"it would run {function.function}, and then what that returns")
            if not isinstance(function, Name) or not isinstance(arguments, tuple):
                raise PickleError("it is damaged: it calls what is no function")
            stack.append(Call(function, arguments))
        elif name == "BUILD":
            state = self._pop()
            self._expect(Call).state = state
        elif name == "BINPERSID":
            stack.append(Persistent(self._pop()))
        else:
            raise PickleError(f"it has the instruction {name}, which no file of arrays needs")
        return False

    def _top(self) -> Any:
        if self.stack[-1] is MARK:
            raise PickleError("it is damaged: a value is missing")
        return self.stack[-1]

    def _pop(self) -> Any:
        self._top()
        return self.stack.pop()

    def _expect(self, *classes: type) -> Any:
        if not isinstance(self.stack[-1], classes):
            raise PickleError("it is damaged: it adds to what holds nothing")
        return self.stack[-1]

    def _since_mark(self) -> list[Any]:
        values = []
        while (value := self.stack.pop()) is not MARK:
            values.append(value)
        return values[::-1]


def _put(target: dict[Any, Any], values: list[Any]) -> dict[Any, Any]:
    """Put keys and values that follow each other into a dict."""
    if len(values) % 2:
        raise PickleError("it is damaged: a value is missing")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, (str, bytes)) and not (isinstance(key, int) and abs(key) < MAX_KEY):
            kind = type(key).__name__
            raise PickleError(f"it has a dictionary key that is neither text nor a number: {kind}")
        target[key] = value
    return target


def calls(value: Any) -> Iterator[Name]:
    """Yield all that a pickle asks to be called.

    >>> import os, pickle
    >>> class Evil:
    ...     def __reduce__(self):
    ...         return os.system, ("echo",)
    >>> [str(name) for name in calls(load(pickle.dumps([Evil()])))]
    ['posix.system']
    """
    return (item.function for item in records(value) if isinstance(item, Call))


def records(value: Any) -> Iterator[Call | Persistent]:
    """Yield all calls and references within a value, each object visited once, without recursion."""
    waiting, seen = [value], set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Call):
            yield item
            waiting += [item.arguments, item.state, item.items]
        elif isinstance(item, Persistent):
            yield item
            waiting.append(item.id)
        elif isinstance(item, (list, tuple)):
            waiting += item
        elif isinstance(item, dict):
            waiting += item.values()


# ---- what NumPy writes into a pickle -----------------------------------------------------------------------

_DTYPE = re.compile(r"[<>|=]?[bui][1248]")
_CORES = ("numpy.core", "numpy._core")


def to_bytes(value: Any) -> bytes:
    """Return bytes, also as Python 3 writes them for Python 2: as latin-1 text to be encoded."""
    if isinstance(value, bytes):
        return value
    if _is_call(value, "_codecs.encode") and len(value.arguments) == 2:
        text, encoding = value.arguments
        if isinstance(text, str) and encoding in ("latin1", "latin-1"):
            try:
                return text.encode("latin-1")
            except UnicodeEncodeError:
                raise PickleError("it has text where bytes belong") from None
    raise PickleError(f"it has {_told(value)} where bytes belong")


def to_array(value: Any) -> Array:
    """Return a plain array of booleans or whole numbers that NumPy pickled, made from its bytes.

    Anything else, or one whose bytes are not all there, raises a PickleError.

    >>> import pickle
    >>> to_array(load(pickle.dumps(np.arange(6, dtype="uint8").reshape(2, 3))))
    array([[0, 1, 2],
           [3, 4, 5]], dtype=uint8)
    """
    if _is_call(value, *(f"{core}.multiarray._reconstruct" for core in _CORES)):
        if not isinstance(value.state, tuple) or len(value.state) != 5:
            raise PickleError("it has an array without its contents")
        _, shape, dtype, by_columns, content = value.state
        order = "F" if by_columns is True else "C"
    elif _is_call(value, *(f"{core}.numeric._frombuffer" for core in _CORES)) and len(value.arguments) == 4:
        content, dtype, shape, order = value.arguments
    else:
        raise PickleError(f"it has {_told(value)} where an array belongs")
    kind, content = _dtype(dtype), to_bytes(content)
    whole = isinstance(shape, tuple) and len(shape) <= 8 and all(type(s) is int and s >= 0 for s in shape)
    if not whole or order not in ("C", "F"):
        raise PickleError("it has an array whose shape is none")
    if prod(shape) * kind.itemsize != len(content):
        raise PickleError(f"it has an array {shape} of {kind}, and {len(content):,} bytes for it")
    array: Array = np.frombuffer(content, kind)
    return array.reshape(shape[::-1]).T if order == "F" else array.reshape(shape)


def _dtype(value: Any) -> np.dtype[Any]:
    if not _is_call(value, "numpy.dtype") or not value.arguments:
        raise PickleError(f"it has {_told(value)} where the type of an array belongs")
    name = value.arguments[0]
    name = name.decode("latin-1") if isinstance(name, bytes) else name
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise PickleError(f"it has an array of {name!r}, where only whole numbers belong")
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "="
    order = order.decode("latin-1") if isinstance(order, bytes) else order
    if order not in ("<", ">", "|", "="):
        raise PickleError("it has an array whose byte order is none")
    kind = np.dtype(name)
    return np.dtype(order + kind.str[1:]) if order in ("<", ">") else kind


def _is_call(value: Any, *names: str) -> bool:
    return isinstance(value, Call) and str(value.function) in names


def _told(value: Any) -> str:
    """Say what a value is, for a message."""
    if isinstance(value, Call):
        return f"a call of {value.function}"
    return f"the name {value}" if isinstance(value, Name) else f"a {type(value).__name__}"
