"""The stand-in for CuPy refuses what it must: otherwise the tests that use it prove nothing.

What CuPy itself refuses is checked on both, so that a machine with a GPU shows where the stand-in is wrong.
"""

import operator
import sys

import numpy as np
import pytest

from tests.fakes import cuda_runtime, cupy_stand_in

HOST = np.ones((2, 3), "float32")

REFUSED = {
    "np.asarray": lambda cp, x: np.asarray(x),
    "np.array of 0-d arrays": lambda cp, x: np.array([x.sum(), x.sum()]),
    "assignment to a host array": lambda cp, x: operator.setitem(HOST.copy(), ..., x),
    "device + host": lambda cp, x: x + HOST,
    "host + device": lambda cp, x: HOST + x,
    "device += host": lambda cp, x: operator.iadd(x, HOST),
    "host += device": lambda cp, x: operator.iadd(HOST.copy(), x),
    "device @ host": lambda cp, x: x @ HOST.T,
    "host @ device": lambda cp, x: HOST @ x.T,
    "device == host": lambda cp, x: x == HOST,
    "device + list": lambda cp, x: x + [1.0, 2.0, 3.0],
    "maximum with host": lambda cp, x: cp.maximum(x, HOST),
    "np.maximum with both": lambda cp, x: np.maximum(x, HOST),
    "where with host": lambda cp, x: cp.where(x > 1, x, HOST),
    "matmul of host arrays": lambda cp, x: cp.matmul(HOST, HOST.T),
    "concatenate with host": lambda cp, x: cp.concatenate([x, HOST]),
    "np.concatenate with both": lambda cp, x: np.concatenate([x, HOST]),
    "out= host, ufunc": lambda cp, x: cp.add(x, x, out=HOST.copy()),
    "out= host, NumPy's ufunc": lambda cp, x: np.add(x, x, out=HOST.copy()),
    "out= host, matmul": lambda cp, x: cp.matmul(x, x.T, out=np.empty((2, 2), "float32")),
    "out= host, reduction": lambda cp, x: x.sum(axis=0, out=np.empty(3, "float32")),
    "x[...] = host": lambda cp, x: operator.setitem(x, ..., HOST),
    "x[0] = host row": lambda cp, x: operator.setitem(x, 0, HOST[0]),
    "zeros_like of host": lambda cp, x: cp.zeros_like(HOST).sum() + HOST,
    "dtype object": lambda cp, x: cp.empty(3, dtype=object),
    "dtype longdouble": lambda cp, x: cp.asarray(np.ones(3, "longdouble")),
    "a string": lambda cp, x: cp.asarray(np.array(["a"])),
    "where= of a reduction": lambda cp, x: x.sum(where=x > 1),
    "initial= of a reduction": lambda cp, x: cp.max(x, initial=0.0),
    "a 0-d array as an index": lambda cp, x: range(x.sum().astype("int64")),
    "iteration over a 0-d array": lambda cp, x: list(x.sum()),
    "a name that only NumPy has": lambda cp, x: cp.einsum_path,
    "errstate": lambda cp, x: cp.errstate,
    "attributes of NumPy arrays": lambda cp, x: x.__array_interface__,
}
STRICTER = {
    "sum of a host array": lambda cp, x: cp.sum(HOST),  # CuPy calls the array's own method
    "index by a host array": lambda cp, x: x[np.array([0, 1])],
    "index by a list": lambda cp, x: x[[0, 1]],
    "assignment at a host index": lambda cp, x: operator.setitem(x, np.array([0]), 0.0),
    "random numbers on the device": lambda cp, x: cp.random,
}
REFUSALS = (TypeError, ValueError, AttributeError)


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(device, name):
    x = device.asarray(HOST)
    with pytest.raises(REFUSALS):
        REFUSED[name](device.xp, x)


@pytest.mark.parametrize("name", STRICTER)
def test_stand_in_refuses_more(stand_in, name):
    with pytest.raises(REFUSALS):
        STRICTER[name](stand_in, stand_in.asarray(HOST))


