"""One module knows which array library computes; asked for what cannot work, it says why in one sentence."""

import copy
import importlib
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import scratchnet
from scratchnet import backend


class CUDARuntimeError(RuntimeError):
    pass


def raising(message, kind=CUDARuntimeError):
    def function(*_, **__):
        raise kind(message)

    return function


class OutOfMemoryError(MemoryError):
    pass


def fake_cupy(
    driver=13000, count=lambda: 1, full=np.full, version="14.2.0", built=12090, capability="86"
):  # fmt: skip
    """A CuPy module that looks like the real one to the questions that ``get`` asks."""
    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: built,
        getDeviceCount=count,
        getDevice=lambda: 0,
        getDeviceProperties=lambda device: {"name": b"Test GPU"},
    )
    device = SimpleNamespace(compute_capability=capability)
    cuda = SimpleNamespace(runtime=runtime, Device=lambda: device)
    return SimpleNamespace(__version__=version, ndarray=tuple, full=full, cuda=cuda)


BROKEN_IMPORT = """
try:
    raise ImportError("libcublas.so.12: cannot open shared object file")
except ImportError as error:
    raise ImportError("\\n=====\\nFailed to import CuPy.\\n\\nOriginal error:\\n  ...\\n=====") from error
"""
# What is wrong -> (the module, or the source of a package named cupy), the sentence.
FAILURES = {
    "not installed": (None, r"CuPy is not installed: install it with pip install 'cupy-cuda13x\[ctk\]'"),
    "a library is missing": (
        BROKEN_IMPORT,
        r"installed but broken \(libcublas.so.12: cannot open shared object",
    ),
    "a module is missing": (
        "import nowhere_to_be_found",
        "installed but broken, since nowhere_to_be_found is missing: rei",
    ),
    "any other error": (
        "raise AttributeError('no np.bool8')",
        r"installed but broken \(no np.bool8\): reinstall",
    ),
    "an empty package": ("", r"installed but broken \(.*has no attribute 'cuda'\): reinstall it"),
    "no driver": (fake_cupy(driver=0), "this machine has no NVIDIA driver: install one"),
    "driver too old": (
        fake_cupy(driver=11080, count=raising("cudaErrorInsufficientDriver: CUDA driver version is too low")),
        r"too old .* supports CUDA 11.8, CuPy was built for 12.9: update it to 525 or newer, or use",
    ),
    "driver too old for CUDA 13": (
        fake_cupy(driver=12080, built=13000, count=raising("cudaErrorInsufficientDriver: too low")),
        r"CuPy was built for 13.0: update it to 580 or newer, or pip install 'cupy-cuda12x\[ctk\]', or use",
    ),
    "CuPy too old": (
        fake_cupy(version="13.6.0"),
        r"CuPy 13.6.0 is too old, 14 is needed: pip install --upgrade 'cupy-cuda12x\[ctk\]', or use",
    ),
    "Volta with CUDA 13": (
        fake_cupy(built=13000, capability="70"),
        r"this GPU \(Test GPU, compute capability 7.0\) is too old for CUDA 13: pip install 'cupy-cuda12x",
    ),
    "another process has it": (
        fake_cupy(full=raising("cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy")),
        "the GPU is in use by a process that shares it with no other: see nvidia-smi; wait, or choose an",
    ),
    "others fill it": (
        fake_cupy(full=raising("Out of memory allocating 512 bytes", OutOfMemoryError)),
        "the GPU has no memory left, other processes hold it: see nvidia-smi; wait, or choose another GPU",
    ),
    "no GPU": (
        fake_cupy(count=raising("cudaErrorNoDevice: no device")),
        "an NVIDIA driver but no GPU: check nvidia-smi",
    ),
    "no visible GPU": (
        fake_cupy(count=lambda: 0),
        "driver but no GPU: check nvidia-smi .* CUDA_VISIBLE_DEVICES",
    ),
    "another error of CUDA": (
        fake_cupy(count=raising("cudaErrorSystemNotReady: system not yet initialized")),
        r"CUDA does not start \(cudaErrorSystemNotReady: system not yet initialized\): check nvidia-smi",
    ),
    "the test product fails": (
        fake_cupy(full=raising("libnvrtc.so: not found\nmore")),
        r"test product on it fails \(CUDARuntimeError: libnvrtc.so: not found\).*'cupy-cuda12x\[ctk\]'",
    ),
    "the test product is wrong": (
        fake_cupy(full=lambda *a, **k: 0 * np.full(*a, **k)),
        r"test product on it is wrong \(40 expected, got 0\)",
    ),
}


