"""The benchmarks run as documented, compare equal work, and say what is missing."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

TRAIN_STEP = Path(__file__).parents[1] / "benchmarks" / "train_step.py"
SMALL = ["--arch", "vgg11", "--width", "0.0625", "--batch-size", "2", "--rounds", "2", "--threads", "1"]


@pytest.fixture
def train_step():
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("train_step", TRAIN_STEP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments):
    return subprocess.run(
        [sys.executable, TRAIN_STEP, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def worker(seconds, losses=(2.0, 1.5), memory=1000.0):
    return SimpleNamespace(seconds=seconds, losses=list(losses), memory=memory, versions="some version")


TASK = {
    "arch": "vgg16",
    "image_size": 32,
    "batch_size": 128,
    "batch_norm": False,
    "engine": "layers",
    "threads": 2,
}


def test_without_pytorch_it_says_what_to_install(train_step, monkeypatch, capsys):
    monkeypatch.setattr(train_step.importlib.util, "find_spec", lambda name: None)
    assert train_step.main([]) == 2
    assert "pip install 'scratchnet[bench]'" in capsys.readouterr().err


def test_ratios_are_taken_within_each_round(train_step):
    workers = {
        "scratchnet": worker([1.0, 2.0, 4.0], memory=600.0),
        "eager": worker([0.5, 2.0, 3.0], memory=1000.0),
        "channels_last": worker([0.7, 1.0, 4.0], memory=1200.0),
    }
    text = train_step.report(TASK, workers, ["a remark"])
    assert "better format of each round: **0.50** (from 0.50 to 0.75)" in text
    assert "| scratchnet, layers | 2000 | 1000 | 4000 | 64.0 | 600 MB |" in text
    assert "thriftier format: **0.60**" in text
    assert "- a remark" in text


@pytest.mark.parametrize("losses", [(2.0, 1.6), (2.0, float("nan"))])
def test_contenders_that_disagree_are_not_compared(train_step, losses):
    train_step.check_agreement(worker([1.0]), worker([1.0], losses=(2.0001, 1.5001)))
    with pytest.raises(train_step.WorkerError, match="not the same work"):
        train_step.check_agreement(worker([1.0]), worker([1.0], losses=losses))


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--threads", "two"], ["--engine", "magic"]])
def test_arguments_that_make_no_sense(arguments):
    result = run(*arguments)
    assert result.returncode == 2
    assert "usage:" in result.stderr


def test_an_architecture_that_does_not_exist():
    pytest.importorskip("torch")
    result = run("--arch", "vgg99")
    assert result.returncode == 2
    assert "architecture must be one of" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [[], ["--batch-norm", "--image-size", "64"]], ids=["plain", "batch norm, 64 px"]
)
def test_a_small_run_against_pytorch(tmp_path, more):
    pytest.importorskip("torch")
    result = run(*SMALL, *more, "--output", str(tmp_path / "table.md"))
    assert result.returncode == 0, result.stderr
    assert "PyTorch eager, channels last" in result.stdout
    assert "losses agree" in result.stdout
    assert (tmp_path / "table.md").read_text() == result.stdout
