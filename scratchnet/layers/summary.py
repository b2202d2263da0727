"""The table of ``net.summary()``: a row per layer, with its output and what it costs for one input."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, TextIO

from scratchnet.layers.tree import leaves
from scratchnet.tables import aligned

if TYPE_CHECKING:
    from scratchnet.layers.base import Layer

TITLES = ("Layer", "Output size", "Kernel", "Stride", "Activation", "Parameters", "Multiply-adds", "Memory")


def show(
    net: Layer, size: int | tuple[int, ...] | None = None, activation: str = "", file: TextIO | None = None
) -> None:
    """Print a table with a row per layer, for the side of square RGB images or the shape of one input.

    Memory is that of the layer's parameters plus that of its output. ``activation`` is what follows the last
    layer, as softmax does where the loss has it.

    Examples
    --------
    >>> from scratchnet.layers import Conv2d, Flatten, Linear, ReLU, Sequential
    >>> show(Sequential(Conv2d(1, 4), ReLU(), Flatten(), Linear(64, 2)), (4, 4, 1))
    Layer       Output size   Kernel   Stride   Activation   Parameters   Multiply-adds    Memory
    Input       4 x 4 x 1                                             0               0   0.00 MB
    0 Conv2d    4 x 4 x 4     3 x 3    1        relu                 40             576   0.00 MB
    2 Flatten   64                                                    0               0   0.00 MB
    3 Linear    2                                                   130             128   0.00 MB
    Total                                                           170             704   0.00 MB
    """
    if size is None:
        raise ValueError(f"{net.label}: summary needs the shape of one input, as in net.summary((32, 32, 3))")
    shape = (1, *(size if isinstance(size, tuple) else (size, size, 3)))
    itemsize = net.dtype.itemsize
    rows: list[list[Any]] = [["Input", _times(shape), "", "", "", 0, 0, prod(shape) * itemsize]]
    for path, layer in leaves(net):
        before, shape = shape, layer.output_shape(shape)
        count = sum(p.size for p in layer.parameters().values())
        settings = layer.settings()
        if not (count or settings) and before == shape:  # a ReLU and its like: a column of the row above
            rows[-1][4] = type(layer).__name__.lower()
            continue
        kernel, stride = settings.get("kernel_size"), settings.get("stride", "")
        sizes = _times(shape), _times((1, kernel, kernel)) if kernel else "", str(stride)
        costs = count, layer.multiply_adds(before), (count + prod(shape)) * itemsize
        rows.append([f"{path} {type(layer).__name__}".strip(), *sizes, "", *costs])
    rows[-1][4] = rows[-1][4] or activation
    rows.append(["Total", "", "", "", "", *(sum(row[i] for row in rows) for i in (5, 6, 7))])
    cells = [[*r[:5], f"{r[5]:,}", f"{r[6]:,}", f"{r[7] / 2**20:,.2f} MB"] for r in rows]
    print("\n".join(aligned([TITLES, *cells], left=5)), file=file)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[1:]))
