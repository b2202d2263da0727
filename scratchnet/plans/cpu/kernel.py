"""What every algorithm of this folder is: a kernel, which turns one map into the next, and gradients back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchnet.plans import kernel
from scratchnet.plans.cpu.blocks import product
from scratchnet.plans.cpu.calls import CACHE_ELEMENTS, Calls, Phase, split_evenly
from scratchnet.plans.cpu.layouts import Map, Pair
from scratchnet.plans.cpu.measuring import choose_block_shape
from scratchnet.plans.kernel import Group
from scratchnet.plans.memory import Arena, Buffer


@dataclass(frozen=True)
class PlanContext(kernel.PlanContext):
    """What all kernels of a plan on the CPU have in common."""

    workers: int  # how many compute
    block_limit: int  # the largest M * N * K of a small matrix product, see ``blocks.py``


class Kernel(kernel.Kernel):
    """One group of layers, on given maps.

    ``output.grad`` is with respect to what goes into the group's activation: it was masked where it was
    written (``masking.py``).

    First ``reserve`` asks for memory; when it is there, ``record_weights``, ``record_forward`` and
    ``record_backward`` return the phases to run. In between nothing is computed. For a layer that computes
    each image by itself, from a plain map, ``by_images.py`` has a base that is simpler.

    Parameters
    ----------
    group : Group
        The layers.
    source, target : Map
        Its ``input`` and ``output``; the latter may have any layout, unless ``output_layout`` says which.
    context : PlanContext
    first : bool
        Whether the gradient of its input is rarely asked for: below it nothing is trained.

    Attributes
    ----------
    input_layout : str or None
        The layout that it reads (``layouts.py``); None if it reads any.
    output_layout : str or None
        The layout that it writes; None if it writes any.
    reads_border, writes_whole_tiles : bool
        What it reads and writes of a map of tiles, see ``padding.py``.
    keeps_weights : bool
        Whether a plan for inference has room to keep them in that form from one forward pass to the next.
    activation : Elementwise or None
        What computes the group's activation.
    masks : bool
        Whether it masks ``input.grad``: recording sets it. Where a kernel does not, the plan does after it.

    Examples
    --------
    >>> from scratchnet import layers, plans
    >>> plan = plans.compile(layers.Linear(3, 2), (4, 3), training=True)
    >>> [(kernel.algorithm, kernel.group.title) for kernel in plan.kernels]
    [('product', 'Linear')]
    """

    device = "cpu"
    input_layout: str | None = "plain"
    output_layout: str | None = None
    reads_border = False
    writes_whole_tiles = False
    keeps_weights = False
    masks = False
    context: PlanContext

    def __init__(self, group: Group, source: Map, target: Map, context: PlanContext, first: bool = False):
        super().__init__(group, source, target, context, first)
        kind = self.group.activation_kernel
        self.activation: Any = None if kind is None else kind(self.group.activation)

    @property
    def weight_bytes(self) -> int:
        """How many bytes it takes to keep transformed weights; 0 if it transforms none."""
        return 0

    def record_weights(self) -> list[Phase]:
        """Return what computes all that is kept and follows from the parameters; run when they change."""
        return []

    @abstractmethod
    def record_forward(self) -> list[Phase]:
        """Return the forward pass: input.data to output.data."""

    @abstractmethod
    def record_backward(self) -> list[Phase]:
        """Return the backward pass: output.grad to input.grad, and the gradients of the parameters."""

    # Helpers

    def per_worker(
        self, arena: Arena, name: str, shape: tuple[int, ...], step: int, dtype: Any = None
    ) -> list[Buffer]:
        """Ask for a scratch buffer for each worker, at one step."""
        dtype = dtype or self.context.dtype
        return [arena.reserve(f"{name} {k}", shape, dtype, step, step) for k in range(self.context.workers)]

    def per_pass(
        self, arena: Arena, shapes: Mapping[str, tuple[int, ...]], forward: int, backward: int | None
    ) -> list[dict[str, list[Buffer]]]:
        """Ask for scratch buffers of these shapes for each worker, for the forward pass and for backward."""
        return [
            {name: self.per_worker(arena, name, shape, step) for name, shape in shapes.items()}
            for step in (forward, backward)
            if step is not None
        ]

    def reserve_mask(self, arena: Arena, step: int | None) -> None:
        """Ask for what ``mask_gradient`` needs at a step; None if there is no backward pass."""
        self._mask_scratch: list[Buffer] = []
        activation = self.input.mask.activation
        if step is not None and activation is not None:
            dtype = activation.scratch_dtype
            self._mask_scratch = self.per_worker(arena, "mask", (CACHE_ELEMENTS,), step, dtype)

    def mask_gradient(self, do: Calls, worker: int, gradient: np.ndarray, data: np.ndarray) -> None:
        """Record the masking of a view of ``input.grad``, given the same view of ``input.data``."""
        self.masks = True
        if self._mask_scratch:
            self.input.mask.record(do, gradient, data, self._mask_scratch[worker].array)

    def product(self, do: Calls, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        """Record out = a @ b, in blocks where that is faster."""
        product(do, a, b, out=out, block_shape=choose_block_shape(a, b, self.context.block_limit))

    def dealt(self, blocks: Sequence[slice]) -> Iterator[tuple[int, int, slice]]:
        """Yield the worker that computes each block, its index, and the block; all take about as long."""
        for b, block in enumerate(blocks):
            yield b * self.context.workers // len(blocks), b, block

    def shares(self, count: int) -> Iterator[tuple[int, slice]]:
        """Yield each worker that gets any of ``count`` items, and which."""
        for worker, items in enumerate(split_evenly(count, self.context.workers)):
            if items:
                yield worker, slice(items.start, items.stop)

    def phase(self, name: str, **settings: Any) -> Phase:
        """Return an empty phase with all workers."""
        return Phase(name, [Calls() for _ in range(self.context.workers)], **settings)


def first_of(buffer: Buffer, *shape: int) -> np.ndarray:
    """Return the beginning of a scratch buffer as an array of this shape."""
    return buffer.array.reshape(-1)[: int(np.prod(shape))].reshape(shape)


def copy_pairs(do: Calls, pairs: Iterable[Pair], *, to_map: bool) -> None:
    """Record the copies between a map and a region of pixels, in either direction."""
    for in_map, in_region in pairs:
        do.copy(in_region, out=in_map) if to_map else do.copy(in_map, out=in_region)


def sum_over_workers(do: Calls, parts: list[np.ndarray], out: np.ndarray) -> None:
    """Record out = the sum of what each worker has added up, always in the same order."""
    if out is not parts[0]:
        do.copy(parts[0], out=out)
    for part in parts[1:]:
        do(np.add, out, part, out=out)
