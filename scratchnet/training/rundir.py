"""The run directory: one folder, which holds all that a run leaves on disk.

====================  ===============================================================================
``config.json``       every setting of the run, and what it ran on
``log.csv``           a row per epoch: losses, accuracies, learning rate, seconds
``best.safetensors``  the weights with the best validation accuracy
``last.safetensors``  the weights after the last epoch
``state.safetensors`` everything that resuming needs, see ``snapshot.py``
``diagnosis.json``    what the doctor found, a list; only with ``--diagnose``
====================  ===============================================================================

One process has the folder at a time: it holds the lock on the file ``.lock`` (see ``locks.py``). Each file is
written under a temporary name and then renamed: so it is whole after a crash, a full disk or a power cut.

What an epoch leaves appears as a whole, too. New weights are written as ``.best.safetensors.pending`` and
``.last.safetensors.pending``; then the state, which has their digests; then they are renamed. A run that is
killed before the state has its name has not done the epoch; after that, the next one to lock the folder
renames what the state names (``RunDirectory.settle``).
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from scratchnet import checkpoint
from scratchnet.layers import Layer
from scratchnet.locks import LOCK, InUse, Lock
from scratchnet.tensorfile import (
    DIGEST,
    HEADER,
    PARTIAL,
    FormatError,
    digest_of,
    metadata_of,
    open_tensors,
    read_tensors,
    replacing,
    sync_folder,
    write_tensors,
)
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
    settings : dict, optional
        What must be the same when the run is resumed: the state holds it, too.

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
        self,
        path: str | os.PathLike[str],
        read_only: bool = False,
        header: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
    ):
        self.path, self.header, self.settings = Path(path).expanduser(), header or {}, settings or {}
        self.config, self.log = self.path / "config.json", self.path / "log.csv"
        self.best, self.last = self.path / "best.safetensors", self.path / "last.safetensors"
        self.state, self.diagnoses = self.path / "state.safetensors", self.path / DIAGNOSES
        self._lock: Lock | None = None
        if read_only:
            if not self.path.is_dir():
                raise RunError(f"there is no run: {self.path} is no folder")
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            Lock(self.path / LOCK).release()  # so that a folder without permission is refused here
        except InUse:  # who only looks may; who writes takes the lock, and is told whose it is
            pass
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

    # Who has the folder, and what it holds

    def lock(self) -> None:
        """Have the folder from now on, until ``release`` or the end of the process; RunError if another has.

        What a process that was killed left half done is then completed or removed, see ``settle``.
        """
        if self._lock is not None:
            return
        try:
            self._lock = Lock(self.path / LOCK, what=str(self.path))
        except InUse as error:
            raise RunError(f"{error}: wait until that has ended, or choose another --run-dir") from error
        except OSError as error:
            raise RunError(f"cannot write to the folder {self.path}: {error.strerror or error}") from error
        self.settle()

    def release(self) -> None:
        """Let others have the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Have the folder within this context, and afterwards if that was so before."""
        had_it = self._lock is not None
        self.lock()
        try:
            yield
        finally:
            if not had_it:
                self.release()

    @property
    def has_state(self) -> bool:
        """Whether there is a run here that can be resumed after its last saved step."""
        return self.state.exists()

    @property
    def is_begun(self) -> bool:
        """Whether a run has begun here and saved nothing yet: it may be resumed or begun again."""
        return self.config.exists() and not self.has_results

    @property
    def has_results(self) -> bool:
        """Whether there is anything here that a new run would overwrite."""
        return any(path.exists() for path in (self.state, self.best, self.last, self.log))

    @property
    def version(self) -> tuple[int, ...]:
        """What tells a state from one that was written before or after it; empty if there is none."""
        try:
            found = self.state.stat()
        except FileNotFoundError:
            return ()
        return found.st_ino, found.st_size, found.st_mtime_ns

    @property
    def files(self) -> tuple[Path, ...]:
        """Where the files of a run are, or will be."""
        return self.config, self.log, self.best, self.last, self.state, self.diagnoses

    def clear(self) -> None:
        """Remove what an earlier run left, and the unfinished files of one that was killed while writing."""
        for path in (self.state, *self.files):  # the state first: what is left of the others is no run
            path.unlink(missing_ok=True)
        self.settle()

    def settle(self) -> None:
        """Complete what was interrupted after its state was written, and remove what was before that.

        Only for the one that has the folder, since the unfinished files of a run that is alive go, too.
        """
        try:
            named = json.loads(metadata_of(self.state).get(HEADER, "{}")).get("files", {})
        except FileNotFoundError:
            named = {}
        except (FormatError, ValueError, AttributeError, RecursionError):
            return  # it is said on resuming
        for path in (self.best, self.last):
            pending = _pending(path)
            if (found := digest_of(pending)) and found == named.get(path.name):
                os.replace(pending, path)
            pending.unlink(missing_ok=True)
        sync_folder(self.path)
        for path in (*self.files, *map(_pending, (self.best, self.last))):
            for partial in self.path.glob(f".{path.name}.*{PARTIAL}"):
                partial.unlink(missing_ok=True)

    def require_space(self, net: Layer, kept: int = 1) -> None:
        """Raise RunError unless the disk has room for what a run of this network writes.

        ``kept`` says how many numbers the optimizer keeps for each that is trained.
        """
        parameters = net.parameters().values()
        bytes_of_weights = sum(p.size * p.dtype.itemsize for p in parameters)
        bytes_kept = kept * sum(p.size * p.dtype.itemsize for p in parameters if p.trainable)
        # best, last, and state, all of them twice until the new ones replace the old
        needed = 2 * (3 * bytes_of_weights + bytes_kept)
        needed -= sum(path.stat().st_size for path in (self.best, self.last, self.state) if path.exists())
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise RunError(
                f"the disk of {self.path} has {free >> 20:,} MB left and a run of this network needs "
                f"{-(-needed >> 20):,} MB: free some, or choose another --run-dir"
            )

    def write_config(self, config: dict[str, Any]) -> None:
        """Write ``config.json``, unless another process has the folder."""
        with self.locked():
            _write_json(self.config, config | {DIGEST: _digest_of_json(config)}, indent=2)

    def read_config(self) -> dict[str, Any]:
        """Return what ``config.json`` holds."""
        return self._read_config()[0]

    def _read_config(self) -> tuple[dict[str, Any], bool]:
        """Return what ``config.json`` holds, and whether it is as it was written, as far as it says."""
        try:
            config = json.loads(self.config.read_text(encoding="utf-8"))
            if not isinstance(config, dict):
                raise ValueError("not a JSON object")
            written = config.pop(DIGEST, None)
            return config, written in (None, _digest_of_json(config))
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
        self, net: Layer, tensors: Mapping[str, np.ndarray], header: dict[str, Any], is_best: bool
    ) -> None:
        """Write what an epoch leaves: weights, state and log, which appear together.

        Parameters
        ----------
        net : Layer
        tensors, header
            Those of the state, see ``snapshot.py``.
        is_best : bool
            Whether its weights are the best so far.
        """
        log = header["log"]
        info = {
            **self.header,
            "run": header["run"],
            "epoch": len(log),
            "val_accuracy": log[-1]["val_accuracy"],
        }
        try:
            for path in (self.best, self.last) if is_best else (self.last,):
                checkpoint.save(_pending(path), net, **info)
            self.write_state(tensors, header)
        finally:
            self.settle()
        self.write_log(log)

    def write_diagnoses(self, diagnoses: list[dict[str, Any]]) -> None:
        """Write ``diagnosis.json``, all of it."""
        _write_json(self.diagnoses, diagnoses, allow_nan=False)

    def write_state(self, tensors: Mapping[str, np.ndarray], header: dict[str, Any]) -> None:
        """Write ``state.safetensors``, and in it the digests of the weights that belong to it."""
        files = {path.name: digest_of(_pending(path)) or digest_of(path) for path in (self.best, self.last)}
        write_tensors(self.state, tensors, json.dumps(header | {"files": files, "settings": self.settings}))

    def read_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the tensors and the header of the state.

        RunError is raised if there is none, if it is damaged, or if the other files are not those that belong
        to it; FileNotFoundError or FormatError, if the best weights so far, which the run will need in the
        end, are missing or damaged.
        """
        try:
            tensors, text = read_tensors(self.state)
            header = json.loads(text)
            if not isinstance(header, dict):
                raise ValueError("its header is no JSON object")
        except FileNotFoundError:
            raise RunError(f"{self.path} holds no run to resume: it has no {self.state.name}") from None
        except (FormatError, ValueError, RecursionError) as error:
            raise RunError(f"{self.state} is damaged: {error}") from error
        return tensors, header

    def what_was_edited(self) -> list[str]:
        """Return a sentence if ``config.json``, which people may edit, is not as it was written."""
        if not self.config.exists() or self._read_config()[1]:
            return []
        return [f"{self.config} is not as the run wrote it: it was edited, or is damaged"]

    def check_files(self, header: dict[str, Any]) -> None:
        """Raise an error unless config, log and weights are those that belong to a state with this header."""
        config = self.read_config() if self.config.exists() else {}
        for key, value in header.get("settings", {}).items():
            if key in self.settings and self.settings[key] != value:
                changed = f"its option {key} is {self.settings[key]}, and was {value}"
                raise RunError(
                    f"{self.config} does not belong to {self.state.name}: {changed} when the run began"
                )
        named, log = header.get("files", {}), header["log"]
        for path in (self.best, self.last):
            if not path.exists() and (path == self.last or not log):
                continue  # the next epoch writes it
            with open_tensors(path) as file:
                info = json.loads(file.metadata.get(HEADER, "{}"))
                if not isinstance(info, dict):
                    raise file.error("has a damaged header: not a JSON object")
                if header.get("run") != info.get("run", header.get("run")):
                    raise RunError(f"{path} is of another run than {self.state.name}")
                if path.name in named and file.metadata.get(DIGEST) != named[path.name]:
                    of = f"epoch {info['epoch']}" if "epoch" in info else "another time"
                    raise RunError(
                        f"{path} holds the weights of {of}, not those that {self.state.name} names after "
                        f"{len(log)} epochs"
                    )
        if header.get("run") != config.get("run", header.get("run")):
            raise RunError(f"{self.config} is of another run than {self.state.name}")
        written = self.read_log()
        if self.log.exists() and written not in (log, log[:-1]):  # a run may have been killed between the two
            raise RunError(
                f"{self.log} has {len(written)} epochs, and they are not the {len(log)} of {self.state.name}"
            )


def _pending(path: Path) -> Path:
    """Return the name that new weights have until the state that belongs to them is on the disk."""
    return path.with_name(f".{path.name}.pending")


def _digest_of_json(value: Any) -> str:
    """Return the SHA-256 of a value as JSON has it, however it is written."""
    text = json.dumps(json.loads(json.dumps(value)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _write_json(path: Path, value: Any, **how: Any) -> None:
    with replacing(path) as temporary:
        Path(temporary).write_text(json.dumps(value, **how) + "\n", encoding="utf-8")
