"""How maps lie in memory: what goes in comes out."""

from __future__ import annotations

import numpy as np
import pytest

from scratchnet.plans.cpu import layouts
from scratchnet.plans.cpu.calls import split_evenly
from scratchnet.plans.memory import Arena


@pytest.mark.parametrize("layout", ["plain", "pixels", "tiles4", "tiles6"])
@pytest.mark.parametrize("shape", [(5, 8, 8, 3), (3, 9, 6, 2), (4, 2, 2, 5), (1, 13, 15, 1)])
def test_every_layout_takes_and_returns_a_map(layout, shape):
    chunks = [r for r in split_evenly(shape[0], 3) if r]
    grid, arena = layouts.LAYOUTS[layout](shape, chunks, "float32"), Arena()
    grid.reserve(arena, "map", 0, 0)
    grid.reserve(arena, "grad", 0, 0, grad=True)
    arena.assign_offsets()
    arena.bind(np.full(arena.size, 255, np.uint8))
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    grid.put(x)
    block = layouts.as_region(np.zeros_like(x))
    for own, part in grid.pairs(range(shape[0]), 0, block):
        part[...] = own
    np.testing.assert_array_equal(block, layouts.as_region(x))
    for own, part in grid.pairs(range(shape[0]), 0, layouts.as_region(x), grad=True):
        own[...] = part
    np.testing.assert_array_equal(grid.take_gradient(), x)


@pytest.mark.parametrize("S", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("layout", ["plain", "pixels", "tiles4", "tiles6"])
def test_blocks_of_tiles_find_their_pixels(layout, S):
    N, H, W, C = 4, 11, 9, 2
    grid, arena = layouts.LAYOUTS[layout]((N, H, W, C), [range(0, 3), range(3, 4)], "float32"), Arena()
    grid.reserve(arena, "map", 0, 0)
    arena.assign_offsets()
    arena.bind(np.zeros(arena.size, np.uint8))
    images, row, R, T = range(1, 4), 4, 5, 4
    block = np.random.default_rng(0).standard_normal((R, S, S, T, len(images), C)).astype(np.float32)
    for own, part in grid.pairs(images, row, block):
        own[...] = part
    got = np.zeros((N, H, W, C), np.float32)
    for own, part in grid.pairs(range(N), 0, layouts.as_region(got)):
        part[...] = own
    for r, i, t, j in np.ndindex(R, S, T, S):
        h, w = row + S * r + i, S * t + j
        if h < H and w < W:
            np.testing.assert_array_equal(got[1:4, h, w], block[r, i, j, t])
            got[1:4, h, w] = 0
    assert not got.any()
