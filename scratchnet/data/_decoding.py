"""What threads that decode images share: the memory that they may take together, and Pillow's warnings."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from scratchnet import system
from scratchnet.data._common import DataError

MAX_DECODED_BYTES = 1 << 30  # of images that are being decoded, all threads together
BYTES_PER_PIXEL = 16  # while an image is decoded, turned upright and converted to RGB
BYTES_PER_ODD_PIXEL = 40  # with more than 8 bits, or transparency
_ALWAYS = 16 << 20  # bytes that are there without asking


class _Memory:
    """What is being decoded by all threads: each waits until there is room for its image."""

    def __init__(self) -> None:
        self._changed, self._taken = threading.Condition(), 0

    @contextmanager
    def taken(self, size: int, name: str) -> Iterator[None]:
        """Take memory for an image; DataError if this machine has less."""
        with self._changed:
            while self._taken and self._taken + size > MAX_DECODED_BYTES:
                self._changed.wait()
            available = system.available_bytes() if size > _ALWAYS else None
            if available is not None and size > available - _ALWAYS:
                needed = f"decoding it takes {size / 1e9:.1f} GB, of which {available / 1e9:.1f} GB are free"
                raise DataError(f"{name} is too large for this machine: {needed}")
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()


class _WithoutWarnings:
    """A context in which nothing warns, for several threads: ``warnings.catch_warnings`` restores, in the
    order in which they leave, what each found, and so might leave warnings off for good."""

    def __init__(self) -> None:
        self._lock, self._inside, self._catch = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._catch = warnings.catch_warnings()
                self._catch.__enter__()
                warnings.simplefilter("ignore")  # of Pillow's, about things refused or mended

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._catch.__exit__(None, None, None)


MEMORY, WITHOUT_WARNINGS = _Memory(), _WithoutWarnings()
