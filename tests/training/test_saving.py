"""Saving within an epoch, stopping by a signal, and going on from there to the bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from scratchnet.training import Observer, RunError
from scratchnet.training.stopping import Stopped
from tests.fakes.runs import FILES, bits
from tests.fakes.tiny import STEPS, go_on, prepare


class Killed(BaseException):
    """What stands for a kill here."""


class At(Observer):
    """Does something when an event is told for the n-th time."""

    def __init__(self, action, event, n):
        self.action, self.n = action, n
        setattr(self, event, self.told)

    def told(self, *arguments):
        self.n -= 1
        if self.n == 0:
            self.action()


def kill():
    raise Killed


def terminate():
    signal.raise_signal(signal.SIGTERM)


@pytest.fixture(scope="session", params=["layers", "plan"])
def whole(request, tmp_path_factory):
    """A run of three epochs without interruption: its engine, its folder."""
    folder = tmp_path_factory.mktemp("tiny") / request.param
    go_on(folder, engine=request.param)
    return request.param, folder


@pytest.mark.parametrize("step", range(1, 3 * STEPS + 1))
def test_a_run_goes_on_from_any_step_bit_for_bit(whole, tmp_path, step):
    engine, expected = whole
    with pytest.raises(Killed):
        go_on(tmp_path, engine=engine, save_minutes=0.0, observers=[At(kill, "on_step", step)])
    resumed = prepare(tmp_path, engine=engine)
    resumed.resume()
    assert len(resumed.log) * STEPS + resumed.batch == step - 1  # the state of the step before
    go_on(tmp_path, engine=engine)
    assert bits(tmp_path) == bits(expected)
    assert set(os.listdir(tmp_path)) == FILES


def test_a_run_on_a_gpu_goes_on_from_within_an_epoch_bit_for_bit(device, tmp_path, monkeypatch):
    monkeypatch.setattr("scratchnet.training.device.READ_EVERY", 1)
    how = {"backend": device, "engine": "plan"}
    go_on(tmp_path / "whole", **how)
    for step in (1, 2, 4):
        with pytest.raises(Killed):
            go_on(tmp_path / "parts", save_minutes=0.0, observers=[At(kill, "on_step", step)], **how)
    go_on(tmp_path / "parts", **how)
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")


def test_the_state_is_saved_every_so_many_minutes_and_not_more_often(tmp_path, monkeypatch):
    clock = iter(range(0, 100_000, 25))  # every question comes 25 seconds later
    monkeypatch.setattr("scratchnet.training.saving.time.monotonic", lambda: float(next(clock)))
    saved, trainer = [], prepare(tmp_path, save_minutes=1.0)
    write = trainer.run.write_state
    trainer.run.write_state = lambda *a: (saved.append((len(trainer.log), trainer.batch)), write(*a))
    trainer.fit(2)
    assert (1, 0) in saved and (2, 0) in saved
    within = [batch for _, batch in saved if batch]
    assert 1 <= len(within) < 2 * STEPS


@pytest.mark.parametrize(
    "event", ["on_step", "on_loss", "on_validation_step", "on_epoch_end", "on_epoch_begin"]
)
def test_a_signal_is_obeyed_after_the_step_and_nothing_is_lost(whole, tmp_path, event):
    engine, expected = whole
    with pytest.raises(Stopped) as stopped:
        go_on(tmp_path, engine=engine, observers=[At(terminate, event, 2)])
    assert stopped.value.signal == signal.SIGTERM
    resumed = prepare(tmp_path, engine=engine)
    resumed.resume()
    batch = {"on_step": 2, "on_loss": 2, "on_validation_step": 3}.get(event, 0)
    assert (len(resumed.log), resumed.batch) == (2 if event == "on_epoch_end" else int(not batch), batch)
    go_on(tmp_path, engine=engine)
    assert bits(tmp_path) == bits(expected)


def test_what_was_stopped_says_how_far_it_has_come(tmp_path):
    with pytest.raises(
        Stopped, match=r"^after 1 of 3 epochs and 2 of 3 steps; --resume --run-dir .* goes on"
    ):
        go_on(tmp_path, observers=[At(terminate, "on_step", 5)])
    with pytest.raises(Stopped, match=r"^after 0 of 3 epochs and 1 of 3 steps$"):
        prepare(observers=[At(terminate, "on_step", 1)]).fit(3)
    with pytest.raises(Stopped, match=r"^after 3 of 3 epochs; --resume"):
        go_on(tmp_path, observers=[At(terminate, "on_epoch_end", 2)])
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_fit_goes_on_where_it_was_stopped_without_a_run_directory_too(whole):
    engine, expected = whole
    trainer = prepare(engine=engine, observers=[At(terminate, "on_step", 5)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(3)
    trainer.fit(3)
    again = prepare(expected, engine=engine)
    again.resume()
    for ours, theirs in zip(trainer.net.parameters().values(), again.net.parameters().values(), strict=True):
        np.testing.assert_array_equal(ours.data, theirs.data)


def interrupted_within_a_step(folder):
    said = Notices()
    trainer = prepare(folder, observers=[said])
    trainer.optimizer.step = lambda step=trainer.optimizer.step: (step(), raise_interrupt(trainer, 4))
    return trainer, said


def raise_interrupt(trainer, step):
    trainer.steps = getattr(trainer, "steps", 0) + 1
    if trainer.steps == step:
        raise KeyboardInterrupt


class Notices(Observer):
    def __init__(self):
        self.said = []

    def on_notice(self, trainer, sentence):
        self.said.append(sentence)


def test_fit_after_an_interrupt_within_a_step_does_not_go_on_in_silence(whole, tmp_path):
    trainer, _ = interrupted_within_a_step(tmp_path)
    with pytest.raises(Stopped, match=r"^after 1 of 3 epochs; --resume"):
        trainer.fit(3)
    with pytest.raises(RunError, match=r"stopped in the middle of a step.*: call resume\(\) to go back"):
        trainer.fit(3)
    trainer.resume()
    trainer.fit(3)
    if whole[0] == "layers":
        found = bits(tmp_path)
        assert found == bits(whole[1])
    trainer, notices = interrupted_within_a_step(None)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(3)
    trainer.fit(2)
    assert any("stopped in the middle of a step" in sentence for sentence in notices.said)


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from scratchnet import cli
from scratchnet.training import Observer
from tests.fakes.tiny import go_on
class Slow(Observer):
    def on_step(self, trainer, step):
        print("step", flush=True)
cli.run(lambda: go_on(sys.argv[2], 10_000, observers=[Slow()]) and None)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_program_ends_with_the_signals_status_and_the_command_that_goes_on(tmp_path, name, status):
    run = tmp_path / "run"
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parents[2]), str(run)]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    default = lambda: signal.signal(getattr(signal, name), signal.SIG_DFL)  # noqa: E731
    with subprocess.Popen(command, preexec_fn=default, **how) as child:
        for _ in range(4):
            child.stdout.readline()
        child.send_signal(getattr(signal, name))
        _, errors = child.communicate(timeout=60)
    assert child.returncode == status
    assert errors.splitlines()[-1].startswith("-c: stopped after ")
    assert (
        errors.endswith(f"steps; go on with: python -c --resume --run-dir {run}\n")
        or " epochs; go on" in errors
    )
    prepare(run).resume()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_what_is_started_with_nohup_stays_deaf_to_it(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hang_up = At(lambda: signal.raise_signal(signal.SIGHUP), "on_step", 1)
        assert len(go_on(tmp_path, observers=[hang_up]).log) == 3
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_that_saved_nothing_is_resumed_from_the_beginning_or_begun_again(whole, tmp_path):
    engine, expected = whole
    for name in ("resumed", "again"):
        run = tmp_path / name
        with pytest.raises(Killed):
            go_on(run, engine=engine, observers=[At(kill, "on_step", 2)])
        assert os.listdir(run) == ["config.json"]
        notices = Notices()
        trainer = prepare(run, engine=engine, observers=[notices])
        if name == "resumed":
            trainer.resume()
            assert notices.said == [f"{run} has saved nothing yet: it begins at epoch 1"]
        trainer.fit(3)
        assert bits(run) == bits(expected)


def test_a_trainer_refuses_an_interval_that_is_none():
    for wrong in (-1, float("nan"), "10"):
        with pytest.raises(ValueError, match="save_minutes must be"):
            prepare(save_minutes=wrong)


def test_an_epoch_that_is_taken_up_takes_the_time_of_both_its_parts(tmp_path):
    pause = At(lambda: time.sleep(0.2), "on_step", 1)
    with pytest.raises(Stopped):
        go_on(tmp_path, observers=[pause, At(terminate, "on_step", 2)])
    assert 0.2 < go_on(tmp_path).log[0]["seconds"] < 20
