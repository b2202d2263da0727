"""The base of kernels that take a plain map some images at a time, and may write any layout."""

from __future__ import annotations

from typing import Any, NamedTuple

from scratchnet.backend import Array
from scratchnet.plans.cpu.calls import CACHE_ELEMENTS, Calls, Phase, in_steps, split_evenly
from scratchnet.plans.cpu.kernel import Kernel, copy_pairs, first_of
from scratchnet.plans.cpu.layouts import Plain, as_region
from scratchnet.plans.memory import Arena, Buffer


class Images(NamedTuple):
    """Some images, and the worker that computes them: x (n, H, W, C) and y (n, OH, OW, O)."""

    worker: int
    n: slice
    x: Array
    y: Array
    dx: Any = None
    dy: Any = None


class ByImages(Kernel):
    """A layer that computes each image by itself.

    A subclass records two methods for some images, with arrays as the layers see them. Where the output has
    another layout, they work on scratch, and the copies are made here; so are the calls that mask dx.
    """

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        x, y = self.input, self.output
        n = max(1, CACHE_ELEMENTS // (x.H * x.W * x.C))
        self.images = [in_steps(share, n) for share in split_evenly(x.N, self.context.workers)]
        self.block_shape = min(n, x.N), y.H, y.W, y.C  # of the output

    def reserve(self, arena: Arena, forward: int, backward: int | None) -> None:  # noqa: D102
        self._scratch: dict[str, list[Buffer]] = {}
        if not isinstance(self.output, Plain):
            self._scratch["y"] = self.per_worker(arena, "y", self.block_shape, forward)
            if backward is not None:
                for name in ("y again", "dy"):
                    self._scratch[name] = self.per_worker(arena, name, self.block_shape, backward)
        self.reserve_mask(arena, backward)

    def record_images(self, calls: Calls, images: Images) -> None:
        """Record y, given x."""
        raise NotImplementedError

    def record_images_backward(self, calls: Calls, images: Images) -> None:
        """Record dx, given dy, which may be overwritten; y is there if the kernel ``keeps_output``."""
        raise NotImplementedError

    def record_forward(self) -> list[Phase]:  # noqa: D102
        phase = self.phase("images")
        for worker, calls in enumerate(phase.workers):
            for some in self.images[worker]:
                n, y = slice(some.start, some.stop), self._output(worker, some, "y")
                self.record_images(calls, Images(worker, n, self.input.data[n], y))
                if self._scratch:
                    copy_pairs(calls, self.output.pairs(some, 0, as_region(y)), to_map=True)
        return [phase]

    def record_backward(self) -> list[Phase]:  # noqa: D102
        phase = self.phase("dx", for_input_gradient=self.first)
        for worker, calls in enumerate(phase.workers):
            for some in self.images[worker]:
                n, y = slice(some.start, some.stop), self._output(worker, some, "y again")
                dy = self._output(worker, some, "dy", grad=True)
                if self._scratch and self.keeps_output:
                    copy_pairs(calls, self.output.pairs(some, 0, as_region(y)), to_map=False)
                if self._scratch:
                    copy_pairs(calls, self.output.pairs(some, 0, as_region(dy), grad=True), to_map=False)
                images = Images(worker, n, self.input.data[n], y, self.input.grad[n], dy)
                self.record_images_backward(calls, images)
                self.mask_gradient(calls, worker, images.dx, images.x)
        return [phase]

    def _output(self, worker: int, images: range, name: str, *, grad: bool = False) -> Array:
        """Return where the output of some images, or its gradient, is computed: in the map, or in scratch."""
        if self._scratch:
            return first_of(self._scratch[name][worker], len(images), *self.block_shape[1:])
        return (self.output.grad if grad else self.output.data)[images.start : images.stop]
