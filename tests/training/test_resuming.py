"""Same seed, same bits; and a resumed run equals one without interruption."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scratchnet import checkpoint
from scratchnet.checkpoint import FormatError, load
from scratchnet.tensorfile import read_tensors, write_tensors
from scratchnet.training import (
    RunError,
    predict,
)
from tests.fakes.runs import FILES, bits, fit, prepare

# Same seed, same bits; and going on


def test_the_same_seed_gives_the_same_bits(uninterrupted, tmp_path):
    fit(tmp_path / "again", 4)
    assert bits(tmp_path / "again") == bits(uninterrupted)


def test_another_seed_gives_other_bits(uninterrupted, tmp_path):
    fit(tmp_path / "other", 4, seed=1)
    ours, theirs = bits(tmp_path / "other"), bits(uninterrupted)
    assert ours["parameters.features.0.weight"] != theirs["parameters.features.0.weight"]
    assert ours["log"] != theirs["log"]


@pytest.mark.parametrize("stops", [(1,), (3,), (1, 2, 3)])
def test_going_on_equals_an_uninterrupted_run_bit_for_bit(uninterrupted, tmp_path, stops):
    fit(tmp_path / "run", stops[0])
    for epochs in (*stops[1:], 4):
        trainer = fit(tmp_path / "run", epochs, resume=True)
    assert bits(tmp_path / "run") == bits(uninterrupted)
    assert len(trainer.log) == 4


def test_going_on_works_without_momentum_and_batch_norm_too(tmp_path):
    plain = {"momentum": 0.0, "batch_norm": False}
    fit(tmp_path / "whole", 2, **plain)
    fit(tmp_path / "parts", 1, **plain)
    fit(tmp_path / "parts", 2, resume=True, **plain)
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")


def test_going_on_works_on_another_array_library_too(tmp_path, device):
    fit(tmp_path / "whole", 2, backend=device)
    fit(tmp_path / "parts", 1, backend=device)
    trainer = fit(tmp_path / "parts", 2, resume=True, backend=device)
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")
    assert trainer.net.backend.xp is device.xp
    x = np.zeros((2, 32, 32, 3), "float32")
    again = load(tmp_path / "parts" / "last.safetensors", device)
    assert (predict(again, x) == predict(trainer.net, x)).all()


def test_going_on_with_a_finished_run_changes_nothing_and_says_the_result(uninterrupted, capsys):
    before = {name: (uninterrupted / name).read_bytes() for name in FILES}
    fit(uninterrupted, 4, resume=True)
    assert {name: (uninterrupted / name).read_bytes() for name in FILES} == before
    out = capsys.readouterr().out
    assert "Epoch" not in out and out.startswith("Training complete in")


class Killed(BaseException):
    """What stands for a kill -9 here: nothing catches it."""


@pytest.mark.parametrize("moment", ["best", "last", "log", "state"])
def test_a_run_that_was_killed_while_writing_goes_on_bit_for_bit(
    uninterrupted, tmp_path, monkeypatch, moment
):
    """In epoch 3, before each of the files: those before it are of epoch 3, those after it of epoch 2."""
    trainer = prepare(tmp_path / "run")
    trainer.run.write_config({})
    trainer.fit(2)
    trainer.best_accuracy = min(trainer.best_accuracy, 0.0) if moment == "best" else trainer.best_accuracy

    def kill(*arguments, **keywords):
        raise Killed

    save = checkpoint.save
    with monkeypatch.context() as patch:
        if moment in ("best", "last"):
            wanted = getattr(trainer.run, moment)
            patch.setattr(checkpoint, "save", lambda p, *a, **k: kill() if p == wanted else save(p, *a, **k))
        else:
            patch.setattr(trainer.run, f"write_{moment}", kill)
        with pytest.raises(Killed):
            trainer.fit(3)
    fit(tmp_path / "run", 4, resume=True)
    assert bits(tmp_path / "run") == bits(uninterrupted)


CHILD = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from tests.fakes.runs import prepare
trainer = prepare(sys.argv[2])
trainer.run.write_config({})
trainer.fit(2)
step = trainer.optimizer.step
def stop_in_the_middle():
    step()
    print("in the middle", flush=True)
    time.sleep(60)
trainer.optimizer.step = stop_in_the_middle
trainer.fit(4)
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_run_killed_in_the_middle_of_an_epoch_goes_on_bit_for_bit(uninterrupted, tmp_path, how):
    if os.name == "nt":
        pytest.skip("needs POSIX signals")
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parents[2]), str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            if line.startswith("in the middle"):
                break
        child.send_signal(getattr(signal, how))
        _, errors = child.communicate(timeout=30)
    assert child.returncode != 0
    if how == "SIGINT":
        assert f"after 2 of 4 epochs; --resume --run-dir {tmp_path / 'run'} goes on from there" in errors
    fit(tmp_path / "run", 4, resume=True)
    assert bits(tmp_path / "run") == bits(uninterrupted)


def test_a_state_that_is_missing_damaged_or_of_another_network_is_named(tmp_path):
    run = tmp_path / "run"
    fit(run, 1)
    with pytest.raises(RunError, match="state.safetensors is damaged, or of another network"):
        fit(run, 2, resume=True, batch_norm=False)
    content = (run / "state.safetensors").read_bytes()
    (run / "state.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match="state.safetensors is damaged"):
        fit(run, 2, resume=True)
    write_tensors(run / "state.safetensors", *read_tensors(run / "last.safetensors"))
    with pytest.raises(RunError, match="state.safetensors is damaged, or of another network"):
        fit(run, 2, resume=True)
    fit(tmp_path / "other", 1)
    tensors, header = read_tensors(tmp_path / "other" / "state.safetensors")
    for momentum in (tensors["momentum"][:5], tensors["momentum"].astype("int32")):
        write_tensors(run / "state.safetensors", {**tensors, "momentum": momentum}, header)
        with pytest.raises(RunError, match="state.safetensors is damaged.*momentum is"):
            fit(run, 2, resume=True)
    (run / "state.safetensors").unlink()
    with pytest.raises(RunError, match="holds no run to resume: it has no state.safetensors"):
        fit(run, 2, resume=True)


def test_a_state_that_does_not_say_what_is_frozen_is_one_in_which_everything_learns(uninterrupted, tmp_path):
    fit(tmp_path / "run", 2)
    state = tmp_path / "run" / "state.safetensors"
    tensors, header = read_tensors(state)
    write_tensors(state, tensors, json.dumps({k: v for k, v in json.loads(header).items() if k != "frozen"}))
    fit(tmp_path / "run", 4, resume=True)
    assert bits(tmp_path / "run") == bits(uninterrupted)


def test_a_run_whose_best_weights_are_gone_is_refused_before_it_trains(tmp_path):
    fit(tmp_path, 1)
    best = tmp_path / "best.safetensors"
    content = best.read_bytes()
    best.write_bytes(content[: len(content) // 2])
    with pytest.raises(FormatError, match=r"best\.safetensors"):
        fit(tmp_path, 2, resume=True)
    best.unlink()
    with pytest.raises(FileNotFoundError, match=r"best\.safetensors"):
        fit(tmp_path, 2, resume=True)


def test_a_run_that_has_done_more_epochs_is_not_made_shorter(tmp_path):
    fit(tmp_path, 2)
    trainer = prepare(tmp_path)
    with pytest.raises(RunError, match="has done 2 epochs already, more than 1"):
        trainer.resume(1)
    prepare(tmp_path).resume(2)


@pytest.mark.parametrize(
    "header",
    ["[]", "{", "{}", "[" * 100_000, '{"log": 5}']
    + [{"log": wrong} for wrong in (5, [1], [{}], "abc", {"epoch": 1})]
    + [{"best_accuracy": "high"}, {"generators": []}, {"generators": {"classifier.2": 1}}],
)
def test_a_state_whose_header_is_nonsense_is_named(tmp_path, header):
    fit(tmp_path, 1)
    tensors, before = read_tensors(tmp_path / "state.safetensors")
    header = header if isinstance(header, str) else json.dumps(json.loads(before) | header)
    write_tensors(tmp_path / "state.safetensors", tensors, header)
    with pytest.raises(RunError, match="state.safetensors is damaged"):
        fit(tmp_path, 2, resume=True)
