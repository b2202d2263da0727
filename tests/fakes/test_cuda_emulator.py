"""The emulator notices what it is there to notice: otherwise the tests that use it prove nothing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fakes import cuda_emulator
from tests.fakes.cuda_emulator import EmulatorError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def random_order():
    cuda_emulator.order.set(1)


def run(cupy, text, *arguments, grid=(1,), block=(64,), options=()):
    """Compile one kernel named f and launch it."""
    code = f'extern "C" __global__ void f({text}'
    cupy.RawModule(code=code, options=options).get_function("f")(grid, block, arguments)


def ints(cupy, *values):
    return cupy.asarray(np.array(values, "int32"))


# Threads

NEIGHBOUR = """int* out) {
    __shared__ int met[64];
    met[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = met[63 - threadIdx.x];
}"""


def test_threads_meet_at_a_barrier(stand_in):
    out = ints(stand_in, *[-1] * 64)
    run(stand_in, NEIGHBOUR, out)
    assert out.get().tolist() == list(range(63, -1, -1))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_missing_barrier_shows(stand_in, seed):
    """In any order: whichever warp is first finds nothing of the other's."""
    cuda_emulator.order.set(seed)
    out = ints(stand_in, *[-1] * 64)
    run(stand_in, NEIGHBOUR.replace("__syncthreads();", ""), out)
    assert out.get().tolist() != list(range(63, -1, -1))


def test_every_launch_has_another_order_and_a_seed_gives_it_again(stand_in):
    """A counter in memory tells who was when: neighbours in time are not neighbours in place."""
    text = "int* count, int* out) { out[blockIdx.x * 64 + threadIdx.x] = count[0]++; }"

    def order():
        out = ints(stand_in, *[-1] * 256)
        run(stand_in, text, ints(stand_in, 0), out, grid=(4,))
        return tuple(out.get().tolist())

    cuda_emulator.order.set(5)
    first, second = order(), order()
    cuda_emulator.order.set(5)
    assert order() == first != second
    cuda_emulator.order.set(0)
    assert order() == tuple(range(256))


def test_shared_memory_is_empty_before_every_block(stand_in):
    """What an earlier block left there would hide that it was never written."""
    text = """float* out) {
        __shared__ float met[1];
        out[blockIdx.x] = met[0];
        met[0] = 1;
    }"""
    out = stand_in.zeros(5, dtype="float32")
    run(stand_in, text, out, grid=(5,), block=(1,))
    assert np.isnan(out.get()).all()


@pytest.mark.parametrize(
    "body, said",
    [
        ("if (threadIdx.x >= 32) __syncthreads();", "others have ended"),
        ("if (threadIdx.x >= 40) return; __syncthreads();", "lanes of a warp wait at different places"),
        ("if (threadIdx.x % 2) __syncwarp(); else __syncthreads();", "lanes of a warp wait"),
        ("if (blockIdx.x != FIRST) __syncthreads();", "the first block did not"),
    ],
)
def test_a_barrier_that_not_all_reach_is_an_error(stand_in, body, said):
    cuda_emulator.order.set(0)
    with pytest.raises(EmulatorError, match=said):
        run(
            stand_in,
            f"int* out) {{ {body} out[0] = 1; }}",
            ints(stand_in, 0),
            grid=(2,),
            options=("-DFIRST=0",),
        )


def test_lanes_of_a_warp_exchange_values(stand_in):
    text = """float* out) {
        float mine = threadIdx.x;
        for (int away = 16; away > 0; away /= 2) mine += __shfl_xor_sync(0xffffffff, mine, away);
        out[threadIdx.x] = mine;
    }"""
    out = stand_in.zeros(64, dtype="float32")
    run(stand_in, text, out)
    assert out.get().tolist() == [sum(range(32))] * 32 + [sum(range(32, 64))] * 32


def test_a_block_has_at_most_1024_threads(stand_in):
    with pytest.raises(EmulatorError, match="1024"):
        run(stand_in, "int* out) { out[0] = 1; }", ints(stand_in, 0), block=(32, 33))


def test_a_kernel_that_does_not_compile_says_where(stand_in):
    with pytest.raises(EmulatorError, match="nonsense"):
        run(stand_in, "int* out) { nonsense; }", ints(stand_in, 0))


# Arguments: CuPy hands over the bytes that it gets


def test_arguments_have_to_be_what_the_kernel_takes(stand_in):
    text = "float* x, int n, long long m, float a, unsigned long long s) { x[0] = n + m + a + s; }"
    x = stand_in.zeros(1, dtype="float32")
    right = [x, np.int32(1), np.int64(2), np.float32(3), np.uint64(4)]
    run(stand_in, text, *right)
    assert float(x[0]) == 10
    for i, wrong in [
        (1, 1),
        (1, np.int64(1)),
        (2, np.int32(1)),
        (3, 3.0),
        (3, np.float64(3)),
        (4, np.int64(4)),
    ]:
        arguments = [*right[:i], wrong, *right[i + 1 :]]
        with pytest.raises(TypeError, match="a kernel's"):
            run(stand_in, text, *arguments)
    with pytest.raises(TypeError, match="takes 5 arguments, not 4"):
        run(stand_in, text, *right[:4])


def test_pointers_have_to_be_device_arrays_of_the_kernels_type(stand_in):
    text = "const float* __restrict__ x, unsigned char* y) { if (y) y[0] = x[0]; }"
    x, y = stand_in.ones(6, dtype="float32"), stand_in.zeros(6, dtype="uint8")
    run(stand_in, text, x, y)
    assert int(y[0]) == 1
    run(stand_in, text, x, np.uintp(0))  # a null pointer
    for wrong in (y, stand_in.ones(6), x[::2], np.ones(6, "float32"), np.uintp(4096), None):
        with pytest.raises(TypeError, match="argument x"):
            run(stand_in, text, wrong, y)


def test_only_nvrtc_is_stood_for(stand_in):
    with pytest.raises(ValueError, match="nvcc"):
        stand_in.RawModule(code="", backend="nvcc")


# The sanitizers, in a process of their own that begins with them


def sanitized(*command):
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=cuda_emulator.sanitized_environment(),
        capture_output=True,
        text=True,
    )


