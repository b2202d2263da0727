"""The benchmarks run as documented, compare equal work, and say what is missing."""

import doctest
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scratchnet.training import cli

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MEASURING = ["race", "report", "command", "train_step", "inference", "growth", "time_by_group"]
MEASURING += ["data_preparation", "quick", "all"]
SMALL = ["--arch", "vgg11", "--width", "0.0625", "--batch-size", "2", "--rounds", "2", "--threads", "1"]
TASK = {
    "kind": "training",
    "arch": "vgg16",
    "image_size": 32,
    "batch_size": 128,
    "batch_norm": False,
    "width": 1.0,
    "engine": "layers",
    "threads": 2,
}
MACHINE = {
    "processor": "a processor",
    "cores": 2,
    "system": "Linux",
    "python": "3.11",
    "date": "2026-01-31",
    "environment": {},
    "command": "python benchmarks/something.py",
}


@pytest.fixture
def load(monkeypatch):
    """Import a benchmark as a module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def run(program, *arguments):
    command = [sys.executable, BENCHMARKS / program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


class Silent:
    """A progress bar that shows nothing."""

    def set_description(self, text):
        pass

    def update(self):
        pass


def measured(seconds, memory=1000.0, difference=1e-6):
    return {
        "seconds": seconds,
        "memory": memory,
        "versions": "some version",
        "difference": difference,
        "first": [2.0, 1.5],
    }


def race_of(contenders, remarks=(), **task):
    return {"task": {**TASK, **task}, "contenders": contenders, "remarks": list(remarks), **MACHINE}


# A race


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


def test_who_cannot_take_part_is_left_out_with_the_reason(race):
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
    with pytest.raises(race.WorkerError, match=r"jax is not installed: pip install '.\[bench\]'"):
        race.measure(TASK, ["scratchnet", "jax"], 3, Silent())
    assert not FakeWorker.started


@pytest.mark.parametrize("theirs", [[2.0, 1.6], [2.0, float("nan")]])
def test_contenders_that_disagree_are_not_compared(load, theirs):
    race = load("race")
    assert race.difference([2.0, 1.5], [2.0001, 1.5001]) == pytest.approx(5e-5)
    with pytest.raises(race.WorkerError, match="not the same work"):
        race.difference([2.0, 1.5], theirs)


def test_peak_memory_is_counted_anew(load):
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
    assert environment["PYTHONPATH"].startswith(str(BENCHMARKS.parent))


def test_who_measures_imports_no_numpy():
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
    assert "PyTorch, the thriftiest: **0.60**" in text
    assert "whose losses agree: 2.0000, 1.5000 (largest relative difference 1e-06)" in text
    assert "- a remark" in text
    assert "; 2 threads; Linux; 2026-01-31\n- `python benchmarks/something.py`" in text


def test_a_system_that_counts_no_memory(load):
    contenders = {"scratchnet": measured([1.0], memory=None), "eager": measured([1.0], memory=None)}
    text = load("report").race_table(race_of(contenders))
    assert "unknown" in text and "Peak memory" not in text


def test_settings_of_blas_are_told(load, monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    result = race_of({"scratchnet": measured([1.0]), "eager": measured([1.0])}, kind="inference")
    text = load("report").race_table({**result, **load("race").machine()})
    assert "OPENBLAS_CORETYPE=Haswell" in text
    assert text.startswith("## Inference with vgg16") and "whose logits agree" in text


# Growth


def growth_of(axis, values, remarks=()):
    points = [
        {
            "axis": axis,
            "kind": kind,
            "value": value,
            "race": race_of(
                {"scratchnet": measured([1.0 / value]), "channels_last": measured([2.0])}, kind=kind
            ),
        }
        for value in values
        for kind in ("training", "inference")
    ]
    return {"points": points, "remarks": list(remarks), **MACHINE}


def test_growth_measures_every_point_and_goes_on_after_a_failure(load, monkeypatch):
    growth = load("growth")

    def measure(task, contenders, rounds, progress):
        progress.set_description("warm-up")
        if task["batch_size"] == 4:
            raise growth.WorkerError("out of memory")
        return {"task": task, "rounds": rounds}

    monkeypatch.setattr(growth, "measure", measure)
    result = growth.measure_growth({"batch": [2, 4], "threads": [1]}, 3, Silent(), arch="vgg11")
    points = [(p["axis"], p["kind"], p["value"]) for p in result["points"]]
    assert points[:3] == [("batch", "training", 2), ("batch", "inference", 2), ("threads", "training", 1)]
    assert [remark.split(":")[0] for remark in result["remarks"]] == [
        "training, batch 4",
        "inference, batch 4",
    ]
    task = result["points"][2]["race"]["task"]
    assert (task["arch"], task["threads"], task["batch_size"], task["image_size"]) == ("vgg11", 1, 128, 32)


def test_growth_tables(load):
    text = load("growth").growth_tables(growth_of("threads", [1, 2], ["a remark"]))
    assert "Training, vgg16, 32 px, batch 128:" in text
    assert "| 2 | 500 | 2000 | 1000 MB | 1000 MB | **4.00** (from 4.00 to 4.00) |" in text
    assert "From 1 to 2 threads: scratchnet 2.00 times as fast" in text
    assert "- a remark" in text


# Where the time goes


def test_multiply_adds_of_products_are_counted(load):
    from scratchnet.plans.cpu.calls import Phase, Calls

    first, second = Calls(), Calls()
    a, b, out = np.ones((5, 2, 3)), np.ones((5, 3, 4)), np.ones((5, 2, 4))
    first(np.matmul, a, b, out=out)
    first(np.add, out, out, out=out)
    second(np.matmul, np.ones(7), np.ones((7, 4)), out=np.ones(4))
    phases = [Phase("product", [first, second]), Phase("dx", [first], for_input_gradient=True)]
    assert load("time_by_group").products_of(phases) == {"product": 5 * 2 * 4 * 3 + 4 * 7}


def test_table_of_groups(load):
    phases = [
        {"pass": "forward", "name": "rows", "seconds": 0.1, "products": 4e9},
        {"pass": "backward", "name": "rows", "seconds": 0.3, "products": 0},
    ]
    group = {"name": "features.0", "title": "Conv2d", "algorithm": "winograd", "definition": 2e10}
    result = {
        "groups": [{**group, "phases": phases}],
        "optimizer": 0.05,
        "total": 0.5,
        "averaged": 5,
        "steps": 10,
        "peak": 1e11,
        "versions": "some version",
        "task": TASK,
        **MACHINE,
    }
    text = load("time_by_group").groups_table(result)
    assert "| features.0 Conv2d, winograd | 100 | 300 | 80.0% | 100 | 4,000 | 40.0 | 10% |" in text
    assert "| winograd, forward, rows | 100 | 20.0% | 4,000 | 40.0 | 40% |" in text
    assert "| winograd, backward, rows | 300 | 60.0% | | | |" in text
    assert "| SGD | 50.0 | | 10.0% | | | | |" in text
    assert "(8%) at 200 GFLOP/s" in text
    assert "left is 460 ms: 360 ms within the groups, 50.0 ms SGD, and 50.0 ms the loss" in text


# What preparing the data costs


def test_cost_of_preparing_data(load):
    contenders = {"fixed_batch": measured([2.0, 4.0], difference=None), "loader": measured([2.2, 4.0])}
    text = load("data_preparation").data_table(race_of(contenders, batches=2))
    assert "in per cent: **5.0** (from 0.0 to 10.0)" in text
    assert "| one fixed batch | 1500 | 1000 | 2000 | 1000 MB |" in text


# The quick benchmark


def test_quick_fails_on_a_gross_loss_only(load):
    quick = load("quick")
    recorded = {"ratios": {"training": 2.0, "inference": 1.0}}
    text, good = quick.verdict({"ratios": {"training": 1.0, "inference": 0.6}}, recorded)
    assert good and "training: 1.00 times PyTorch's speed, recorded 2.00\n" in text
    text, good = quick.verdict({"ratios": {"training": 0.9, "inference": 1.0}}, recorded)
    assert not good and "recorded 2.00: less than 0.5 times as much" in text


def test_quick_takes_the_quickest_turns(load, monkeypatch):
    quick = load("quick")
    contenders = {
        "scratchnet": measured([2.0, 1.0]),
        "eager": measured([3.0, 9.0]),
        "channels_last": measured([4.0, 4.0]),
    }
    monkeypatch.setattr(quick, "measure", lambda *arguments: race_of(contenders))
    assert quick.measure_quick(Silent())["ratios"] == {"training": 3.0, "inference": 3.0}


def test_quick_without_pytorch_is_skipped(load, monkeypatch, capsys):
    quick = load("quick")
    monkeypatch.setattr(quick.importlib.util, "find_spec", lambda name: None)
    assert quick.main([]) == 0
    assert capsys.readouterr().out == "quick benchmark skipped: torch is not installed\n"


def test_quick_records_and_compares(load, monkeypatch, tmp_path, capsys):
    quick = load("quick")
    monkeypatch.setattr(quick.importlib.util, "find_spec", lambda name: name)
    ratios = {"training": 3.0, "inference": 2.0}
    monkeypatch.setattr(quick, "measure_quick", lambda progress: {"ratios": ratios})
    file = ["--file", str(tmp_path / "quick.json")]
    with pytest.raises(SystemExit, match="2"):
        quick.main(file)
    assert "record one with --record" in capsys.readouterr().err
    assert quick.main([*file, "--record"]) == 0
    assert quick.main(file) == 0
    ratios = {"training": 1.4, "inference": 2.0}
    assert quick.main(file) == 1


# All of them


@pytest.fixture
def everything(load, monkeypatch, tmp_path):
    """The program that runs all, with sections that are measured at once, and its folder."""
    program = load("all")
    drawn = []

    def measure_section(name, rounds, tiny, progress):
        if name == "inference-32":
            raise KeyboardInterrupt
        if name == "training-224":
            raise program.WorkerError("out of memory")
        progress.set_description("round 1 of 1")
        contenders = {
            "scratchnet": measured([1.0, 1.0], memory=300.0),
            "eager": measured([2.0, 3.0], memory=500.0),
            "channels_last": measured([2.4, 2.4], memory=400.0),
        }
        return race_of(contenders, batch_norm="norm" in name)

    monkeypatch.setattr(program, "measure_section", measure_section)
    monkeypatch.setattr(program, "draw", lambda *arguments: drawn.append(arguments))
    return SimpleNamespace(main=program.main, folder=tmp_path / "results", drawn=drawn)


def test_all_saves_each_section_and_says_how_to_go_on(everything, capsys):
    options = ["--output", str(everything.folder), "--date", "2026-01-31"]
    assert everything.main([*options, "--only", "training-32", "training-32-norm"]) == 0
    assert everything.main([*options, "--rounds", "2"]) == 1
    captured = capsys.readouterr()
    assert "training-224: out of memory" in captured.err
    assert "--only inference-32 inference-224-1 " in captured.err
    assert " --rounds 2 --date 2026-01-31 --output " in captured.err
    results = json.loads((everything.folder / "2026-01-31.json").read_text())
    assert list(results) == ["training-32", "training-32-norm"]
    text = (everything.folder / "2026-01-31.md").read_text()
    row = "32 px, batch 128 | PyTorch eager, channels last | 128.0 | **2.40** (from 2.40 to 2.40) | 0.75 ("
    assert row in text and row in captured.out
    assert "A training step of vgg16 with batch normalisation" in text
    assert "Not measured: training-224, inference-32" in text
    assert "`python benchmarks/all.py --only training-32 --rounds 2`" in text
    assert str(everything.folder) not in text
    assert len(everything.drawn) == 2
    assert not list(everything.folder.glob("*.part"))


def test_figures_that_mean_nothing_do_not_go_where_the_others_are(everything, capsys):
    with pytest.raises(SystemExit, match="2"):
        everything.main(["--tiny"])
    assert "--tiny needs a folder of its own" in capsys.readouterr().err


def test_pictures(load, tmp_path):
    pytest.importorskip("matplotlib")
    contenders = {"scratchnet": measured([1.0, 1.5]), "eager": measured([2.0, 2.0], memory=None)}
    contenders["scratchnet"]["memory"] = None
    races = {"training-32": race_of(contenders), "peers-training": race_of(contenders)}
    results = {**races, "growth": growth_of("batch", [1, 2]), "threads": growth_of("threads", [1, 2])}
    load("all").draw(results, tmp_path, "day")
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(first) == {"day.svg", "day-growth.svg"}
    assert all(b"<svg" in content for content in first.values())
    load("all").draw(results, tmp_path, "day")
    assert first == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


# Command lines


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
        ("inference.py", ["--rivals", "compile", "--no-compile"], "nobody is left to compare with"),
        ("inference.py", ["--output", "no/such/folder/table.md"], "cannot write"),
        ("growth.py", ["--over", "time"], "invalid choice: 'time'"),
        ("time_by_group.py", ["--rounds", "many"], "not 'many'"),
        ("data_preparation.py", ["--batches", "0"], "not '0'"),
        ("quick.py", ["--file", "no/such/file.json"], "no/such/file.json"),
        ("all.py", ["--only", "nothing"], "invalid choice: 'nothing'"),
        ("all.py", ["--date", "yesterday"], "must be a date such as 2026-01-31"),
    ],
)
def test_arguments_that_make_no_sense(program, arguments, reason):
    if program == "quick.py":
        pytest.importorskip("torch")
    result = run(program, *arguments)
    assert result.returncode == 2
    assert reason in result.stderr
    assert result.stderr.startswith(f"{program}: ") and result.stderr.count("\n") == 1


def test_an_architecture_that_does_not_exist():
    for program in ("data_preparation.py", "time_by_group.py"):
        result = run(program, "--arch", "vgg99")
        assert result.returncode == 2
        assert "architecture must be one of" in result.stderr
        assert "Traceback" not in result.stderr


# Small runs of the real thing


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [[], ["--batch-norm", "--image-size", "64", "--no-compile"]],
    ids=["plain", "batch norm, 64 px"],
)
def test_a_small_run_against_pytorch(tmp_path, more):
    pytest.importorskip("torch")
    result = run("train_step.py", *SMALL, *more, "--output", tmp_path / "table.md")
    assert result.returncode == 0, result.stderr
    assert "| PyTorch eager, channels last |" in result.stdout
    assert ("compiled" in result.stdout) != ("--no-compile" in more)
    assert "losses agree" in result.stdout
    assert (tmp_path / "table.md").read_text() == result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("library, title", [("dezero", "DeZero"), ("jax", "JAX")])
def test_a_small_run_against_a_peer(library, title):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    result = run("train_step.py", *SMALL, "--rivals", library)
    assert result.returncode == 0, result.stderr
    assert f"| {title} |" in result.stdout
    assert "losses agree" in result.stdout


@pytest.mark.slow
def test_a_small_run_of_inference():
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
def test_a_small_run_of_time_by_group(load):
    result = run("time_by_group.py", *SMALL)
    assert result.returncode == 0, result.stderr
    assert "| features.0-2 Conv2d+ReLU+MaxPool2d, " in result.stdout
    assert "Means of the quicker 1 of 2 steps" in result.stdout


@pytest.mark.slow
def test_a_small_run_of_all(tmp_path):
    sections = ["data-preparation", "time-by-group"]
    result = run("all.py", "--tiny", "--rounds", 1, "--output", tmp_path, "--only", *sections)
    assert result.returncode == 0, result.stderr
    text = next(tmp_path.glob("*.md")).read_text()
    assert "With a tiny network" in text
    assert "## Where the time goes" in text
    assert "More time for a training step fed by the loader" in text


# Curves


LOG = """epoch,train_loss,train_accuracy,val_loss,val_accuracy,lr,seconds,images_per_second
1,2.3,0.1,2.2,0.15,0.1,9,100
2,1.9,0.3,1.8,0.35,0.1,9,100
"""


def logged(folder):
    """Return a folder that holds the log of a run."""
    folder.mkdir(parents=True)
    (folder / "log.csv").write_text(LOG)
    return folder


@pytest.fixture
def curves(load, monkeypatch, capsys):
    """Run curves.py in this process; returns its status and what it said."""
    pytest.importorskip("matplotlib")
    module = load("curves")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["curves.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.run(module.main)
        return SimpleNamespace(status=left.value.code, said=capsys.readouterr().err, module=module)

    return call


def test_curves_of_runs_are_drawn_from_their_logs(tmp_path):
    pytest.importorskip("matplotlib")
    logged(tmp_path / "one")
    logged(tmp_path / "two")
    picture = tmp_path / "curves.svg"
    result = run("curves.py", tmp_path / "one", tmp_path / "two" / "log.csv", "--output", picture)
    assert result.returncode == 0 and not result.stderr
    assert "<svg" in picture.read_text()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        *["curves.svg"],
        *["log.csv"] * 2,
        "one",
        "two",
    ]


@pytest.mark.parametrize("ending", [".svg", ".PNG", ".pdf", ".jpg"])
def test_the_ending_of_the_name_says_how_curves_are_drawn(tmp_path, curves, ending):
    picture = tmp_path / f"curves{ending}"
    result = curves(logged(tmp_path / "run"), "--output", picture)
    assert result.status == 0 and not result.said
    begins = {".svg": b"<?xml", ".PNG": b"\x89PNG", ".pdf": b"%PDF", ".jpg": b"\xff\xd8"}
    assert picture.read_bytes().startswith(begins[ending])


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path, curves):
    runs = [logged(tmp_path / name) for name in ("a/demo", "b/demo", "c/b/other")]
    picture = tmp_path / "curves.svg"
    again = runs[0] / "log.csv"
    result = curves(*runs, again, "--output", picture)
    assert result.status == 0 and not result.said
    labels = [line for line in picture.read_text().splitlines() if "demo" in line or "other" in line]
    assert [label.split()[1] for label in labels] == ["a/demo", "b/demo", "other"]


def test_curves_are_named_by_the_folder_that_one_is_in(tmp_path, curves, monkeypatch):
    for name in ("_$1", "run"):
        monkeypatch.chdir(logged(tmp_path / name))
        result = curves("log.csv", "--output", "curves.svg")
        assert result.status == 0 and not result.said
        assert f"{name} -->" in Path("curves.svg").read_text()


@pytest.mark.parametrize("text", ["", "hello", "epoch,loss\n1,2"])
def test_curves_of_what_is_no_log(tmp_path, curves, text):
    (tmp_path / "log.csv").write_text(text)
    for path in (tmp_path, tmp_path / "log.csv"):
        result = curves(path)
        assert result.status == 2 and result.said.startswith(
            f"curves.py: {tmp_path / 'log.csv'} is damaged: "
        )


def test_curves_of_what_is_no_run_say_what_is_wanted_and_make_nothing(tmp_path, curves):
    (tmp_path / "my.csv").write_text(LOG)
    for path in (tmp_path / "my.csv", tmp_path / "absent", tmp_path / "absent" / "log.csv"):
        result = curves(path)
        assert result.status == 2
        assert result.said == f"curves.py: {path} is no run: give a run's folder, or its log.csv\n"
    result = curves(tmp_path)
    assert result.status == 2 and result.said == f"curves.py: {tmp_path} has no log.csv with an epoch in it\n"
    assert [path.name for path in tmp_path.iterdir()] == ["my.csv"]
    result = curves()
    assert result.status == 2 and result.said.count("\n") == 1 and "required: RUN" in result.said


def test_curves_that_cannot_be_written_are_named_before_they_are_drawn(tmp_path, curves):
    run = logged(tmp_path / "run")
    (tmp_path / "folder.svg").mkdir()
    for name, reason in {
        "curves.foo": "its name has to end in .svg, .png, .pdf, .jpg or .webp",
        "curves": "its name has to end in .svg, .png, .pdf, .jpg or .webp",
        "none/curves.svg": f"there is no folder {tmp_path / 'none'}",
        "folder.svg": "it is a folder",
    }.items():
        result = curves(run, "--output", tmp_path / name)
        assert result.status == 2
        assert result.said == f"curves.py: {tmp_path / name} cannot be written: {reason}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.svg", "run"]


def test_curves_on_a_full_disk_leave_the_old_ones(tmp_path, curves, monkeypatch):
    run, picture = logged(tmp_path / "run"), tmp_path / "curves.svg"
    assert curves(run, "--output", picture).status == 0
    before = picture.read_bytes()

    def fill(self, file, **_):
        Path(file).write_text("<sv")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fill)
    result = curves(run, "--output", picture)
    assert result.status == 2
    assert result.said == f"curves.py: {picture} cannot be written: No space left on device\n"
    assert picture.read_bytes() == before and len(list(tmp_path.iterdir())) == 2


def test_curves_without_matplotlib_say_how_to_install_it(tmp_path, curves, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = curves(logged(tmp_path / "run"), "--output", tmp_path / "curves.svg")
    assert result.status == 2 and "pip install '.[plot]'" in result.said


def test_curves_stop_at_ctrl_c(tmp_path, curves, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", interrupt)
    result = curves(logged(tmp_path / "run"), "--output", tmp_path / "curves.svg")
    assert result.status == 130 and result.said == "curves.py: stopped\n"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
