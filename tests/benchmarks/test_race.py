"""Contenders take turns at equal work, and tables of a race say what came out."""

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fakes.measurements import TASK, Silent, measured, race_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MEASURING = ["race", "report", "command", "train_step", "inference", "growth", "time_by_group"]
MEASURING += ["data_preparation", "quick", "all", "gpu"]


class FakeWorker:
    """A contender that takes one second, loses, fails or computes something else, as its name says."""

    started = []

    def __init__(self, contender, task):
        self.contender, self.seconds, self.difference, self.closed = contender, [], None, False
        self.started.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.closed = True

    def warm_up(self):
        self.first = [2.0, 1.6] if self.contender == "compile" else [2.0, 1.5]

    def turn(self):
        from race import WorkerError

        if self.contender == "channels_last" and self.seconds:
            raise WorkerError("out of memory")
        self.seconds.append(1.0)

    def measured(self):
        return measured(self.seconds, difference=self.difference)


@pytest.fixture
def race(load, monkeypatch):
    """The harness, with workers that are none and every library installed."""
    race = load("race")
    monkeypatch.setattr(race, "Worker", FakeWorker)
    monkeypatch.setattr(race, "PAUSE", 0.0)
    monkeypatch.setattr(race.importlib.util, "find_spec", lambda name: name)
    FakeWorker.started = []
    return race


def test_a_contender_that_cannot_take_part_is_left_out_with_the_reason(race):
    result = race.measure(TASK, ["scratchnet", "eager", "channels_last", "compile"], 3, Silent())
    assert list(result["contenders"]) == ["scratchnet", "eager"]
    assert result["contenders"]["eager"]["seconds"] == [1.0] * 3
    disagrees, dies = result["remarks"]
    assert "compiled" in disagrees and "left out" in disagrees and "1.6" in disagrees
    assert "channels last: left out: out of memory" in dies
    assert all(worker.closed for worker in FakeWorker.started)
    json.dumps(result)


def test_with_nobody_left_there_is_no_race(race):
    with pytest.raises(race.WorkerError, match="nothing to compare with: .*not the same work"):
        race.measure(TASK, ["scratchnet", "compile"], 3, Silent())


def test_libraries_that_are_not_installed_are_named_before_anything_starts(race, monkeypatch):
    monkeypatch.setattr(race.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(race.WorkerError, match=r"jax is not installed: pip install '\.\[bench\]'"):
        race.measure(TASK, ["scratchnet", "jax"], 3, Silent())
    assert not FakeWorker.started


@pytest.mark.parametrize("theirs", [[2.0, 1.6], [2.0, float("nan")]])
def test_contenders_that_disagree_are_not_compared(load, theirs):
    race = load("race")
    assert race.difference([2.0, 1.5], [2.0001, 1.5001]) == pytest.approx(5e-5)
    with pytest.raises(race.WorkerError, match="not the same work"):
        race.difference([2.0, 1.5], theirs)


def test_peak_memory_can_be_reset(load):
    race = load("race")
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux can")
    ones = np.ones(40_000_000)
    before = race.peak_memory()
    del ones
    race.forget_peak_memory()
    assert race.peak_memory() < before - 200


def test_every_process_has_as_many_threads_as_the_others(load):
    environment = load("race").environment(3)
    assert environment["OMP_NUM_THREADS"] == environment["SCRATCHNET_THREADS"] == "3"
    assert environment["PYTHONPATH"].startswith(str(Path(__file__).parents[2]))


def test_avx2_limits_every_library_by_its_own_switch(load):
    limits = load("race").limited_to_avx2()
    assert limits["OPENBLAS_CORETYPE"] == "Haswell" and limits["ATEN_CPU_CAPABILITY"] == "avx2"
    code = """
import warnings
warnings.simplefilter("error")  # NumPy warns of names that it does not know
from numpy._core import _multiarray_umath as u
used = [name for name in u.__cpu_dispatch__ if u.__cpu_features__[name]]  # those that it has loops for
print(sorted(name for name in used if name.startswith(("AVX512", "X86_V4"))))
"""
    environment = {**os.environ, **limits}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_what_measures_imports_no_numpy():
    code = f"import sys, {', '.join(MEASURING)}; print('numpy' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr


@pytest.mark.parametrize("name", ["report", "growth", "time_by_group", "figures"])
def test_examples_in_docstrings(load, name):
    if name == "figures":
        pytest.importorskip("matplotlib")
    assert doctest.testmod(load(name)).failed == 0


# Tables of a race


def test_ratios_are_taken_within_each_round(load):
    contenders = {
        "scratchnet": measured([1.0, 2.0, 4.0], memory=600.0),
        "eager": measured([0.5, 2.0, 3.0], memory=1000.0),
        "channels_last": measured([0.7, 1.0, 4.0], memory=1200.0),
        "jax": measured([2.0, 4.0, 8.0], memory=1200.0),
    }
    text = load("report").race_table(race_of(contenders, ["a remark"]))
    assert text.startswith("## A training step of vgg16, 32 px, batch 128, float32\n")
    assert "PyTorch, the best of each round: **0.50** (from 0.50 to 0.75)" in text
    assert "Speed against JAX: **2.00** (from 2.00 to 2.00)" in text
    assert "| scratchnet, layers | 2000 | 1000 | 4000 | 64.0 | 600 MB |" in text
    assert "PyTorch, the lowest: **0.60**" in text
    assert "whose losses agree: 2.0000, 1.5000 (largest relative difference 1e-06)" in text
    assert "- a remark" in text
    assert "; 2 threads; Linux; 2026-01-31\n- `python benchmarks/something.py`" in text


def test_a_system_that_counts_no_memory(load):
    contenders = {"scratchnet": measured([1.0], memory=None), "eager": measured([1.0], memory=None)}
    text = load("report").race_table(race_of(contenders))
    assert "unknown" in text and "Peak memory" not in text


def test_settings_of_blas_are_reported(load, monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    result = race_of({"scratchnet": measured([1.0]), "eager": measured([1.0])}, kind="inference")
    text = load("report").race_table({**result, **load("race").machine()})
    assert "OPENBLAS_CORETYPE=Haswell" in text
    assert text.startswith("## Inference with vgg16") and "whose logits agree" in text
