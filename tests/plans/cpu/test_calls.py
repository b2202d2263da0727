"""Array calls that are recorded first and run later."""

from __future__ import annotations

import numpy as np

from scratchnet.plans.cpu.calls import Calls, cache_sized
from scratchnet.plans.cpu.elementwise import relu_


def test_rectify_and_blocks_cover_everything():
    x = np.random.default_rng(0).standard_normal((3, 50_000)).astype(np.float32)
    expected, do = np.maximum(x, 0), Calls()
    relu_(do, x)
    do.run()
    np.testing.assert_array_equal(x, expected)
    assert sum(piece.size for (piece,) in cache_sized(x)) == x.size
