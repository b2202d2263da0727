"""Back through ReLU and dropout, and the sums of a bias's gradient."""

import numpy as np
import pytest

from scratchnet.plans.cuda.launch.mask import mask
from scratchnet.plans.cuda.launch.sums import finish_sums, sums_shape
from tests.fakes import cuda_emulator
from tests.fakes.device_arrays import as_operands, from_operands, numbers


def check_mask(k, rows, C, relu=True, operand="float32", factor=1.0):
    dy, y = numbers(rows, C), np.maximum(numbers(rows, C, seed=1), 0)
    expected = (dy * (y > 0) if relu else dy) * np.float32(factor)
    dz, partial, sums = k.empty((rows, C), operand), k.empty(sums_shape(rows, C)), k.empty(C)
    mask(k.put(dy), k.put(y) if relu else None, dz, partial, factor=factor)
    finish_sums(partial, sums)
    found = from_operands(k.get(dz))
    np.testing.assert_array_equal(found, from_operands(as_operands(expected, operand)))
    exact = expected.astype("float64").sum(axis=0)
    np.testing.assert_allclose(k.get(sums), exact, rtol=1e-5, atol=2e-7 * np.abs(expected).sum(axis=0).max())


@pytest.mark.parametrize("rows, C", [(1, 1), (5, 3), (64, 8), (700, 12), (3000, 4), (131, 1028)])
@pytest.mark.parametrize("relu, operand", [(True, "float32"), (False, "float32"), (True, "uint16")])
def test_mask_and_column_sums(k, rows, C, relu, operand):
    check_mask(k, rows, C, relu, operand)


def test_mask_after_dropout(k):
    check_mask(k, 9, 8, factor=2.0)


def test_mask_in_place_without_sums_and_sums_alone(k):
    dy, y = numbers(70, 8), numbers(70, 8, seed=1)
    there = k.put(dy)
    mask(there, k.put(y), there)
    np.testing.assert_array_equal(k.get(there), dy * (y > 0))
    partial, sums = k.empty(sums_shape(70, 8)), k.empty(8)
    mask(k.put(dy), None, None, partial)
    finish_sums(partial, sums)
    np.testing.assert_allclose(k.get(sums), dy.sum(axis=0), rtol=1e-4, atol=1e-5)


def test_sums_of_chunks_are_those_of_the_batch(k):
    dy = numbers(6, 64, 8)
    partial, sums = k.empty((3 * sums_shape(128, 8)[0], 8)), k.empty(8)
    parts = len(partial) // 3
    for i in range(3):
        there = k.put(dy[2 * i : 2 * i + 2])
        mask(there, None, None, partial[i * parts : (i + 1) * parts])
    finish_sums(partial, sums)
    np.testing.assert_allclose(k.get(sums), dy.sum(axis=(0, 1)), rtol=1e-4, atol=1e-5)


def test_sums_have_the_same_bits_in_whatever_order_warps_run(k):
    dy, found = numbers(3000, 12), set()
    for seed in range(4):
        cuda_emulator.order.set(seed)
        partial, sums = k.empty(sums_shape(3000, 12)), k.empty(12)
        mask(k.put(dy), None, None, partial)
        finish_sums(partial, sums)
        found.add(k.get(sums).tobytes())
    assert len(found) == 1


FAULTS = {
    "barrier missing before threads of a block are added": (
        "sums.cuh", "        __syncthreads();\n        if (threadIdx.y < half)",
        "        if (threadIdx.y < half)", lambda k: check_mask(k, 700, 12),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(plant, fault):
    plant(*FAULTS[fault])
