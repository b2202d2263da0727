"""Padding: what a map of tiles holds where the image has no pixels, and who writes it.

A map of tiles (``layouts.py``) is larger than its image: a row above and a row below, and, where height or
width are no multiples of the tile's size, the rest of the last tiles. All of that has to be zero when it is
read, in the map as in its gradient, and the memory has served other buffers before::

    0 0 0 0 0 0 0 0      the border above: zero before the forward pass, if its reader ``reads_border``
    x x x x x x . .
    x x x x x x . .      . beyond the image: written by whatever writes the map last
    . . . . . . . .
    0 0 0 0 0 0 0 0      the border below

Three rules:

- A kernel that writes pixels only leaves everything else alone. For its map ``record_borders`` writes the
  zeros, before the forward pass, in a phase that exists anyway.
- A kernel that ``writes_whole_tiles`` overwrites what is beyond the image, and so sets it to zero itself,
  with ``clear_beyond``, right after writing.
- A kernel that writes a gradient writes whole tiles, too: ``clear_gradient_beyond``. Where the map's mask
  clears, that has happened: the map is zero there.
"""

from __future__ import annotations

from typing import Any

from scratchnet.backend import Array
from scratchnet.plans.cpu.calls import Calls, Phase, split_evenly
from scratchnet.plans.cpu.layouts import Tiles


def record_borders(tiles: Any, writer: Any, reader: Any) -> Phase | None:
    """Return the zeros around a map's pixels that its writer (None for the input's) leaves out, if any."""
    if not isinstance(tiles, Tiles):
        return None
    whole = tiles.H % tiles.size == tiles.W % tiles.size == 0
    beyond = not whole and not (writer is not None and writer.writes_whole_tiles)
    if not beyond and not reader.reads_border:
        return None
    phase: Phase = reader.phase("borders")
    for calls, chunks in zip(phase.workers, split_evenly(len(tiles.chunks), len(phase.workers)), strict=True):
        for c in chunks:
            rows = tiles.chunk(c)
            if reader.reads_border:
                calls.copy(0, out=rows[0])
                calls.copy(0, out=rows[-1])
            if beyond:
                clear_beyond(calls, tiles, rows[1:-1])
    return phase


def clear_beyond(calls: Calls, tiles: Tiles, rows: Array, first: int = 0) -> None:
    """Record zeros where some rows of a chunk, [k, size, TW, n, C], have no pixels.

    ``first`` is the row of the image that the first of them is.
    """
    inside = min(len(rows), tiles.H - first)
    if inside < len(rows):
        calls.copy(0, out=rows[inside:])
    if tiles.W % tiles.size:
        calls.copy(0, out=rows[:inside, tiles.W % tiles.size :, -1])


def clear_gradient_beyond(calls: Calls, tiles: Tiles, rows: Array, first: int = 0) -> None:
    """Record zeros where some rows of a chunk's gradient, masked already, have no pixels."""
    if not tiles.mask.clears:
        clear_beyond(calls, tiles, rows, first)
