"""What every algorithm of this folder is: a kernel, which turns one map into the next, and gradients back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchnet.plans.cpu.blocks import product
from scratchnet.plans.cpu.calls import BLOCK, Calls, Phase, split_evenly
from scratchnet.plans.cpu.layouts import Map, Pair, Tiles
from scratchnet.plans.cpu.measuring import choose_block_shape
from scratchnet.plans.grouping import Group
from scratchnet.plans.memory import Arena, Buffer


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
    keeps_weights = False  # whether transformed weights are kept from one forward pass to the next

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

    @property
    def weight_bytes(self) -> int:
        """How many bytes it takes to keep transformed weights; 0 if it transforms none."""
        return 0

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

    def phase(self, name: str, **settings: Any) -> Phase:
        """Return an empty phase with all workers."""
        return Phase.new(name, self.context.workers, **settings)


def first_of(buffer: Buffer, *shape: int) -> np.ndarray:
    """Return the beginning of a scratch buffer as an array of this shape."""
    return buffer.array.reshape(-1)[: int(np.prod(shape))].reshape(shape)


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
