"""What every algorithm of this folder is: a kernel, which turns one map into the next, and gradients back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchnet.plans.cpu.blocks import COLUMNS, product, small_matmul
from scratchnet.plans.cpu.calls import BLOCK, Calls, Phase, reshaped, split_evenly
from scratchnet.plans.cpu.layouts import Map, Pair, Tiles
from scratchnet.plans.cpu.measuring import choose_block_shape
from scratchnet.plans.cpu.planes import in_planes
from scratchnet.plans.grouping import Group
from scratchnet.plans.memory import Arena, Buffer

FEW_ROWS_TO_TRANSPOSE = 32  # see ``transpose_weights``


@dataclass(frozen=True)
class PlanContext:
    """What all kernels of a plan have in common.

    Attributes
    ----------
    workers : int
        How many workers compute.
    training : bool
    dtype : numpy.dtype
    block_limit : int
        The largest M * N * K of a small matrix product, see ``blocks.py``.
    """

    workers: int
    training: bool
    dtype: np.dtype
    block_limit: int


class Kernel:
    """One group of layers, on given maps.

    ``output.grad`` is with respect to what goes into the group's ReLU: it was masked where it was written
    (see ``layouts.py``).

    First ``reserve`` asks for memory; when it is there, ``weights``, ``forward`` and ``backward`` return the
    phases to run. In between nothing is computed.

    Parameters
    ----------
    group : Group
        The layers.
    input, output : Map
    setting : Setting
    first : bool
        Whether the map before it is the network's input, whose gradient is rarely asked for.
    """

    algorithm = ""
    input_layout = "plain"  # the layout that it reads, see ``layouts.py``
    output_layout: str | None = None  # the layout that it always writes, where it cannot write any
    is_view = False  # whether its output is its input, under another shape
    keeps_output = False  # whether backward needs the output map, too
    # For kernels that transform the weights before they use them: how many bytes that takes, and whether a
    # plan for inference has room to keep them from one forward pass to the next.
    weight_bytes = 0
    keeps_weights = False

    def __init__(self, group: Group, input: Map, output: Map, context: PlanContext, first: bool = False):
        self.group, self.input, self.output, self.context, self.first = group, input, output, context, first

    @classmethod
    def supports(cls, groups: list[Group], i: int, context: PlanContext) -> bool:
        """Tell whether this kernel can compute group i."""
        return True

    @classmethod
    def suits(cls, groups: list[Group], i: int, context: PlanContext) -> bool:
        """Tell whether to choose it for group i, if no kernel before it suits."""
        return cls.supports(groups, i, context)

    @classmethod
    def build(
        cls, group: Group, input: Map, output: Map, context: PlanContext, first: bool = False
    ) -> Kernel:
        """Return the kernel of a group, on given maps."""
        return cls(group, input, output, context, first)

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:
        """Ask for buffers that live at the step (see ``memory.py``) of the forward or the backward pass.

        For inference ``backward`` is None.
        """

    def record_weights(self) -> list[Phase]:
        """Return what computes all that is kept and follows from the parameters; run when they change."""
        return []

    def borders(self) -> Phase | None:
        """Return what has to be set to zero around and beside the input's pixels, before the forward pass."""
        if not isinstance(self.input, Tiles):
            return None
        phase = self.phase("borders")
        for worker, chunks in enumerate(split_evenly(len(self.input.chunks), self.context.workers)):
            for c in chunks:
                self.input.clear(phase.workers[worker], c)
        return phase

    def record_forward(self) -> list[Phase]:
        """Return the forward pass: input.data to output.data."""
        raise NotImplementedError

    def record_backward(self) -> list[Phase]:
        """Return the backward pass: output.grad to input.grad, and the gradients of the parameters."""
        raise NotImplementedError

    def describe(self) -> str:
        """Say in a few words how this kernel works on its map."""
        return ""

    # Helpers

    def per_worker(
        self, arena: Arena, name: str, shape: tuple[int, ...], step: int, dtype: Any = None
    ) -> Any:
        """Ask for a scratch buffer for each worker, at one step."""
        dtype = dtype or self.context.dtype
        return [arena.reserve(f"{name} {k}", shape, dtype, step, step) for k in range(self.context.workers)]

    def mask_scratch(self, arena: Arena, step: int) -> list[Buffer]:
        """Ask for what ``Map.mask_gradient`` needs, for each worker."""
        return self.per_worker(arena, "mask", (BLOCK,), step, np.bool_)

    def product(self, do: Calls, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        """Record out = a @ b, in blocks where that is faster."""
        product(do, a, b, out=out, block_shape=choose_block_shape(a, b, self.context.block_limit))

    def worker_of(self, item: int, count: int) -> int:
        """Return which worker does which of ``count`` things of about the same size."""
        return item * self.context.workers // count

    def transform_weights(
        self, do: Calls, matrix: np.ndarray, w: np.ndarray, scratch: np.ndarray, out: np.ndarray
    ) -> None:
        """Record out = m w m^T, along the two axes of the kernel, for some columns of weights.

        Both axes at once, since weights are small: with its two axes made one, out is kron(m, m) times w.

        Parameters
        ----------
        do : Calls
        matrix : array (P*P, 9)
            kron(m, m), for m (P, 3).
        w : array (3, 3, C, k)
        scratch : array of ``room_for(9, C * k)`` numbers, or more
        out : array (P, P, C, k)
        """
        C, k = w.shape[2:]
        packed = in_planes(scratch, 3, 3, C, k)
        do.copy(w, out=packed)
        small_matmul(do, matrix, reshaped(packed, 9, C * k), out=reshaped(out, -1, C * k))

    def transpose_weights(
        self,
        do: Calls,
        matrix: np.ndarray,
        channels: slice,
        scratch: np.ndarray,
        memory: np.ndarray,
        rows: int,
    ) -> np.ndarray:
        """Record what ``transform_weights`` does, for the backward pass; return an array (P, P, O, k).

        Parameters
        ----------
        do, matrix, scratch
            As above.
        channels : slice
            k channels of the input.
        memory : array of ``room_for(P*P, O * k)`` numbers, or more
            Where the result goes.
        rows : int
            Of the matrix that it will be multiplied with. With few of them a product with a transposed matrix
            takes less time than transposing it.
        """
        few = rows <= FEW_ROWS_TO_TRANSPOSE
        w = self.group.main.weight.data[:, :, channels]  # (3, 3, k, O)
        w = w if few else w.swapaxes(2, 3)
        P = math.isqrt(len(matrix))
        U = in_planes(memory, P, P, *w.shape[2:])  # (P, P, k, O) or (P, P, O, k)
        self.transform_weights(do, matrix, w, scratch, U)
        return U.swapaxes(2, 3) if few else U

    def phase(self, name: str, **settings: Any) -> Phase:
        """Return an empty phase with all workers."""
        return Phase.new(name, self.context.workers, **settings)


def is_padded_3x3(group: Group, context: PlanContext) -> bool:
    """Tell whether a group is a 3 x 3 convolution that keeps the image's size, in float32."""
    conv = group.main
    usual = conv.kernel_size == 3 and conv.stride == 1 and conv.padding == 1
    return usual and context.dtype == np.float32


def first_of(buffer: Buffer, *shape: int) -> np.ndarray:
    """Return the beginning of a scratch buffer as an array of this shape."""
    return buffer.array.reshape(-1)[: int(np.prod(shape))].reshape(shape)


def column_blocks(columns: int, width: int = COLUMNS) -> list[slice]:
    """Cut columns of a matrix into blocks of ``width``; a last one that is narrow stays narrow."""
    return [slice(c, min(c + width, columns)) for c in range(0, columns, width)]


def copy_pairs(do: Calls, pairs: Any, *, to_map: bool) -> None:
    """Record the copies between a map and a block of pixels, in either direction."""
    pair: Pair
    for pair in pairs:
        in_map, in_block = pair
        do.copy(in_block, out=in_map) if to_map else do.copy(in_map, out=in_block)


def sum_over_workers(do: Calls, parts: list[np.ndarray], out: np.ndarray) -> None:
    """Record out = the sum of what each worker has added up, always in the same order."""
    if out is not parts[0]:
        do.copy(parts[0], out=out)
    for part in parts[1:]:
        do(np.add, out, part, out=out)
