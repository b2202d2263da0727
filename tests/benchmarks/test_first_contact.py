"""The first contact with a GPU: every step in its time, after every error, and what there is on the page."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from tests.fakes import measurements

ROOT = Path(__file__).parents[2]
MACHINE = measurements.MACHINE | {"driver": "580", "command": "python x"}


@pytest.fixture
def first(load):
    return load("first_contact")


def python(first, title, code):
    return first.Command(title, [sys.executable, "-c", code])


def test_errors_signals_and_what_hangs_end_one_command_each(first):
    hangs = "import subprocess, sys; print('begun', flush=True); subprocess.run(['sleep', '60'])"
    chosen = {
        "one": (
            "",
            [python(first, "fails", "print('said'); raise SystemExit(3)"), python(first, "goes on", "")],
        ),
        "two": ("", [python(first, "ends", "import os; os.kill(os.getpid(), 11)")]),
        "three": ("", [python(first, "hangs", hangs), python(first, "has no time", "")]),
        "four": ("", [first.Command("is not there", ["no-such-program"])]),
    }
    told, start = [], time.monotonic()
    results = first.contact(chosen, 4 / 60, lambda results: told.append(len(results)))
    assert time.monotonic() - start < 40
    assert told == [1, 2, 3, 4, 5, 6], "the page is written after each"
    ended = [r["ended"] for r in results]
    assert ended[:3] == ["failed with status 3", "ok", "ended by signal 11"]
    assert ended[3] == "stopped after 4 s" and results[3]["output"] == "begun"
    assert ended[4:] == ["not run: its step's time was over", "not run: there is no no-such-program"]
    assert results[0]["output"] == "said"
    text = first.page(results, MACHINE)
    assert "| one | fails | failed with status 3 |" in text and "~~~~\nsaid\n~~~~" in text


def test_its_commands_are_there(first):
    every = first.steps(False, "data", "somewhere")
    assert list(every) == [
        "device", "smoke", "tests", "demo", "sanitizer", "sweep", "speed", "cifar", "record",
    ]  # fmt: skip
    for _, commands in every.values():
        for command in commands:
            for part in command.arguments:
                if part.endswith(".py") or part.startswith(("tests/", "--ignore=")):
                    path = ROOT / part.removeprefix("--ignore=")
                    assert path.exists(), part


def test_what_it_is_asked_for(first, capsys):
    assert first.main(["--list"]) == 0
    assert capsys.readouterr().out.startswith("device     what there is, and the self-check\n")
    with pytest.raises(SystemExit):
        first.main(["smok"])
    assert "there is no step 'smok', but device, smoke, tests" in capsys.readouterr().err


@pytest.fixture
def stand_in_for_processes(monkeypatch, tmp_path):
    """Let processes find the stand-in."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests" / "fakes" / "path"), str(ROOT)]))
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))


def test_smoke_and_sweep_run_on_the_stand_in(first, stand_in_for_processes, tmp_path):
    status = first.main(["smoke", "sweep", "--small", "--results", str(tmp_path / "results")])
    (data,) = tmp_path.glob("results/*.json")
    results = json.loads(data.read_text())["results"]
    said = "\n".join(r["output"] for r in results)
    assert [r["ended"] for r in results] == 4 * ["ok"] and status == 0, said
    smoke, tf32 = results[0]["output"], results[1]["output"]
    assert (
        smoke.count("ok    ") == len(smoke.splitlines()) and "bf16: the same bits, launched one by" in smoke
    )
    assert "tf32, batch 4; columns of 33 MiB are chosen" in tf32 and "blocks   partial sums   ms/step" in tf32
    assert "## sweep: sweep, fp32" in data.with_suffix(".md").read_text()


def test_smoke_says_what_is_wrong_and_goes_on(load, stand_in, monkeypatch, capsys):
    work = load("first_contact_work")
    monkeypatch.setattr(work, "SHAPES", work.SHAPES[:1])
    monkeypatch.setattr(work, "product_error", lambda *_: 1 / 0)
    monkeypatch.setattr(work, "losses", lambda gpu, precision, graphs, small: [float(graphs)])
    assert work.main(["smoke", "--small"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("FAIL  fp32 product (5, 7, 3) T00, its error: ZeroDiv") for line in lines) == 1
    assert "FAIL  bf16: the same bits, launched one by one: ArithmeticError: [1.0], launched [0.0]" in lines
    assert any(line.startswith("ok    a graph of one kernel") for line in lines)


def test_speed_goes_on_after_an_error_and_ends_in_time(load, monkeypatch, tmp_path, capsys):
    gpu, race = load("gpu"), load("race")
    tasks = gpu.chosen(["training", "vgg16", "512"])
    measured = []

    def measure(task, contenders, worker):
        measured.append(task["precision"])
        if task["precision"] == "fp32":
            raise race.WorkerError("the GPU has not enough memory for 512 images per batch")
        return {"task": task}

    monkeypatch.setattr(gpu, "measure", measure)
    monkeypatch.setattr(gpu, "add_to_page", lambda result, path: f"page of {result['task']['precision']}\n")
    text = gpu.measure_all(tasks, ["scratchnet"], 1, None, tmp_path)
    assert measured == ["fp32", "tf32", "bf16"]
    assert text == "page of bf16\n- the GPU has not enough memory for 512 images per batch\n"
    assert "not enough memory" in capsys.readouterr().err
    with pytest.raises(race.WorkerError, match="not enough memory"):
        gpu.measure_all(tasks[:1], ["scratchnet"], 1, None, tmp_path)
    with pytest.raises(race.WorkerError, match="no task was begun in time"):
        gpu.measure_all(tasks, ["scratchnet"], 1, -1.0, tmp_path)


def test_a_worker_that_ends_says_why(load, monkeypatch, tmp_path):
    race = load("race")
    monkeypatch.setattr(race, "HERE", tmp_path)
    (tmp_path / "x.py").write_text("import sys; sys.exit('no memory left on the device')")
    with pytest.raises(race.WorkerError, match="ended with status 1: no memory left on the device"):
        race.apart("x.py", {"threads": 1})
