"""Training curves: drawn from logs, and what is wrong with runs or names is said in a sentence."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from scratchnet import cli

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


def test_curves_of_runs_are_drawn_from_their_logs(run, tmp_path):
    pytest.importorskip("matplotlib")
    logged(tmp_path / "one")
    logged(tmp_path / "two")
    image = tmp_path / "curves.svg"
    result = run("curves.py", tmp_path / "one", tmp_path / "two" / "log.csv", "--output", image)
    assert result.returncode == 0 and not result.stderr
    assert "<svg" in image.read_text()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        *["curves.svg"],
        *["log.csv"] * 2,
        "one",
        "two",
    ]


@pytest.mark.parametrize("ending", [".svg", ".PNG", ".pdf", ".jpg"])
def test_the_ending_of_the_name_says_how_curves_are_drawn(tmp_path, curves, ending):
    image = tmp_path / f"curves{ending}"
    result = curves(logged(tmp_path / "run"), "--output", image)
    assert result.status == 0 and not result.said
    begins = {".svg": b"<?xml", ".PNG": b"\x89PNG", ".pdf": b"%PDF", ".jpg": b"\xff\xd8"}
    assert image.read_bytes().startswith(begins[ending])


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path, curves):
    runs = [logged(tmp_path / name) for name in ("a/demo", "b/demo", "c/b/other")]
    image = tmp_path / "curves.svg"
    again = runs[0] / "log.csv"
    result = curves(*runs, again, "--output", image)
    assert result.status == 0 and not result.said
    labels = [line for line in image.read_text().splitlines() if "demo" in line or "other" in line]
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
        "curves.foo": "its name must end in .svg, .png, .pdf, .jpg or .webp",
        "curves": "its name must end in .svg, .png, .pdf, .jpg or .webp",
        "none/curves.svg": f"there is no folder {tmp_path / 'none'}",
        "folder.svg": "it is a folder",
    }.items():
        result = curves(run, "--output", tmp_path / name)
        assert result.status == 2
        assert result.said == f"curves.py: {tmp_path / name} cannot be written: {reason}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.svg", "run"]


def test_curves_on_a_full_disk_leave_the_old_ones(tmp_path, curves, monkeypatch):
    folder, image = logged(tmp_path / "run"), tmp_path / "curves.svg"
    assert curves(folder, "--output", image).status == 0
    before = image.read_bytes()

    def fill(self, file, **_):
        Path(file).write_text("<sv")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fill)
    result = curves(folder, "--output", image)
    assert result.status == 2
    assert result.said == f"curves.py: {image} cannot be written: No space left on device\n"
    assert image.read_bytes() == before and len(list(tmp_path.iterdir())) == 2


def test_curves_without_matplotlib_say_how_to_install_it(tmp_path, curves, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = curves(logged(tmp_path / "run"), "--output", tmp_path / "curves.svg")
    assert result.status == 2 and "pip install '.[plot]'" in result.said
