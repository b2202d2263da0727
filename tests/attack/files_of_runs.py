"""Mutants of what a run leaves."""

from __future__ import annotations

import json
from pathlib import Path

from scratchnet.tensorfile import FormatError
from scratchnet.training import RunDirectory, RunError
from scratchnet.training.options import read_options
from tests.attack.files import BOUND, Target, besiege, with_other_json
from tests.attack.files_of_weights import with_another_header
from tests.attack.registry import Tally, attack
from tests.fakes.runs import prepare


@attack("config.json", BOUND, 10_000)
def configurations(tally: Tally) -> None:
    from scratchnet.training.options import DEFAULTS

    whole = {"options": DEFAULTS, "class_names": ["a", "b"], "mean": [0.5] * 3, "std": [0.2] * 3}
    run = RunDirectory(tally.folder / "run")
    run.write_config(whole)
    seeds = [run.config.read_bytes(), json.dumps(whole, indent=1).encode()]
    besiege(
        tally,
        Target("run/config.json", seeds, lambda path: read_options(run), (RunError,), [with_other_json]),
    )


@attack("log.csv", BOUND, 10_000)
def logs(tally: Tally) -> None:
    run = RunDirectory(tally.folder / "run")
    names = "epoch train_loss train_accuracy val_loss val_accuracy lr seconds images_per_second".split()
    run.write_log([dict.fromkeys(names, 0.5) | {"epoch": k + 1} for k in range(5)])
    besiege(tally, Target("run/log.csv", [run.log.read_bytes()], lambda path: run.read_log(), (RunError,)))


@attack("state", BOUND, 3_000)
def states(tally: Tally) -> None:
    """Resume from mutants of what a run saved: as the trainer would."""
    folder = tally.folder / "run"
    trainer = prepare(folder, n=16)
    trainer.observers = ()
    trainer.run.write_config({})
    trainer.fit(1)

    def read(path: Path) -> None:
        again = prepare(None, n=16)
        again.observers, again.run = (), trainer.run
        again.resume()

    documented = (RunError, FormatError, FileNotFoundError)
    target = Target(
        "run/state.safetensors", [trainer.run.state.read_bytes()], read, documented, [with_another_header]
    )
    besiege(tally, target)
