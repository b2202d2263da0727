"""Fixtures for CUDA kernels.

Without a GPU they run on the emulator (``tests/fakes/cuda_emulator``), from the same source, with threads in
random order; ``python -m pytest -m gpu`` runs the same tests on a real one. Arrays that a kernel writes are
full of NaN before, and have their exact size, so that the sanitizers (``tests/fakes/test_cuda_emulator.py``)
notice the first byte beyond.
"""

import pytest

from scratchnet import backend
from scratchnet.plans.cuda.launch import compiling
from tests.fakes import cuda_emulator
from tests.fakes.device_arrays import DeviceArrays


@pytest.fixture
def k(device):
    cuda_emulator.order.set(1)
    return DeviceArrays(device)


@pytest.fixture
def plant(stand_in, monkeypatch, tmp_path):
    """A function that replaces a line of a kernel; a check that passed before must then fail."""

    def planted(file, right, wrong, check):
        cuda_emulator.order.set(1)
        k = DeviceArrays(backend.get("cupy"))
        check(k)
        for path in compiling.FOLDER.iterdir():
            text = path.read_text()
            if path.name == file:
                assert text.count(right) == 1, "the kernel has changed: plant the fault again"
                text = text.replace(right, wrong)
            (tmp_path / path.name).write_text(text)
        monkeypatch.setattr(compiling, "FOLDER", tmp_path)
        for cached in ("_kernel", "module"):
            monkeypatch.setattr(compiling, cached, getattr(compiling, cached).__wrapped__)
        with pytest.raises(AssertionError):
            check(k)

    return planted
