"""The digest of named arrays, in memory or in a file: hashed block by block, on all workers.

It is the SHA-256 of a text that names each array, its type and its shape, with the SHA-256 of every ``BLOCK``
bytes of it. So blocks are hashed at the same time, and of a file no more than one per worker is in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from scratchnet import workers

BLOCK = 4 << 20  # bytes


class Bytes(NamedTuple):
    """An array as its bytes.

    Attributes
    ----------
    kind : str
        Its type and shape, as text.
    size : int
        How many bytes it has.
    read : callable
        From the first and the last (which is left out) to a buffer of these bytes; called on workers.
    """

    kind: str
    size: int
    read: Callable[[int, int], Any]


def digest(text: str, arrays: Mapping[str, Bytes]) -> str:
    """Return the digest of a text and of arrays, in hexadecimal; their order makes no difference.

    Parameters
    ----------
    text : str
    arrays : dict of str to Bytes

    Examples
    --------
    >>> word = b"abcdefgh"
    >>> digest("{}", {"word": Bytes("U8 (8,)", 8, lambda start, stop: word[start:stop])})[:16]
    '7b7b762f6e3ba0f7'
    """
    blocks = [(name, start) for name in sorted(arrays) for start in range(0, arrays[name].size, BLOCK)]
    hashes = [""] * len(blocks)

    def hash_blocks(first: int, step: int) -> None:
        for k in range(first, len(blocks), step):
            name, start = blocks[k]
            content = arrays[name].read(start, min(start + BLOCK, arrays[name].size))
            hashes[k] = hashlib.sha256(content).hexdigest()

    count = min(workers.size(), len(blocks))
    workers.run_parallel([partial(hash_blocks, k, count) for k in range(count)])
    named = [[name, arrays[name].kind] for name in sorted(arrays)]
    return hashlib.sha256(json.dumps([text, named, hashes]).encode()).hexdigest()
