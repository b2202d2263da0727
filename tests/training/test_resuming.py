"""Same seed, same bits; and a resumed run equals one without interruption."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scratchnet.checkpoint import FormatError, load
from scratchnet.tensorfile import read_tensors, write_tensors
from scratchnet.training import (
    RunError,
    predict,
)
from tests.fakes import tiny
from tests.fakes.runs import FILES, bits, fit, prepare
from tests.fakes.writes import in_child, watched

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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("epochs", [0, 1])
def test_a_run_that_is_killed_at_a_rename_goes_on_bit_for_bit(tmp_path, epochs):
    """As its first epoch or a later one is saved; at every other call: ``tests/attack``."""
    tiny.go_on(tmp_path / "whole", 2)
    tiny.go_on(tmp_path / "before", epochs)
    for moment in itertools.count():
        run = tmp_path / str(moment)
        shutil.copytree(tmp_path / "before", run)

        def train(run=run, moment=moment):
            renames = itertools.count()

            def hook(call, *paths):
                if call in ("replace", "unlink") and next(renames) == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

            with watched(hook):
                tiny.go_on(run, 2)

        status, told = in_child(train)
        assert status in (0, -signal.SIGKILL), told
        tiny.go_on(run, 2)
        assert bits(run) == bits(tmp_path / "whole")
        assert set(os.listdir(run)) == FILES
        if status == 0:
            break
    assert moment >= 6


CHILD = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from tests.fakes import tiny
from tests.fakes.runs import prepare
trainer = prepare(sys.argv[2])
trainer.run.write_config({})
trainer.fit(2)
step = trainer.optimizer.step
def stop_in_the_middle():
    step()
    print("in the middle", flush=True)
    time.sleep(float(sys.argv[3]))
trainer.optimizer.step = stop_in_the_middle
trainer.fit(4)
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_run_killed_in_the_middle_of_an_epoch_goes_on_bit_for_bit(uninterrupted, tmp_path, how):
    if os.name == "nt":
        pytest.skip("needs POSIX signals")
    seconds = "60" if how == "SIGKILL" else "0.5"  # a step that is being made is finished
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parents[2]), str(tmp_path / "run"), seconds]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    default = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  (ignored in the background)
    with subprocess.Popen(command, **pipes, preexec_fn=default) as child:
        for line in child.stdout:
            if line.startswith("in the middle"):
                break
        child.send_signal(getattr(signal, how))
        _, errors = child.communicate(timeout=30)
    assert child.returncode != 0
    if how == "SIGINT":
        done = r"after 2 of 4 epochs and \d of 3 steps; --resume --run-dir .*run goes on from there"
        assert re.search(done, errors)
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
    for momentum in (tensors["optimizer.momentum"][:5], tensors["optimizer.momentum"].astype("int32")):
        write_tensors(run / "state.safetensors", {**tensors, "optimizer.momentum": momentum}, header)
        with pytest.raises(RunError, match="state.safetensors is damaged.*optimizer.momentum is"):
            fit(run, 2, resume=True)
    (run / "state.safetensors").unlink()
    with pytest.raises(RunError, match="holds no run to resume: it has no state.safetensors"):
        fit(run, 2, resume=True)


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
