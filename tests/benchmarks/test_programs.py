"""The benchmarks' command lines, and small runs of the real thing."""

import importlib
import json

import pytest

from tests.fakes.measurements import Silent

SMALL = ["--arch", "vgg11", "--width", "0.0625", "--batch-size", "2", "--rounds", "2", "--threads", "1"]


def test_without_pytorch_it_says_what_to_install(load, monkeypatch, capsys):
    train_step = load("train_step")
    monkeypatch.setattr(load("race").importlib.util, "find_spec", lambda name: None)
    assert train_step.main([]) == 2
    assert "pip install '.[bench]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "program, arguments, reason",
    [
        ("train_step.py", ["--rounds", "0"], "must be a whole number above zero, not '0'"),
        ("train_step.py", ["--threads", "two"], "not 'two'"),
        ("train_step.py", ["--width", "nan"], "must be a number above zero, not 'nan'"),
        ("train_step.py", ["--engine", "magic"], "invalid choice: 'magic'"),
        ("train_step.py", ["--rivals", "openvino"], "invalid choice: 'openvino'"),
        ("inference.py", ["--rivals", "compile", "--no-compile"], "no rival is left to compare with"),
        ("inference.py", ["--output", "no/such/folder/table.md"], "cannot write"),
        ("growth.py", ["--over", "time"], "invalid choice: 'time'"),
        ("time_by_group.py", ["--rounds", "many"], "not 'many'"),
        ("data_preparation.py", ["--batches", "0"], "not '0'"),
        ("quick.py", ["--file", "no/such/file.json"], "no/such/file.json"),
        ("all.py", ["--only", "nothing"], "invalid choice: 'nothing'"),
        ("all.py", ["--date", "yesterday"], "must be a date such as 2026-01-31"),
    ],
)
def test_arguments_that_make_no_sense(run, program, arguments, reason):
    if program == "quick.py":
        pytest.importorskip("torch")
    result = run(program, *arguments)
    assert result.returncode == 2
    assert reason in result.stderr
    assert result.stderr.startswith(f"{program}: ") and result.stderr.count("\n") == 1


def test_an_architecture_that_does_not_exist(run):
    for program in ("data_preparation.py", "time_by_group.py"):
        result = run(program, "--arch", "vgg99")
        assert result.returncode == 2
        assert "architecture must be one of" in result.stderr
        assert "Traceback" not in result.stderr


# Small runs of the real thing


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [[], ["--batch-norm", "--image-size", "64", "--no-compile"]], ids=["plain", "batch norm, 64 px"]
)
def test_a_small_run_against_pytorch(run, tmp_path, more):
    pytest.importorskip("torch")
    result = run("train_step.py", *SMALL, *more, "--output", tmp_path / "table.md")
    assert result.returncode == 0, result.stderr
    assert "| PyTorch eager, channels last |" in result.stdout
    assert ("compiled" in result.stdout) != ("--no-compile" in more)
    assert "losses agree" in result.stdout
    assert (tmp_path / "table.md").read_text() == result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("library, title", [("dezero", "DeZero"), ("jax", "JAX")])
def test_a_small_run_against_a_peer(run, library, title):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    result = run("train_step.py", *SMALL, "--rivals", library)
    assert result.returncode == 0, result.stderr
    assert f"| {title} |" in result.stdout
    assert "losses agree" in result.stdout


@pytest.mark.slow
def test_a_small_run_of_inference(run):
    pytest.importorskip("torch")
    result = run("inference.py", *SMALL, "--batch-norm", "--no-compile")
    assert result.returncode == 0, result.stderr
    assert "| PyTorch eager, channels last |" in result.stdout
    for library, title in {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}.items():
        installed = all(importlib.util.find_spec(name) for name in ("onnx", library))
        assert f"| {title} |" in result.stdout or not installed
    assert "logits agree" in result.stdout


@pytest.mark.slow
def test_small_growth(load):
    pytest.importorskip("torch")
    growth = load("growth")
    result = growth.measure_growth({"batch": [2]}, 1, Silent(), arch="vgg11", width=0.0625, threads=1)
    assert "| 2 | " in growth.growth_tables(json.loads(json.dumps(result)))


@pytest.mark.slow
def test_a_small_run_of_time_by_group(run):
    result = run("time_by_group.py", *SMALL)
    assert result.returncode == 0, result.stderr
    assert "| features.0-2 Conv2d+ReLU+MaxPool2d, " in result.stdout
    assert "Means of the faster 1 of 2 steps" in result.stdout


@pytest.mark.slow
def test_a_small_run_of_all(run, tmp_path):
    sections = ["data-preparation", "time-by-group"]
    result = run("all.py", "--tiny", "--rounds", 1, "--output", tmp_path, "--only", *sections)
    assert result.returncode == 0, result.stderr
    text = next(tmp_path.glob("*.md")).read_text()
    assert "With a tiny network" in text
    assert "## Where the time goes" in text
    assert "More time for a training step fed by the loader" in text
