"""What the tests of CUDA kernels share: arrays of exact size on the device, full of NaN, and rounding."""

import numpy as np
import pytest

from scratchnet import functional as F

BOTH_OPERANDS = pytest.mark.parametrize("operand", ["float32", "uint16"])


class DeviceArrays:
    """NumPy arrays in and out of the device that is being tested."""

    def __init__(self, device):
        self.device = device

    def put(self, x, offset=0):
        """Copy to the device; with an offset of so many elements, so that packs of four are not aligned."""
        xp = self.device.xp
        x = np.ascontiguousarray(x)
        if not offset:
            return self.device.asarray(x)
        whole = xp.empty(x.size + offset, dtype=x.dtype)
        there = whole[offset:].reshape(x.shape)
        there[...] = self.device.asarray(x)
        return there

    def empty(self, shape, dtype="float32", offset=0):
        """Return an array that nothing has written to: floats are NaN."""
        dtype = np.dtype(dtype)
        filler = np.nan if dtype.kind == "f" else 0xAA if dtype.itemsize == 1 else 0x7FAA
        return self.put(np.full(shape, filler, dtype), offset)

    def get(self, *arrays):
        found = [self.device.to_numpy(array) for array in arrays]
        return found[0] if len(found) == 1 else found


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype="float32")


def as_operands(x, dtype):
    """Round as the kernels should: to the nearer of the two bfloat16 around x, of equals to the even one."""
    if dtype == "float32":
        return x
    lower = x.view("uint32") & 0xFFFF0000
    upper = lower + 0x10000
    with np.errstate(invalid="ignore"):
        below, above, exact = (bits.view("float32").astype("float64") for bits in (lower, upper, x))
        above = np.where(np.isinf(above), np.copysign(2.0**128, below), above)  # as if exponents went on
        to_above, to_below = np.abs(above - exact), np.abs(exact - below)
    up = ((to_above < to_below) | (to_above == to_below) & (lower >> 16 & 1 == 1)) & np.isfinite(x)
    return (np.where(up, upper, lower) >> 16).astype("uint16")


def from_operands(x):
    return x if x.dtype == np.float32 else (x.astype("uint32") << 16).view("float32")


def pooled(z, shift, mean, scale, relu):
    """Epilogue and pooling by functional/: y, the winners, and a function that gives dy back to z."""
    v = z + shift if mean is None else (z - mean) * scale + shift
    a, of_relu = F.relu_forward(v) if relu else (v, None)
    y, of_pool = F.max_pool2d_forward(a, 2)

    def backward(dy):
        da = F.max_pool2d_backward(dy, of_pool)
        return F.relu_backward(da, of_relu) if relu else da

    return y, of_pool[0], backward
