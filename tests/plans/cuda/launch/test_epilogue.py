"""What follows a product: bias or batch normalisation, ReLU, pooling; and back through pooling."""

import numpy as np
import pytest

from scratchnet import functional as F
from scratchnet.plans.cuda.launch.epilogue import epilogue, epilogue_pool
from scratchnet.plans.cuda.launch.mask import unpool
from scratchnet.plans.cuda.launch.sums import finish_sums, sums_shape
from tests.fakes.device_arrays import BOTH_OPERANDS, as_operands, from_operands, numbers, pooled


def check_epilogue(k, shape, affine=False, relu=True, offset=0):
    z, C = numbers(*shape), shape[-1]
    shift, mean, scale = (numbers(C, seed=s) for s in (1, 2, 3))
    y = k.empty(shape, offset=offset)
    extra = {"mean": k.put(mean), "scale": k.put(scale)} if affine else {}
    epilogue(k.put(z), y, k.put(shift), relu=relu, **extra)
    expected = (z - mean) * scale + shift if affine else z + shift
    expected = np.maximum(expected, 0) if relu else expected
    np.testing.assert_allclose(k.get(y), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(7, 3), (300, 8), (2, 3, 5, 64), (3, 1028), (1, 1)])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_epilogue(k, shape, affine, relu):
    check_epilogue(k, shape, affine, relu)


def test_epilogue_where_packs_are_not_aligned(k):
    check_epilogue(k, (9, 8), offset=1)


def test_epilogue_in_place_and_without_a_shift(k):
    z = k.put(numbers(5, 12))
    epilogue(z, z)
    np.testing.assert_array_equal(k.get(z), np.maximum(numbers(5, 12), 0))


def test_a_nan_passes_relu_and_pooling(k):
    """So that the loss shows it. fmaxf(NaN, 0) is 0."""
    for place in range(4):
        z = numbers(1, 2, 2, 4)
        z[0, place // 2, place % 2, 1] = np.nan
        y, pooled, code = k.empty(z.shape), k.empty((1, 1, 1, 4)), k.empty((1, 1, 1, 4), "uint8")
        epilogue(k.put(z), y)
        epilogue_pool(k.put(z), pooled, code)
        np.testing.assert_array_equal(np.isnan(k.get(y)), np.isnan(z))
        assert np.isnan(k.get(pooled)).ravel().tolist() == [False, True, False, False]


SIZES = [(2, 4, 4, 8), (1, 5, 7, 3), (3, 2, 3, 4), (1, 6, 4, 132), (2, 3, 3, 1)]


def check_epilogue_pool(k, shape, affine=False, relu=True):
    N, H, W, C = shape
    # Small whole numbers, so that many windows have ties; scales that turn the order round in some channels.
    z = np.random.default_rng(0).integers(-3, 3, shape).astype("float32")
    shift = np.random.default_rng(1).integers(-1, 2, C).astype("float32")
    mean, scale = (np.ones(C, "float32"), np.resize(np.float32([-2, 1, 0.5]), C)) if affine else (None, None)
    expected, winner, backward = pooled(z, shift, mean, scale, relu)
    y, code = k.empty((N, H // 2, W // 2, C)), k.empty((N, H // 2, W // 2, C), "uint8")
    extra = {"mean": k.put(mean), "scale": k.put(scale)} if affine else {}
    epilogue_pool(k.put(z), y, code, k.put(shift), relu=relu, **extra)
    np.testing.assert_array_equal(k.get(y), expected)
    np.testing.assert_array_equal(k.get(code), np.where(relu & (expected <= 0), 4, winner))
    return k.get(code), backward


def check_unpool(k, shape, relu=True, operand="float32"):
    code, backward = check_epilogue_pool(k, shape, relu=relu)
    dy = numbers(*code.shape, seed=4)
    expected = backward(dy)
    dz = k.empty(shape, operand)
    partial, dbias = k.empty(sums_shape(code.size // shape[3], shape[3])), k.empty(shape[3])
    unpool(k.put(dy), k.put(code), dz, partial)
    finish_sums(partial, dbias)
    found = from_operands(k.get(dz))
    np.testing.assert_array_equal(found, from_operands(as_operands(expected, operand)))
    np.testing.assert_allclose(k.get(dbias), expected.sum(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_pooling_with_ties(k, shape, relu, affine):
    check_epilogue_pool(k, shape, affine, relu)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("relu", [False, True])
@BOTH_OPERANDS
def test_back_through_pooling_with_ties(k, shape, relu, operand):
    check_unpool(k, shape, relu, operand)


def test_pooling_without_codes_as_in_inference(k):
    z, y = numbers(2, 4, 4, 8), k.empty((2, 2, 2, 8))
    epilogue_pool(k.put(z), y, None, relu=False)
    np.testing.assert_array_equal(k.get(y), F.max_pool2d_forward(z, 2)[0])


FAULTS = {
    "a tie in pooling goes to the last": (
        "epilogue.cu", "candidate > best.at[i]",
        "candidate >= best.at[i]", lambda k: check_epilogue_pool(k, (2, 4, 4, 8)),
    ),
    "odd rows keep what was there": (
        "mask.cu", "int down = oh == OH - 1 ? H - 2 * oh : 2",
        "int down = 2", lambda k: check_unpool(k, (1, 5, 7, 3)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(plant, fault):
    plant(*FAULTS[fault])
