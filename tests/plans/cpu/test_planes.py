"""Arrays spread over the cache, plane by plane."""

import numpy as np
import pytest

from scratchnet.plans.cpu.planes import in_planes, room_for


@pytest.mark.parametrize("shape", [(6, 6, 16, 512), (6, 8, 1, 1), (3, 3, 5, 7), (2, 4, 32), (2, 2, 17, 3)])
def test_planes_lie_apart_for_the_cache_and_fill_no_more_than_their_room(shape):
    rows, columns, *plane = shape
    memory = np.zeros(room_for(rows * columns, int(np.prod(plane))), np.float32)
    planes = in_planes(memory, *shape)
    assert planes.shape == shape
    planes[...] = np.arange(1, planes.size + 1).reshape(shape)
    assert np.count_nonzero(memory) == planes.size, "no two numbers share a place"
    lines, rest = divmod(planes.strides[1], 64)
    assert rest == 0 and lines % 2 == 1 and planes.strides[0] == columns * planes.strides[1]
    with pytest.raises(ValueError, match="reshape"):
        in_planes(memory[:-1], *shape)
