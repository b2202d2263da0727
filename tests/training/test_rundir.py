"""The run directory: always whole, and each file of it named where it is damaged."""

import os
from types import SimpleNamespace

import pytest

from scratchnet import tensorfile
from scratchnet.training import (
    RunDirectory,
    RunError,
)
from scratchnet.training.rundir import COLUMNS
from tests.fakes.runs import FILES, fit, prepare

# The run directory


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write to the folder .*file.run"):
        RunDirectory(tmp_path / "file" / "run")
    with pytest.raises(RunError, match="cannot write to the folder .*file: it is a file"):
        RunDirectory(tmp_path / "file")


def test_opening_a_run_directory_leaves_nothing_in_it(tmp_path):
    RunDirectory(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []


def test_who_only_looks_makes_and_writes_nothing(uninterrupted, tmp_path):
    with pytest.raises(RunError, match="there is no run: .*nowhere is no folder"):
        RunDirectory(tmp_path / "nowhere", read_only=True)
    assert not (tmp_path / "nowhere").exists()
    before = {path.name: path.stat().st_mtime_ns for path in [uninterrupted, *uninterrupted.iterdir()]}
    RunDirectory(uninterrupted, read_only=True).read_log()
    assert before == {
        path.name: path.stat().st_mtime_ns for path in [uninterrupted, *uninterrupted.iterdir()]
    }


def test_the_log_is_read_as_it_was_written(uninterrupted, tmp_path):
    rows = RunDirectory(uninterrupted, read_only=True).read_log()
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    run = RunDirectory(tmp_path)
    assert run.read_log() == []
    run.write_log(rows)
    assert run.read_log() == rows


@pytest.mark.parametrize(
    "text",
    [
        "no log at all",
        "epoch,loss\n1,2\n",
        f"{','.join(COLUMNS)}\n1,2,three\n",
        f"{','.join(COLUMNS)}\nnan{',1' * (len(COLUMNS) - 1)}\n",
        f"{','.join(COLUMNS)}\ninf{',1' * (len(COLUMNS) - 1)}\n",
        "\xff\xfe",
    ],
)
def test_a_damaged_log_is_named(tmp_path, text):
    (tmp_path / "log.csv").write_text(text, encoding="latin-1")
    with pytest.raises(RunError, match="log.csv is damaged"):
        RunDirectory(tmp_path).read_log()


def test_a_disk_without_room_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100_000))
    with pytest.raises(RunError, match=r"has 0 MB left and a run of this network needs 2 MB: free some, or"):
        RunDirectory(tmp_path).require_space(prepare().net)


def test_the_room_that_a_disk_needs_is_that_of_all_that_the_optimizer_keeps(tmp_path, monkeypatch):
    trainer = prepare(tmp_path)
    weights = sum(p.size * 4 for p in trainer.net.parameters().values())
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=9 * weights))
    trainer.run.require_space(trainer.net, kept=1)
    with pytest.raises(RunError, match="MB left and a run of this network needs"):
        trainer.run.require_space(trainer.net, kept=2)
    trainer.net.freeze("features")  # nothing is kept for what is not trained
    trainer.net.freeze("classifier.0")
    trainer.run.require_space(trainer.net, kept=2)


def test_going_on_needs_only_the_room_that_the_run_does_not_take_already(tmp_path, monkeypatch):
    trainer = fit(tmp_path, 1)
    weights = sum(p.size * 4 for p in trainer.net.parameters().values())
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=4 * weights))
    trainer.run.require_space(trainer.net)
    with pytest.raises(RunError, match="MB left and a run of this network needs"):
        RunDirectory(tmp_path / "another").require_space(trainer.net)


def test_a_disk_that_fills_up_is_named_and_leaves_the_epoch_before(tmp_path, monkeypatch):
    trainer = fit(tmp_path, 1)
    before = {name: (tmp_path / name).read_bytes() for name in FILES}

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorfile, "_write", full)
    with pytest.raises(OSError, match="last.safetensors.pending cannot be written: No space left on device"):
        trainer.fit(2)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == before
    assert set(os.listdir(tmp_path)) == FILES


def test_what_a_killed_run_left_unfinished_can_be_removed(tmp_path):
    run = RunDirectory(tmp_path)
    ours = (".best.safetensors.x1.partial", ".config.json.x2.partial", ".last.safetensors.pending")
    for name in (*ours, "..last.safetensors.pending.x3.partial", "notes.txt", ".mine.partial", ".lock"):
        (tmp_path / name).write_text("")
    with run.locked():
        assert set(os.listdir(tmp_path)) == {"notes.txt", ".mine.partial", ".lock"}
    assert set(os.listdir(tmp_path)) == {"notes.txt", ".mine.partial"}
    assert not run.has_results
    fit(tmp_path, 1)
    assert run.has_results
    run.clear()
    assert set(os.listdir(tmp_path)) == {"notes.txt", ".mine.partial"}


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_damaged_configuration_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunError, match="config.json is damaged"):
        RunDirectory(tmp_path).read_config()


# One process has it at a time


def test_a_folder_that_another_has_is_refused_with_whose_it_is(tmp_path):
    run, other = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run")
    words = r"run is in use by process \d+ on .* since .*: wait until that has ended, or choose another"
    with run.locked():
        with pytest.raises(RunError, match=words):
            other.lock()
        with run.locked():  # has it already
            pass
        with pytest.raises(RunError, match=words):
            prepare(tmp_path / "run").fit(1)
    other.lock()
    other.release()
    assert os.listdir(tmp_path / "run") == []


def test_a_trainer_does_not_write_over_a_run_that_it_has_not_resumed(tmp_path):
    fit(tmp_path, 1)
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    other = prepare(tmp_path)
    with pytest.raises(RunError, match="holds another run than this trainer's: call resume"):
        other.fit(1)
    other.resume()
    fit(tmp_path, 2, resume=True)
    with pytest.raises(RunError, match="holds another run than this trainer's: call resume"):
        other.fit(3)  # another has gone on with it meanwhile
    (tmp_path / "state.safetensors").unlink()
    with pytest.raises(RunError, match="holds another run than this trainer's: remove it"):
        prepare(tmp_path).fit(1)
    assert before.keys() - {"state.safetensors"} == set(os.listdir(tmp_path))