@pytest.fixture(params=FAILURES)
def failing(request, monkeypatch, tmp_path):
    """CuPy, unusable in one of these ways; the sentence that is expected."""
    cupy, sentence = FAILURES[request.param]
    if isinstance(cupy, str):
        (tmp_path / "cupy").mkdir()
        (tmp_path / "cupy" / "__init__.py").write_text(cupy)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(sys.modules, "cupy", None)  # so that it is put back as it was
        monkeypatch.delitem(sys.modules, "cupy")
    else:
        monkeypatch.setitem(sys.modules, "cupy", cupy)
    return sentence


def test_each_failure_has_its_sentence_and_says_what_to_do(failing):
    with pytest.raises(backend.BackendError, match=failing) as info:
        backend.get("cupy")
    message = str(info.value)
    assert message.endswith("or use --backend numpy to compute on the CPU") or message.endswith(
        ": use --backend numpy to compute on the CPU"
    )
    assert "\n" not in message


def test_auto_falls_back_to_numpy_and_says_why_an_installed_cupy_was_passed_over(failing, capfd, recwarn):
    chosen = backend.get("auto")
    assert chosen.name == "numpy" and chosen.device == backend.get("numpy").device
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    if "not installed" in failing:
        assert chosen.note == "" and str(chosen) == str(backend.get("numpy"))
    else:
        assert re.search(failing.split(", or use")[0], chosen.note) and "--backend" not in chosen.note
        assert str(chosen) == f"{backend.get('numpy')}; CuPy passed over: {chosen.note}"


