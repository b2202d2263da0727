"""Faults on one rank of ``train --distributed``: all end soon, one says why, and the run resumes."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fakes.mpi import environment, mpirun, needs_mpi, start

TRAIN = [
    "--data", "shapes10", "--arch", "vgg11", "--width", "0.0625", "--classifier-width", "8", "--subset", "60",
    "--validation", "20", "--batch-size", "12", "--lr", "0.01", "--no-test", "--backend", "numpy",
]  # fmt: skip


def program(fault, folder, *more, distributed=True):
    flags = ["--distributed"] if distributed else []
    return ["-m", "tests.fakes.rank_program", fault, *flags, *TRAIN, "--run-dir", folder, *more]


def rows(folder):
    """The log, without what a clock says."""
    with open(Path(folder, "log.csv"), newline="") as file:
        return [{k: v for k, v in row.items() if "second" not in k} for row in csv.DictReader(file)]


def sentence(done):
    """What was said, but for the launcher's and the MPI library's own lines."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("rank_program.py: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@needs_mpi
def test_a_nan_on_one_rank_ends_all_with_the_state_of_the_epoch_before(tmp_path):
    done = mpirun(2, *program("nan", tmp_path / "r", "--epochs", "3"))
    assert (
        done.returncode == 1
        and "epoch 2, batch 3: on rank 1 of 2, it first appeared in the images" in sentence(done)
    )
    assert len(rows(tmp_path / "r")) == 1
    done = mpirun(3, *program("none", tmp_path / "r", "--resume"))  # with another number of ranks
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "r")) == 3


@needs_mpi
@pytest.mark.parametrize(
    "fault, status, said",
    [
        ("seed", 2, "the ranks disagree: --seed is not given on rank 0 and 7 on rank 1"),
        ("other-images", 2, "the ranks disagree: the normalisation in training is"),
        ("full-disk", 2, "No space left on device"),
    ],
)
def test_what_one_rank_meets_ends_all_with_one_sentence(tmp_path, fault, status, said):
    done = mpirun(2, *program(fault, tmp_path / "r", "--epochs", "1"))
    assert done.returncode == status and said in sentence(done)
    assert not (tmp_path / "r" / "state.safetensors").exists()


@needs_mpi
def test_a_signal_to_one_rank_stops_all_after_the_same_step(tmp_path):
    done = mpirun(2, *program("interrupt", tmp_path / "r", "--epochs", "3"))
    assert done.returncode == 130 and "after 1 of 3 epochs and 2 of 5 steps" in sentence(done)
    assert "go on with: mpirun -n 2 " in sentence(done) and "--distributed --resume" in sentence(done)
    assert mpirun(2, *program("none", tmp_path / "r", "--resume")).returncode == 0
    assert mpirun(2, *program("none", tmp_path / "whole", "--epochs", "3")).returncode == 0
    assert rows(tmp_path / "r") == rows(tmp_path / "whole")  # to the bit


@needs_mpi
def test_under_a_launcher_without_distributed_it_says_so_once(tmp_path):
    done = mpirun(2, *program("none", tmp_path / "r", "--epochs", "1", distributed=False))
    assert done.returncode == 2 and "2 processes were started, and each would train alone" in done.stderr
    assert done.stderr.count("add --distributed") == 1 and not (tmp_path / "r").exists()


def test_without_mpi4py_it_says_what_to_install(tmp_path):
    (tmp_path / "mpi4py.py").write_text("raise ImportError('none here')")
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    command = [sys.executable, "-m", "scratchnet", "train", "--distributed", *TRAIN]
    done = subprocess.run(command, env=environment(PYTHONPATH=path), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "needs mpi4py" in done.stderr


def ranks_of(process):
    """The process ids of the ranks that a launcher has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = Path(entry, "cmdline").read_bytes().split(b"\0")
                parents = Path(entry, "environ").read_bytes()
            except OSError:
                continue
            mark = f"LAUNCHED_BY={process.args_mark}".encode()
            if b"tests.fakes.rank_program" in command and mark in parents and b"PMI_RANK=" in parents:
                found.append(int(entry.name))
    return found


@needs_mpi
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc, to find the ranks")
def test_ranks_that_are_killed_at_random_take_all_along_and_every_resume_is_right(tmp_path):
    kills, seed = int(os.environ.get("SCRATCHNET_KILLS", "3")), int(os.environ.get("SCRATCHNET_SEED", "0"))
    chance, folder, more = random.Random(seed), tmp_path / "r", ["--save-minutes", "0.005"]
    whole = mpirun(2, *program("none", tmp_path / "whole", "--epochs", "40", *more))
    assert whole.returncode == 0, whole.stderr
    slowest, done_kills = 0.0, 0
    while done_kills < kills:
        begun = Path(folder, "config.json").exists()
        again = ["--resume"] if begun else ["--epochs", "40"]
        mark = f"{seed}-{done_kills}-{time.time()}"
        out = tmp_path / "out"
        with open(out, "w") as file:
            process = start(2, *program("slow", folder, *again, *more), stdout=file, LAUNCHED_BY=mark)
        process.args_mark = mark
        while process.poll() is None and not (
            Path(folder, "config.json").exists() and len(ranks_of(process)) == 2
        ):
            time.sleep(0.2)
        while done_kills % 2 and process.poll() is None and "Epoch" not in out.read_text():
            time.sleep(0.2)  # every second one while it trains, the others while it starts, too
        time.sleep(chance.uniform(0, 4 if done_kills % 2 else 8))
        ranks = ranks_of(process)
        if process.poll() is not None or not ranks:  # it was done before
            _, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            folder = tmp_path / f"r{done_kills}"  # begin another run
            continue
        os.kill(chance.choice(ranks), signal.SIGKILL)
        began = time.monotonic()
        process.communicate(timeout=10)  # nothing hangs longer
        while ranks_of(process):
            assert time.monotonic() - began < 10
            time.sleep(0.1)
        slowest, done_kills = max(slowest, time.monotonic() - began), done_kills + 1
        assert process.returncode != 0
        epochs = len(rows(folder)) if Path(folder, "log.csv").exists() else 0
        print(
            f"kill {done_kills}: all had ended {time.monotonic() - began:.2f} s later; {epochs} epochs",
            flush=True,
        )
    if Path(folder, "config.json").exists():
        last = mpirun(2, *program("none", folder, "--resume", *more))
        assert last.returncode == 0, last.stderr
    for run in tmp_path.glob("r*"):
        assert rows(run) == rows(tmp_path / "whole")  # to the bit
    print(f"{kills} kills, the slowest end after {slowest:.2f} s")
