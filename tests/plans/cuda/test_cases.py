"""What people read on each kind of machine, word for word; ``examples/README.md`` has the same table.

``python -m pytest -s -k what_happens`` prints it. All of it is by stand-in, and not yet seen on a real card.
"""

import importlib
import sys
from pathlib import Path

import pytest

from scratchnet import backend, plans
from scratchnet.cli.program import device_line
from scratchnet.models import vgg16
from scratchnet.plans.cuda import selfcheck
from tests.fakes import cuda_runtime, cupy_stand_in

README = Path(__file__).parents[3] / "examples" / "README.md"
CUDA_12, CUDA_13 = 12090, 13000


class Machine:
    """The stand-in as another GPU, driver or CuPy."""

    def __init__(self, stand_in, monkeypatch):
        self.cupy, self.set = stand_in, monkeypatch.setattr
        monkeypatch.setattr(stand_in, "__version__", "14.2.0")
        runtime = self.runtime = stand_in.cuda.runtime
        monkeypatch.setattr(runtime, "getDeviceProperties", lambda device: {"name": "NVIDIA GPU"})

    def gpu(self, capability, built=CUDA_13):
        self.set(cuda_runtime.Device, "compute_capability", capability)
        self.set(self.runtime, "runtimeGetVersion", lambda: built)

    def driver(self, version):
        def count():
            name = "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version"
            raise cuda_runtime.CUDARuntimeError(name)

        self.set(self.runtime, "driverGetVersion", lambda: version)
        self.set(self.runtime, "getDeviceCount", count)

    def used(self, error):
        def full(*arguments, **keywords):
            raise error

        self.set(self.cupy, "full", full)


def packages(*names):
    """Let pip take packages to be installed whose files are not there."""

    def make(machine, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, "cupy", None)
        monkeypatch.syspath_prepend(tmp_path)
        for name in names:
            folder = tmp_path / f"{name.replace('-', '_')}-14.2.0.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 14.2.0\n")
        importlib.invalidate_caches()

    return make


def too_large(machine, monkeypatch, tmp_path):
    """VGG16-BN in training; nothing of it is allocated."""
    machine.gpu("86")
    monkeypatch.setattr(cupy_stand_in, "free_memory", 7 << 30)
    plans.compile(vgg16(10, 32, batch_norm=True).to("cupy"), (4096, 32, 32, 3), training=True)


def gpu(capability, built=CUDA_13):
    return lambda machine, monkeypatch, tmp_path: machine.gpu(capability, built)


BUSY = cuda_runtime.CUDARuntimeError("cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy")
FULL = cupy_stand_in.OutOfMemoryError("Out of memory allocating 512 bytes")
CASES = {
    "sm_61, CuPy for CUDA 12": gpu("61", CUDA_12),
    "sm_61, CuPy for CUDA 13": gpu("61"),
    "sm_70, CuPy for CUDA 12": gpu("70", CUDA_12),
    "sm_70, CuPy for CUDA 13": gpu("70"),
    "sm_75": gpu("75"),
    "sm_86": gpu("86"),
    "sm_86 with 8 GB, --batch-size 4096": too_large,
    "sm_90": gpu("90"),
    "no driver": lambda machine, *_: machine.set(machine.runtime, "driverGetVersion", lambda: 0),
    "a driver for CUDA 12, CuPy for CUDA 13": lambda machine, *_: machine.driver(12080),
    "two CuPys, one removed": packages("cupy-cuda13x"),
    "two CuPys, neither imports": packages("cupy-cuda12x", "cupy-cuda13x"),
    "a card that another process has to itself": lambda machine, *_: machine.used(BUSY),
    "a card that others have filled": lambda machine, *_: machine.used(FULL),
}


def said(case, stand_in, monkeypatch, tmp_path, name="cupy"):
    """Return the first line of a program, or the sentence with which it ends."""
    machine = Machine(stand_in, monkeypatch)
    try:
        CASES[case](machine, monkeypatch, tmp_path)
        return device_line(backend.get(name))
    except backend.BackendError as error:
        return str(error)


def rows():
    """Return the table of README: the words by case."""
    lines = README.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {case: text.strip("`") for case, text, *_ in cells if case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_what_happens(case, stand_in, monkeypatch, tmp_path):
    text = said(case, stand_in, monkeypatch, tmp_path)
    print(f"\n| {case} | `{text}` |")
    assert rows().get(case) == text


def test_auto_computes_with_numpy_instead_and_says_why(stand_in, monkeypatch, tmp_path):
    text = said("sm_70, CuPy for CUDA 13", stand_in, monkeypatch, tmp_path, "auto")
    assert text.startswith(
        f"Device: {backend.get('numpy')}; CuPy passed over: this GPU (NVIDIA GPU, compute cap"
    )


def test_two_cupys_of_which_one_imports_compute(stand_in, monkeypatch, tmp_path):
    module = sys.modules["cupy"]
    packages("cupy-cuda12x", "cupy-cuda13x")(None, monkeypatch, tmp_path)
    monkeypatch.setitem(sys.modules, "cupy", module)
    assert backend.get("cupy").name == "cupy"


def test_a_plan_that_fails_its_self_check(stand_in, monkeypatch):
    found = "self-check: plans do not equal the layers on this GPU, so they are not used (x)"
    monkeypatch.setattr(selfcheck, "verdict", lambda xp, precision: selfcheck.Verdict(False, found))
    assert device_line(backend.get("cupy")).endswith(f"; layer by layer; {found}")