# What pip takes to be installed -> the advice
PACKAGES = {
    "nothing": ([], "CuPy is not installed: install it with"),
    "one of two, after the other was removed": (
        ["cupy-cuda13x"],
        r"installed but broken, since its files are missing, as after removing another CuPy package: "
        r"reinstall it by pip install --force-reinstall --no-deps cupy-cuda13x, or use",
    ),
    "two that have overwritten each other": (
        ["cupy-cuda12x", "cupy-cuda13x"],
        r"broken, .*: of cupy-cuda12x and cupy-cuda13x keep one: pip uninstall -y cupy-cuda12x cupy-cuda13x, "
        r"then pip install 'cupy-cuda13x\[ctk\]', or use",
    ),
}


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """A function that lets pip take packages to be installed, without their modules."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.syspath_prepend(tmp_path)

    def install(*names):
        for name in names:
            folder = tmp_path / f"{name.replace('-', '_')}-14.2.0.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 14.2.0\n")
        importlib.invalidate_caches()

    return install


@pytest.mark.parametrize("name", PACKAGES)
def test_what_pip_takes_to_be_installed_decides_what_helps(packages, name):
    names, sentence = PACKAGES[name]
    packages(*names)
    with pytest.raises(backend.BackendError, match=sentence):
        backend.get("cupy")


def test_the_package_that_works_takes_the_place_of_the_one_that_does_not(packages, monkeypatch):
    packages("cupy-cuda13x")
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(built=13000, capability="61"))
    advice = (
        r"CUDA 13: pip uninstall -y cupy-cuda13x, then pip install 'cupy-cuda12x\[ctk\]', or use --backend"
    )
    with pytest.raises(backend.BackendError, match=advice):
        backend.get("cupy")


@pytest.mark.parametrize("built, capability", [(12090, "61"), (12090, "70"), (13000, "75"), (13000, "120")])
def test_gpus_that_a_cupy_compiles_for_are_taken(monkeypatch, built, capability):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(built=built, capability=capability))
    assert f"sm_{capability}" in backend.get("cupy").device


def test_auto_takes_a_gpu_that_computes(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy())
    chosen = backend.get("auto")
    assert chosen.name == "cupy"
    assert str(chosen) == "cupy on GPU 0 (Test GPU, sm_86, CUDA 12.9, CuPy 14.2.0)"


def test_warnings_of_cupy_are_shown_to_who_asked_for_it(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("import warnings\nwarnings.warn('no libnvrtc')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.delitem(sys.modules, "cupy")
    with pytest.raises(backend.BackendError), pytest.warns(UserWarning, match="no libnvrtc"):
        backend.get("cupy")


def test_numpy_never_asks_for_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(driver=0))
    assert backend.get("numpy").xp is np
    assert backend.get(backend.get("numpy")).name == "numpy"


@pytest.mark.parametrize("name", ["torch", "NumPy", "", None, 0])
def test_an_unknown_name(name):
    with pytest.raises(ValueError, match="backend must be 'numpy', 'cupy' or 'auto', not"):
        backend.get(name)


def test_the_cpu_is_named():
    numpy = backend.get("numpy")
    assert numpy.device.startswith("CPU (")
    assert f"NumPy {np.__version__}" in numpy.device
    assert " core" in numpy.device
    assert str(numpy) == f"numpy on {numpy.device}"


def test_array_module(stand_in):
    assert backend.array_module(stand_in.ones(3)) is stand_in
    for x in (np.ones(3), [1.0], 1.0, None):
        assert backend.array_module(x) is np


def test_array_module_while_cupy_is_half_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())
    assert backend.array_module(np.ones(3)) is np
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert backend.array_module(np.ones(3)) is np


def test_asarray_copies_only_where_it_has_to():
    numpy, x = backend.get("numpy"), np.ones(3, "float32")
    assert numpy.asarray(x) is x
    assert numpy.to_numpy(x) is x
    assert numpy.asarray(x, dtype="float64").dtype == np.float64
    numpy.synchronize()


def test_arrays_move_between_backends(stand_in):
    numpy, cupy = backend.get("numpy"), backend.get("cupy")
    x = np.arange(3.0)
    there = cupy.asarray(x)
    assert isinstance(there, stand_in.ndarray)
    back = numpy.asarray(there)
    assert type(back) is np.ndarray
    np.testing.assert_array_equal(back, x)
    np.testing.assert_array_equal(backend.to_numpy(there), x)
    cupy.synchronize()


def test_a_copied_backend_is_the_same():
    numpy = backend.get("numpy")
    assert copy.deepcopy(numpy) is numpy


def run_python(code):
    root = scratchnet.__path__[0].rpartition("scratchnet")[0]
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_importing_scratchnet_imports_no_heavy_library():
    code = """
import importlib, pkgutil
import scratchnet
names = [m.name for m in pkgutil.walk_packages(scratchnet.__path__, "scratchnet.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names), *sorted({"cupy", "torch", "matplotlib", "mpi4py"} & set(sys.modules)))
"""
    count, *imported = run_python(code)
    assert int(count) > 15
    assert imported == []


def test_importing_the_package_imports_no_submodule_and_not_even_numpy():
    code = """
import scratchnet
print(*sorted(name for name in sys.modules if name == "numpy" or name.startswith("scratchnet.")))
"""
    assert run_python(code) == []


def test_submodules_are_imported_at_first_use():
    code = """
import scratchnet as sn
print(set(sn.__all__) <= set(dir(sn)), type(sn.models.vgg11(width=0.0625, classifier_width=8)).__name__)
for name in sn.__all__:
    getattr(sn, name)
print(getattr(sn, "modells", "unknown"))
"""
    assert run_python(code) == ["True", "VGG", "unknown"]
