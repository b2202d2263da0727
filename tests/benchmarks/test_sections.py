"""Sections of the benchmarks' page: growth, groups, data preparation, the quick benchmark, all of them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from tests.fakes.measurements import MACHINE, TASK, Silent, growth_of, measured, race_of

# Growth


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
    from scratchnet.plans.cpu.calls import Calls, Phase

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
    assert "leaves 460 ms: 360 ms within the groups, 50.0 ms in SGD, and 50.0 ms in the loss" in text


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


def test_quick_takes_the_fastest_turns(load, monkeypatch):
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


def test_figures(load, tmp_path):
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
