"""Choosing: what follows from the shapes of a network, layouts of maps and chunks of images.

Which kernel computes which group follows from them, too, by rules that belong to the kernels (``supports``
and ``suits``, see ``registry.kernel_for``). For convolutions they give this table:

===========================================  =============================================================
a convolution                                is computed by
===========================================  =============================================================
not 3 x 3, stride 1, padding 1, in float32   ``im2col``
of an image of 2 x 2 pixels                  ``toeplitz``
the first one, of at most four channels      ``first_conv``, if not pooled and what follows reads tiles
of at least 3 x 3 pixels and four channels   ``winograd4`` or ``winograd6``, whichever takes less time; not
                                             for inference with only a few tiles
any other                                    ``im2col``
===========================================  =============================================================

What the machine decides, by a measurement, is in ``measuring.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scratchnet.plans.cpu.calls import split_evenly
from scratchnet.plans.cpu.layouts import TILES

# Winograd's transforms want vectors of about this many numbers: long enough for a matrix product with 6 x 6
# to be fast, short enough for all 36 (or 64) of a tile to stay in the caches.
VECTOR = 4096


def layouts(kernels: Sequence[Any]) -> list[str]:
    """Return the layout of each map: of the input of each of these kernel classes, then of the last output.

    A kernel that reads any layout gets the one that the kernel before it has to write, or else reads, so that
    nothing is rearranged.
    """
    found: list[str] = []
    for i, kernel in enumerate(kernels):
        if kernel.input_layout is not None:
            found.append(kernel.input_layout)
        elif i > 0 and kernels[i - 1].input_layout is not None:
            written = kernels[i - 1].output_layout or found[i - 1]
            if written == "tiles":  # of any size: of that which is read next
                sizes = [k.input_layout for k in kernels[i:] if k.input_layout in TILES]
                written = sizes[0] if sizes else next(iter(TILES))
            found.append(written)
        else:
            found.append("plain")
    return [*found, "plain"]


def images_per_chunk(N: int, tiles: int, channels: int, workers: int) -> list[range]:
    """Divide a batch into chunks: so many images that a vector of the first large map has VECTOR numbers.

    That is the first map that comes in tiles, so many in a row, and has so many channels. At the later levels
    of VGG, where maps are half as wide and have twice the channels, vectors stay as long. Each worker gets as
    many chunks as the others, if there are enough images.

    Examples
    --------
    >>> images_per_chunk(128, tiles=8, channels=64, workers=2)[:2], len(images_per_chunk(128, 8, 64, 2))
    ([range(0, 8), range(8, 16)], 16)
    >>> images_per_chunk(7, tiles=56, channels=64, workers=2)
    [range(0, 1), range(1, 2), range(2, 3), range(3, 4), range(4, 5), range(5, 6), range(6, 7)]
    """
    n = max(1, round(VECTOR / (tiles * channels)))
    count = -(-N // n)
    if count % workers:
        count = min(N, count + workers - count % workers)
    return [images for images in split_evenly(N, count) if images]
