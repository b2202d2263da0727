"""Arrays that a kernel would read as something else are refused."""

import pytest

from scratchnet.plans.cuda.launch.conv import im2col
from scratchnet.plans.cuda.launch.epilogue import epilogue
from scratchnet.plans.cuda.launch.mask import mask
from scratchnet.plans.cuda.launch.operands import cast
from scratchnet.plans.cuda.launch.sums import finish_sums


@pytest.mark.parametrize(
    "call, said",
    [
        (
            lambda k: im2col(k.empty((1, 4, 4, 3)), k.empty((16, 26)), 3, 1, 1),
            r"\(16, 27\).*\(16, 26\)",
        ),
        (lambda k: im2col(k.empty((1, 4, 4, 3), "float64"), k.empty((16, 27)), 3, 1, 1), "float32"),
        (lambda k: mask(k.empty((8, 4)).T, None, None), "contiguous"),
        (lambda k: epilogue(k.empty((2, 4)), k.empty((2, 4)), mean=k.empty(4)), "together"),
        (lambda k: cast(k.empty(4), k.empty(5, "uint16")), "expected 4 operands"),
        (lambda k: finish_sums(k.empty((3, 4)), k.empty(5)), r"\(4,\)"),
    ],
)
def test_wrong_arrays_are_refused(k, call, said):
    with pytest.raises(ValueError, match=said):
        call(k)
