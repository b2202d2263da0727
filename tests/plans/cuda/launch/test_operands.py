"""Rounding to operands."""

import numpy as np
import pytest

from scratchnet.plans.cuda.launch.operands import cast
from tests.fakes.device_arrays import BOTH_OPERANDS, as_operands, from_operands, numbers


@pytest.mark.parametrize("size", [1, 7, 8, 5000])
@BOTH_OPERANDS
def test_cast(k, size, operand):
    x = numbers(size) * 3
    out = k.empty(size, operand)
    cast(k.put(x), out)
    np.testing.assert_array_equal(k.get(out), as_operands(x, operand))


def test_cast_of_ties_infinities_and_the_smallest_and_largest_numbers(k):
    bits = [
        0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0, 0x80000000, 1, 0x7F800000, 0xFF800000, 0x7F7FFFFF,
    ]  # fmt: skip
    x = np.array(bits, "uint32").view("float32")
    out = k.empty(len(x), "uint16")
    cast(k.put(x), out)
    assert [hex(b) for b in k.get(out)] == [
        hex(b) for b in (0x3F80, 0x3F82, 0x3F81, 0x3F80, 0, 0x8000, 0, 0x7F80, 0xFF80, 0x7F80)
    ]
    np.testing.assert_array_equal(k.get(out), as_operands(x, "uint16"))


def test_cast_keeps_every_nan(k):
    x = np.array([0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0xFF800001], "uint32").view("float32")
    out = k.empty(4, "uint16")
    cast(k.put(x), out)
    assert np.isnan(from_operands(k.get(out))).all()
