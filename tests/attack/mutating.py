"""Mutants of files: damage at random, damage that knows numbers and text, and a loop guided by coverage."""

from __future__ import annotations

import random
import re
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import scratchnet

PACKAGE = str(Path(scratchnet.__file__).parent)
INTEGERS = [0, 1, 2, 7, 127, 128, 255, 256, 32767, 65535, 65536, 2**20, 2**24 - 1, 2**29, 2**31 - 1, 2**31]
INTEGERS += [2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
NUMBERS = [*map(str, INTEGERS), "-1", "-0", "1e400", "1e-400", "NaN", "Infinity", "-Infinity", "1e308", "0.5"]
NUMBERS += [
    str(10**400),
    f"0.{'3' * 400}",
    "٣",
    "1_000",
    "0x10",
    "null",
    "true",
    '"7"',
    "[]",
    "{}",
    "[[[[1]]]]",
]
TEXT = [
    b"\x1b[2J",
    b"\x07",
    b"\r",
    b"\n",
    b"\x00",
    "\u202e".encode(),
    b"\xff\xfe",
    b"../../",
    b"%s%n",
    b"'\"<>&",
]
TEXT += [b"[" * 3000, b'{"a":' * 3000, b"x" * 100_000]
LIMIT = 1 << 20  # bytes of a mutant

Mutate = Callable[[random.Random, bytes], bytes]


def mutant(rng: random.Random, content: bytes, others: Sequence[bytes] = (b"",)) -> bytes:
    """Return a damaged copy, by one to four changes."""
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 4])):
        place = rng.randrange(len(damaged) + 1)
        stop = min(len(damaged), place + rng.choice([1, 1, 2, 4, 8, 16, 64, 512]))
        match rng.randrange(10):
            case 0 if place < len(damaged):
                damaged[place] ^= 1 << rng.randrange(8)
            case 1:
                damaged[place:stop] = rng.randbytes(stop - place)
            case 2:
                del damaged[place:stop]
            case 3:
                del damaged[place:]
            case 4:
                damaged[place:place] = damaged[place:stop] * rng.choice([1, 2, 50])
            case 5:
                size, order = rng.choice([("H", 2), ("I", 4), ("Q", 8)]), rng.choice("<>")
                value = rng.choice(INTEGERS) % 256 ** size[1]
                damaged[place : place + size[1]] = struct.pack(order + size[0], value)
            case 6:
                damaged = bytearray(with_another_number(rng, bytes(damaged)))
            case 7:
                damaged[place:place] = rng.choice(TEXT)
            case 8:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                damaged[place:stop] = other[start : start + rng.choice([1, 8, 64, 1024])]
            case _:
                start = rng.randrange(len(damaged) + 1)
                damaged[place:stop] = damaged[start : start + stop - place]
    return bytes(damaged[:LIMIT])


def with_another_number(rng: random.Random, content: bytes) -> bytes:
    """Replace a number written in digits, as in JSON and CSV."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?(e-?\d+)?", content[: 1 << 16]))
    if not found:
        return content
    match = rng.choice(found)
    return content[: match.start()] + rng.choice(NUMBERS).encode() + content[match.end() :]


def other_json(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """Return a value as JSON has it with some of its parts exchanged, left out, or of another kind."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        changed = dict(value)
        key = rng.choice(list(changed))
        match rng.randrange(6):
            case 0:
                del changed[key]
            case 1:
                changed[key] = changed[rng.choice(list(changed))]
            case 2:
                changed[rng.choice(["", "\x1b[31m", "class", "dtype", "rng", "__class__", key * 2])] = (
                    changed[key]
                )
            case _:
                changed[key] = other_json(rng, changed[key], depth + 1)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        return [*value[:place], other_json(rng, value[place], depth + 1), *value[place + rng.randrange(2) :]]
    strange = [
        None,
        True,
        False,
        "",
        "\x1b[2J\r\n\x07\u202e",
        "1",
        [],
        {},
        [[]],
        -1,
        0,
        1,
        2,
        31,
        32,
        33,
        1e308,
    ]
    strange += [
        1e-308,
        float("nan"),
        float("inf"),
        10**30,
        2**63,
        -(2**63),
        20000,
        10**7,
        0.5,
        "float64",
        "Linear",
    ]
    return rng.choice(strange)


class Coverage:
    """The lines of the package that have been run so far."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, int]] = set()

    def of(self, function: Callable[[], None]) -> bool:
        """Run a function, and tell whether it came to a line where none was before."""
        before = len(self.seen)
        seen = self.seen

        def line(frame: FrameType, event: str, _: Any) -> Any:
            seen.add((frame.f_code.co_filename, frame.f_lineno))
            return line

        def call(frame: FrameType, event: str, _: Any) -> Any:
            return line if frame.f_code.co_filename.startswith(PACKAGE) else None

        outer = sys.gettrace()
        sys.settrace(call)
        try:
            function()
        finally:
            sys.settrace(outer)
        return len(seen) > before
