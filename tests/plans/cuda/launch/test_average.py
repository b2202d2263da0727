"""Global average pooling."""

import numpy as np
import pytest

from scratchnet import functional as F
from scratchnet.plans.cuda.launch.average import average, average_backward
from tests.fakes.device_arrays import numbers


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 1), (3, 2, 2, 300)])
def test_average(k, shape):
    x = numbers(*shape)
    expected, cache = F.global_avg_pool2d_forward(x)
    y, dx, dy = k.empty(expected.shape), k.empty(shape), numbers(*expected.shape, seed=1)
    average(k.put(x), y)
    average_backward(k.put(dy), dx)
    np.testing.assert_allclose(k.get(y), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(k.get(dx), F.global_avg_pool2d_backward(dy, cache), rtol=1e-6)
