"""Where Winograd's algorithm is used, and in which order of work."""

from __future__ import annotations

from typing import Any

from scratchnet.plans.cpu.winograd.base import PLANES, WinogradBase
from scratchnet.plans.cpu.winograd.by_phases import ByPhases
from scratchnet.plans.cpu.winograd.by_rows import ByRows
from scratchnet.plans.cpu.winograd.derivation import TILE, WINDOW
from scratchnet.plans.kernel import Group, PlanContext

# In images smaller than FEWEST_PIXELS most of a tile's outputs are not in the image; with fewer channels than
# FEWEST_CHANNELS the transforms are most of the work. And with fewer tiles than FEWEST_TILES reading the
# weights is most of the work: for inference Winograd's algorithm makes them four times as large, where
# training has to transform them at each step in any case.
FEWEST_PIXELS, FEWEST_CHANNELS, FEWEST_TILES = 3, 4, 9
# By rows, transformed weights may have this many bytes, so that they stay in the caches from part to part.
LARGEST_WEIGHTS = 3 << 20
# By phases, dV (6 x 8 numbers per tile and channel) and dM (6 x 6) of the whole batch may have this many
# bytes; in training V (6 x 6) is kept besides. (Twice the batch would take twice the memory.)
LARGEST_BATCH = 160 << 20


class Winograd(WinogradBase):
    """3 x 3 convolution with stride 1 and padding 1, by rows or by phases."""

    @classmethod
    def suits(cls, groups: list[Group], i: int, context: PlanContext) -> bool:  # noqa: D102
        group = groups[i]
        return (
            cls.supports(groups, i, context)
            and min(group.input_shape[1:3]) >= FEWEST_PIXELS
            and min(group.input_shape[3], group.output_shape[3]) >= FEWEST_CHANNELS
            and (context.training or _tiles(group) >= FEWEST_TILES)
        )

    @classmethod
    def build(cls, group: Group, *arguments: Any, **settings: Any) -> WinogradBase:
        """Return the kernel: by rows while the weights stay in the cache, or where V would be too large."""
        C, O = group.input_shape[3], group.output_shape[3]
        weights = 4 * PLANES * C * O
        batch = 4 * _tiles(group) * (WINDOW * (WINDOW + 2) * C + PLANES * O)
        order = ByRows if weights <= LARGEST_WEIGHTS or batch > LARGEST_BATCH else ByPhases
        return order(group, *arguments, **settings)


def _tiles(group: Group) -> int:
    """Return how many tiles cover all images."""
    N, H, W, _ = group.input_shape
    return N * -(-H // TILE) * -(-W // TILE)