def test_what_is_refused_changes_nothing(device):
    x = device.asarray(HOST)
    with pytest.raises(TypeError):
        x += HOST
    with pytest.raises(ValueError, match="Non-scalar numpy.ndarray cannot be used for assignment"):
        x[...] = 2 * HOST
    np.testing.assert_array_equal(device.to_numpy(x), HOST)


def test_reductions_and_elements_stay_on_the_device(device):
    x = device.asarray(HOST)
    for value in (x.sum(), x.mean(), x.max(), x[0, 0], device.xp.sum(x), np.sum(x), (x > 0).all()):
        assert isinstance(value, device.xp.ndarray)
        assert value.shape == ()
        assert float(value) in (1.0, 6.0)


def test_numpy_functions_find_their_way_to_the_device(device):
    x = device.asarray(HOST)
    for y in (np.add(x, 1), np.maximum(x, 2), 1 + x, np.float32(1) + x, np.transpose(x), np.stack([x, x])):
        assert isinstance(y, device.xp.ndarray)
        assert y.dtype == np.float32


def test_views_share_memory(device):
    x = device.asarray(HOST)
    x[0][1:] = 5.0
    x.reshape(-1)[0] = 7.0
    x.T[0, 1] = 9.0
    np.testing.assert_array_equal(device.to_numpy(x), [[7, 5, 5], [9, 1, 1]])


def test_out_and_in_place_return_the_same_array(device):
    x = device.asarray(HOST)
    out = device.xp.empty((2, 2), "float32")
    assert device.xp.matmul(x, x.T, out=out) is out
    assert device.xp.add(x, x, out=x) is x
    y = x
    y += 1
    assert y is x
    np.testing.assert_array_equal(device.to_numpy(out), 3.0)
    np.testing.assert_array_equal(device.to_numpy(x), 3.0)


def test_to_and_from_the_device(device):
    x = device.asarray(HOST)
    y = device.to_numpy(x)
    assert type(y) is np.ndarray
    assert not np.shares_memory(y, HOST)
    y[...] = 0.0
    np.testing.assert_array_equal(device.to_numpy(x), HOST)
    assert device.asarray(x) is x
    assert device.asarray(x, dtype="float64").dtype == np.float64


@pytest.mark.parametrize(
    "read",
    [
        float,
        int,
        bool,
        str,
        repr,
        "{:.1f}".format,
        lambda x: x.item(),
        lambda x: x.get(),
        lambda x: x.tolist(),
    ],
)
def test_reading_a_value_is_counted(stand_in, read):
    x = stand_in.ones(())
    with cuda_runtime.counted() as traffic:
        read(x)
    assert traffic.reads == 1


def test_a_boolean_mask_is_counted_where_it_sizes_a_result(stand_in):
    x = stand_in.asarray(HOST)
    with cuda_runtime.counted() as traffic:
        x[x > 0] = 2.0
    assert traffic.reads == 0
    with cuda_runtime.counted() as traffic:
        x[x > 0]
        stand_in.nonzero(x)
        stand_in.where(x > 1)
    assert traffic.reads == 3


def test_copies_to_the_device_are_counted(stand_in):
    with cuda_runtime.counted() as traffic:
        x = stand_in.asarray(HOST)
        stand_in.asarray(x)
        x + 1
    assert (traffic.uploads, traffic.reads) == (1, 0)


def test_windows_wait_for_the_device_and_strides_do_not(stand_in):
    x = stand_in.asarray(HOST)
    with cuda_runtime.counted() as traffic:
        stand_in.lib.stride_tricks.as_strided(x, (2, 2, 2), (12, 4, 4))
    assert (traffic.uploads, traffic.reads) == (0, 0)
    with cuda_runtime.counted() as traffic:
        stand_in.lib.stride_tricks.sliding_window_view(x, (2,), axis=(1,))
    assert (traffic.uploads, traffic.reads) == (1, 2)


def test_is_only_there_where_it_is_installed():
    before = sys.modules.get("cupy")
    with cupy_stand_in.installed() as cupy:
        assert sys.modules["cupy"] is cupy
    assert sys.modules.get("cupy") is before
    assert before is not cupy
