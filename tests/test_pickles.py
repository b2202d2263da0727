"""Pickles are read as data: what could run or fill the memory comes out inert, or is refused."""

import os
import pickle
import pickletools
import random
import resource
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scratchnet import pickles
from scratchnet.pickles import Call, Name, Persistent, PickleError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.binary(), inner),
    max_leaves=20,
)


@given(PLAIN, st.sampled_from([2, 3, 4, 5]))
def test_plain_values_are_those_that_were_pickled(value, protocol):
    content = pickle.dumps(value, protocol)
    assume(not any(op.name == "GLOBAL" for op, _, _ in pickletools.genops(content)))
    assert pickles.load(content) == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i4", "?"])
@pytest.mark.parametrize("order", "CF")
def test_arrays_of_whole_numbers_are_those_that_were_pickled(protocol, dtype, order):
    array = np.asarray(np.arange(24).reshape(2, 3, 4) % 2 if dtype == "?" else np.arange(24).reshape(2, 3, 4))
    array = np.asarray(array.astype(dtype), order=order)
    read = pickles.to_array(pickles.load(pickle.dumps(array, protocol)))
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype


class Reduced:
    def __init__(self, *result):
        self.result = result

    def __reduce__(self):
        return self.result


def test_what_would_run_is_recorded_and_not_run(tmp_path):
    mark = tmp_path / "mark"
    read = pickles.load(pickle.dumps({"a": Reduced(open, (str(mark), "w"))}))
    assert isinstance(read["a"], Call) and str(read["a"].function) == f"{open.__module__}.open"
    assert [str(name) for name in pickles.calls(read)] == [f"{open.__module__}.open"]
    assert not mark.exists()


def test_state_items_and_references_are_recorded():
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", 3) if value == "outside" else None

    from collections import OrderedDict
    from io import BytesIO

    Pickler(file := BytesIO(), 2).dump(OrderedDict(a="outside"))
    read = pickles.load(file.getvalue())
    assert isinstance(read, Call) and str(read.function) == "collections.OrderedDict"
    assert isinstance(read.items["a"], Persistent) and read.items["a"].id == ("storage", 3)


OBJECT_ARRAY = pickle.dumps(np.array([None], object))
FLOATS = pickle.dumps(np.ones(3))


@pytest.mark.parametrize("content", [OBJECT_ARRAY, FLOATS, pickle.dumps([1]), pickle.dumps(np.float32(1))])
def test_only_plain_arrays_of_whole_numbers_become_arrays(content):
    with pytest.raises(PickleError):
        pickles.to_array(pickles.load(content))


def forged(shape, content, dtype="u1", order=False):
    kind = Call(Name("numpy", "dtype"), (dtype, 0, 1), (3, "|", None, None, None, -1, -1, 0))
    return Call(Name("numpy._core.multiarray", "_reconstruct"), (), (1, shape, kind, order, content))


@pytest.mark.parametrize(
    "value",
    [
        forged((2,), b"abc"),
        forged((-1,), b""),
        forged((1 << 62, 1 << 62), b""),
        forged((True,), b"a"),
        forged([3], b"abc"),
        forged((3,), "abc"),
        forged((3,), b"abc", "O"),
        forged((3,), b"abc", "V1"),
        forged((1,), b"abcdefgh", "f8"),
        forged((0,) * 30, b""),
    ],
)
def test_a_forged_array_is_refused(value):
    with pytest.raises(PickleError):
        pickles.to_array(value)


MEMO = b"\x80\x02]r" + struct.pack("<I", 2**29) + b"."  # nine bytes, 8 GB in Python's own machine
BOMBS = {
    "memo": MEMO,
    "nested lists": b"\x80\x02" + b"]" * 3_000_000 + b".",
    "promised bytes": b"\x80\x05\x8e" + struct.pack("<Q", 2**62) + b"a.",
    "promised text": b"\x80\x02X" + struct.pack("<I", 2**31 - 1) + b"a.",
    "long number": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"a.",
    "deep": b"\x80\x02" + b"(" * 900_000 + b"t" * 900_000 + b".",
    "doubling": b"\x80\x02]q\x00" + b"]q\x01(h\x00h\x00eq\x00" * 1000 + b".",
    "no end of a name": b"\x80\x02c" + b"a" * 5_000_000,
}


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS"), reason="the system bounds no memory")
@pytest.mark.parametrize("name", BOMBS)
def test_memory_stays_bounded(tmp_path, name):
    """In a process that may take 1.5 GB, libraries included; the machine ends well, or with its own error."""
    (tmp_path / "bomb").write_bytes(BOMBS[name])
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29))\n"
        "from scratchnet import pickles\n"
        "try: pickles.load(open(sys.argv[1], 'rb'))\n"
        "except pickles.PickleError as error: print(error)\n"
    )
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(tmp_path / "bomb")]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert run.returncode == 0, run.stderr


def test_mutants_end_with_a_value_or_with_the_documented_error():
    rng = random.Random(0)
    array = np.arange(300, dtype="uint8")
    seeds = [pickle.dumps({"data": array, "labels": [1, 2], "é": (None, 2.5)}, p) for p in (2, 3, 4, 5)]
    opcodes = [op.code.encode("latin-1") for op in pickletools.opcodes]
    for _ in range(4000):
        mutant = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(mutant))
            if rng.random() < 0.4:
                mutant[at : at + rng.randint(0, 3)] = rng.choice(opcodes)
            else:
                mutant[at] = rng.randrange(256)
        try:
            value = pickles.load(bytes(mutant))
            list(pickles.calls(value))
            pickles.to_array(value["data"] if isinstance(value, dict) and "data" in value else value)
        except PickleError:
            pass