def test_no_kernel_touches_memory_that_is_not_its_own():
    """All comparisons once more: no access out of bounds or misaligned, no integers that overflow."""
    result = sanitized(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/plans/cuda/launch",
        "-k", "stand-in",  # not the planted faults, and not the memory that there is not
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert " passed" in result.stdout


PLANTED = """
import sys
from tests.fakes import cupy_stand_in
import numpy as np
from scratchnet.plans.cuda.launch import common, compiling, mask
from scratchnet.plans.cuda.launch.sums import sums_shape

right, wrong, wide = sys.argv[1:]
source = compiling.source

def planted(name):
    text = source(name)
    assert right in text
    return text.replace(right, wrong)

compiling.source = planted
if wide:
    common.pack_width = lambda *_: 4
with cupy_stand_in.installed() as cupy:
    dy = cupy.zeros(len(wide) + 700 * 12, dtype="float32")[len(wide) :].reshape(700, 12)
    partial = cupy.zeros(sums_shape(700, 12), dtype="float32")
    mask.mask(dy, None, dy.copy(), partial)
print("nothing was noticed")
"""


@pytest.mark.parametrize(
    "right, wrong, wide, said",
    [
        (" ", " ", "", None),
        ("row < range.stop", "row <= range.stop", "", "heap-buffer-overflow"),
        ("sums[me + half", "sums[me + 2 * half", "", "global-buffer-overflow|out of bounds"),
        (" ", " ", "x", "misaligned address"),
        (
            "row < range.stop",
            "row < range.stop * (2147483647 + (int)(row + 1))",
            "",
            "signed integer overflow",
        ),
    ],
    ids=["nothing", "a row too many", "shared memory", "misaligned", "overflow"],
)
def test_the_sanitizers_notice(right, wrong, wide, said):
    result = sanitized("-c", PLANTED, right, wrong, wide)
    if said is None:
        assert "nothing was noticed" in result.stdout, result.stderr[-2000:]
    else:
        assert result.returncode != 0
        assert "nothing was noticed" not in result.stdout
        assert any(word in result.stderr for word in said.split("|")), result.stderr[-2000:]
