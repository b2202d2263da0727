"""The run directory: one folder, which holds all that a run leaves on disk.

====================  ===============================================================================
``config.json``       every setting of the run, and what it ran on
``log.csv``           a row per epoch: losses, accuracies, learning rate, seconds
``best.safetensors``  the weights with the best validation accuracy
``last.safetensors``  the weights after the last epoch
``state.safetensors`` everything that resuming needs: weights, momentum, statistics, generators
``diagnosis.json``    what the doctor found, a list; only with ``--diagnose``
====================  ===============================================================================

Each file is written under a temporary name and then renamed. So after a crash, a full disk or a Ctrl-C each
is whole: either the new one, or the one before. The state is written last and names the epoch; a resumed run
begins after it.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
from math import isfinite
from pathlib import Path
from typing import Any

from scratchnet import checkpoint
from scratchnet.backend import to_numpy
from scratchnet.layers import Layer
from scratchnet.optim import SGD
from scratchnet.tensorfile import PARTIAL, FormatError, open_tensors, read_tensors, replacing, write_tensors
from scratchnet.untrusted import FileError

DIAGNOSES = "diagnosis.json"

COLUMNS = tuple("epoch train_loss train_accuracy val_loss val_accuracy lr seconds images_per_second".split())


class RunError(FileError):
    """A run directory cannot be used. The message says why and what to do."""


class RunDirectory:
    """The folder of one run.

    Parameters
    ----------
    path : path
        Made if it is not there; ``~`` is the home folder.
    read_only : bool
        Nothing is made or written, and the folder must exist.
    header : dict, optional
        What is saved beside the weights: ``class_names``, ``mean``, ``std``, ``data``.

    Raises
    ------
    RunError
        If it cannot be made, or written to; with ``read_only``, if there is none.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> run = RunDirectory(Path(folder.name, "first"))
    >>> run.write_config({"epochs": 15})
    >>> run.read_config()
    {'epochs': 15}
    >>> run.has_state
    False
    """

    def __init__(
        self, path: str | os.PathLike[str], read_only: bool = False, header: dict[str, Any] | None = None
    ):
        self.path, self.header = Path(path).expanduser(), header or {}
        self.config, self.log = self.path / "config.json", self.path / "log.csv"
        self.best, self.last = self.path / "best.safetensors", self.path / "last.safetensors"
        self.state, self.diagnoses = self.path / "state.safetensors", self.path / DIAGNOSES
        if read_only:
            if not self.path.is_dir():
                raise RunError(f"there is no run: {self.path} is no folder")
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with replacing(self.path / ".writable"):
                pass
            (self.path / ".writable").unlink()
        except OSError as error:
            reason = "it is a file" if self.path.is_file() else error.strerror or error
            raise RunError(f"cannot write to the folder {self.path}: {reason}") from error

    @classmethod
    def create(cls, path: str | os.PathLike[str], header: dict[str, Any] | None = None) -> RunDirectory:
        """Return a folder that did not exist before: of this name, or with -2, -3 ... after it."""
        first = Path(path).expanduser()
        for number in itertools.count(1):
            folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise RunError(f"cannot make the folder {folder}: {error.strerror or error}") from error
            break
        return cls(folder, header=header)

    @property
    def has_state(self) -> bool:
        """Whether there is a run here that can be resumed."""
        return self.state.exists()

    @property
    def has_results(self) -> bool:
        """Whether there is anything here that a new run would overwrite."""
        return any(path.exists() for path in (self.state, self.best, self.last, self.log))

    @property
    def files(self) -> tuple[Path, ...]:
        """Where the files of a run are, or will be."""
        return self.config, self.log, self.best, self.last, self.state, self.diagnoses

    def clear(self) -> None:
        """Remove what an earlier run left, and the unfinished files of one that was killed while writing."""
        for path in self.files:
            path.unlink(missing_ok=True)
        self.remove_partial()

    def remove_partial(self) -> None:
        """Remove the unfinished files of a run that was killed while it wrote them."""
        for path in self.files:
            for partial in self.path.glob(f".{path.name}.*{PARTIAL}"):
                partial.unlink()

    def require_space(self, net: Layer) -> None:
        """Raise RunError unless the disk has room for what a run of this network writes."""
        bytes_of_weights = sum(p.size * p.dtype.itemsize for p in net.parameters().values())
        # best, last, state with momentum (2), and the state a second time while it is replaced (2)
        needed = 6 * bytes_of_weights
        needed -= sum(path.stat().st_size for path in (self.best, self.last, self.state) if path.exists())
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise RunError(
                f"the disk of {self.path} has {free >> 20:,} MB left and a run of this network needs "
                f"{-(-needed >> 20):,} MB: free some, or choose another --run-dir"
            )

    def write_config(self, config: dict[str, Any]) -> None:
        """Write ``config.json``."""
        _write_json(self.config, config, indent=2)

    def read_config(self) -> dict[str, Any]:
        """Return what ``config.json`` holds."""
        try:
            config = json.loads(self.config.read_text(encoding="utf-8"))
            if not isinstance(config, dict):
                raise ValueError("not a JSON object")
            return config
        except FileNotFoundError:
            raise RunError(f"{self.path} holds no run: it has no {self.config.name}") from None
        except (ValueError, RecursionError) as error:
            raise RunError(f"{self.config} is damaged: {error}") from error

    def write_log(self, rows: list[dict[str, float]]) -> None:
        """Write ``log.csv``, all of it, so that resuming from an earlier epoch leaves no row twice."""
        with replacing(self.log) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    def read_log(self) -> list[dict[str, float]]:
        """Return the rows of ``log.csv``, one for each epoch that is done; none if there is no file yet."""
        try:
            with open(self.log, newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                if not set(COLUMNS) <= set(reader.fieldnames or ()):
                    raise ValueError(f"its first line does not name {', '.join(COLUMNS)}")
                rows = [{name: float(row[name]) for name in COLUMNS} for row in reader]
            for row in rows:
                row["epoch"] = int(row["epoch"])
                for name, value in row.items():
                    if not isfinite(value):  # training stops before it logs such a thing
                        raise ValueError(f"{name} of epoch {row['epoch']} is {value}")
            return rows
        except FileNotFoundError:
            return []
        except (KeyError, OverflowError, TypeError, ValueError, csv.Error) as error:
            raise RunError(f"{self.log} is damaged: {error}") from error

    def write_epoch(
        self, net: Layer, optimizer: SGD, log: list[dict[str, float]], best_accuracy: float, is_best: bool
    ) -> None:
        """Write what an epoch leaves; the state last, as it is what resuming begins from.

        ``log`` has a row for each epoch that is done, ``best_accuracy`` is that so far, perhaps this epoch's.
        """
        info = {**self.header, "epoch": len(log), "val_accuracy": log[-1]["val_accuracy"]}
        if is_best:
            checkpoint.save(self.best, net, **info)
        checkpoint.save(self.last, net, **info)
        self.write_log(log)
        self.write_state(net, optimizer, {"log": log, "best_accuracy": best_accuracy})

    def write_diagnoses(self, diagnoses: list[dict[str, Any]]) -> None:
        """Write ``diagnosis.json``, all of it."""
        _write_json(self.diagnoses, diagnoses, allow_nan=False)

    def write_state(self, net: Layer, optimizer: SGD, progress: dict[str, Any]) -> None:
        """Write ``state.safetensors``; progress holds ``log`` and ``best_accuracy``."""
        tensors = {f"parameters.{name}": p.data for name, p in net.parameters().items()}
        tensors |= {f"buffers.{name}": array for name, array in net.buffers().items()}
        if optimizer.momentum_buffer is not None:
            tensors["momentum"] = optimizer.momentum_buffer
        generators = {path: rng.bit_generator.state for path, rng in net.generators().items()}
        frozen = [name for name, p in net.parameters().items() if not p.trainable]
        write_tensors(
            self.state,
            {name: to_numpy(array) for name, array in tensors.items()},
            json.dumps({**progress, "generators": generators, "frozen": frozen}),
        )

    def read_state(self, net: Layer, optimizer: SGD) -> dict[str, Any]:
        """Put a network and its optimizer back where they were, bit for bit, and return the progress.

        RunError is raised if there is no state, or it is damaged or of another network; FileNotFoundError or
        FormatError, if the best weights so far, which the run will need in the end, are missing or damaged.
        """
        try:
            tensors, header = read_tensors(self.state)
            progress = json.loads(header)
            backend = net.backend
            frozen = progress.get("frozen", [])  # which states did not have at first
            for name, p in net.parameters().items():
                p.data = backend.asarray(tensors[f"parameters.{name}"])
                p.trainable = name not in frozen
            for name, array in net.buffers().items():
                array[...] = backend.asarray(tensors[f"buffers.{name}"])
            if "momentum" in tensors:
                optimizer.momentum_buffer = backend.asarray(tensors["momentum"])
                have, wanted = optimizer.momentum_buffer, sum(p.size for p in optimizer.trainable().values())
                if have.shape != (wanted,) or have.dtype != net.dtype:
                    raise ValueError(f"momentum is {have.dtype} {have.shape}, not {net.dtype} {(wanted,)}")
            for path, rng in net.generators().items():
                rng.bit_generator.state = progress["generators"][path]
            log = [{name: row[name] + 0 for name in COLUMNS} for row in progress["log"]]  # of numbers
            progress = {"log": log, "best_accuracy": float(progress["best_accuracy"])}
        except FileNotFoundError:
            raise RunError(f"{self.path} holds no run to resume: it has no {self.state.name}") from None
        except (AttributeError, FormatError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise RunError(f"{self.state} is damaged, or of another network: {error}") from error
        with open_tensors(self.best):
            return progress


def _write_json(path: Path, value: Any, **how: Any) -> None:
    with replacing(path) as temporary:
        Path(temporary).write_text(json.dumps(value, **how) + "\n", encoding="utf-8")
