"""Snapshots: all that resuming needs, taken after any step, checked against a trainer, and put back.

A snapshot has tensors (parameters, running statistics, what the optimizer keeps) and a header that is JSON:

================  =======================================================================================
``run``           the run's identity: it follows from what decides its numbers
``log``           a row for each epoch that is done; ``best_accuracy`` is the best of them
``batch``         how many batches of the next epoch are done; ``totals`` and ``seconds`` are those of them
``learning_rate`` of the last step, what multiplies the schedule's, and how often training was rolled back
``generators``    the states of all generators in the network
``frozen``        the parameters that are not trained; ``optimizer`` has all of its parameters
``described``     what a resumed run should have in common with this one, by name
``machine``       what the bits depend on besides: workers, kernels, versions
================  =======================================================================================
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from copy import deepcopy
from dataclasses import is_dataclass
from functools import cache
from hashlib import sha256
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_info

import scratchnet
from scratchnet import checks, workers
from scratchnet.backend import to_numpy
from scratchnet.data import Augmentation
from scratchnet.digests import Bytes, digest
from scratchnet.training.observers import EpochTotals
from scratchnet.training.rundir import COLUMNS, RunError

if TYPE_CHECKING:
    from scratchnet.training.trainer import Trainer

# What must not change within an epoch, since its first part was made with it
OF_EPOCHS = ("batch size", "order", "training images")


class Snapshot(NamedTuple):
    """Tensors on the host, and the header."""

    tensors: dict[str, np.ndarray]
    header: dict[str, Any]


def take(trainer: Trainer, copy: bool = False) -> Snapshot:
    """Take a snapshot between two steps; without ``copy`` its tensors may be the network's own."""
    net, optimizer = trainer.net, trainer.optimizer
    arrays = {f"parameters.{name}": p.data for name, p in net.parameters().items()}
    arrays |= {f"buffers.{name}": array for name, array in net.buffers().items()}
    arrays |= {f"optimizer.{name}": array for name, array in optimizer.state().items()}
    tensors = {name: to_numpy(array) for name, array in arrays.items()}
    rate = {"last": optimizer.lr, "factor": trainer.rate_factor, "rollbacks": trainer.rollbacks}
    header = {
        "run": trainer.identity,
        **{"log": trainer.log, "best_accuracy": trainer.best_accuracy, "learning_rate": rate},
        **{"batch": trainer.batch, "totals": [*(trainer.totals if trainer.batch else EpochTotals())]},
        "seconds": trainer.seconds,
        "generators": generators_of(trainer),
        "frozen": [name for name, p in net.parameters().items() if not p.trainable],
        "optimizer": [type(optimizer).__name__, *optimizer.parameters],
        **{"described": described(trainer), "machine": machine(trainer)},
    }
    if copy:
        tensors = {name: array.copy() for name, array in tensors.items()}
    return Snapshot(tensors, deepcopy(header))


def is_finite(snapshot: Snapshot) -> bool:
    """Tell whether no parameter is NaN or infinite."""
    return all(np.isfinite(a).all() for name, a in snapshot.tensors.items() if name.startswith("parameters."))


def generators_of(trainer: Trainer) -> dict[str, Any]:
    """Return the states of all generators; on a GPU, within an epoch, those before it: see ``device.py``."""
    if trainer.device_epochs is not None and trainer.batch:
        return trainer.device_epochs.generators_before
    return {path: rng.bit_generator.state for path, rng in trainer.net.generators().items()}


def identity_of(trainer: Trainer) -> str:
    """Return a run's identity, before its first step: the same for a run that is to have the same numbers."""
    schedule = trainer.schedule
    settings = trainer.run.settings if trainer.run is not None else {}
    text = [described(trainer), repr(schedule) if is_dataclass(schedule) else "", settings]
    arrays = {}
    for name, p in trainer.net.parameters().items():
        flat = np.ascontiguousarray(to_numpy(p.data)).reshape(-1).view(np.uint8)
        arrays[name] = Bytes(f"{p.dtype} {p.shape}", flat.size, _reader(flat))
    return digest(json.dumps(text, default=str), arrays)[:16]


def _reader(flat: np.ndarray) -> Callable[[int, int], np.ndarray]:
    return lambda start, stop: flat[start:stop]


def described(trainer: Trainer) -> dict[str, Any]:
    """Return what a resumed run should have in common with this one, as text and numbers."""
    train, optimizer, schedule = trainer.train, trainer.optimizer, trainer.schedule

    def settings_of(value: Any) -> str:
        kept = {name: v for name, v in vars(value).items() if isinstance(v, (bool, int, float, str))}
        named = [f"{name}={v}" for name, v in kept.items() if name != "lr" and not name.startswith("_")]
        return f"{type(value).__name__}({', '.join(named)})"

    order = {"shuffle": getattr(train, "shuffle", None), "seed": getattr(train, "seed", None)}
    return {
        "batch size": getattr(train, "batch_size", None),
        "order": ", ".join(f"{name} {value}" for name, value in order.items()),
        "training images": images(train),
        "validation images": images(trainer.validation),
        "image size": getattr(train, "image_size", None)
        or getattr(train, "images", np.empty((0, 0))).shape[1],
        "augmentation": str(getattr(train, "augmentation", None) or Augmentation()),
        "normalisation": str(getattr(train, "normalisation", "")),
        "optimizer": settings_of(optimizer),
        "loss": settings_of(trainer.loss),
        "clip norm": trainer.clip_norm,
        "schedule": f"{type(schedule).__name__} of {schedule.lr}" if hasattr(schedule, "lr") else "",
    }


def images(loader: Any) -> str:
    """Return how many images a loader has, and a digest that tells which they are."""
    indices = getattr(loader, "indices", None)
    if indices is None:
        return f"{loader.n_samples}"
    chosen = np.asarray(indices, np.int64), np.asarray(loader.labels)[indices]
    return f"{loader.n_samples} ({sha256(b''.join(a.tobytes() for a in chosen)).hexdigest()[:12]})"


def machine(trainer: Trainer) -> dict[str, Any]:
    """Return what the bits depend on beside what decides a run."""
    net, engine = trainer.net, trainer.engine
    found = {"engine": " ".join(filter(None, [type(engine).__name__, getattr(engine, "precision", "")]))}
    found |= {"device": net.backend.device} if net.backend.name != "numpy" else {}
    return found | {"workers": workers.size(), **_libraries()}


@cache
def _libraries() -> dict[str, str]:
    found = {
        "NumPy": np.__version__,
        "scratchnet": scratchnet.__version__,
        "Python": platform.python_version(),
    }
    for library in threadpool_info():  # takes milliseconds
        if library.get("user_api") == "blas":
            names = library.get("internal_api"), library.get("version"), library.get("architecture")
            found["BLAS"] = " ".join(str(name) for name in names if name)
    return found


# Back into a trainer


def check(snapshot: Snapshot, trainer: Trainer, where: object) -> list[str]:
    """Raise a RunError unless a snapshot fits this trainer's network, optimizer and data; change nothing.

    Returns what a reader should know: sentences on what is not as it was and may be. ``where`` is named in
    errors.
    """
    tensors, header = snapshot
    try:
        _check_tensors(tensors, header, trainer)
        _check_header(header, trainer)
        return _what_differs(header, trainer)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise RunError(f"{where} is damaged, or of another network: {reason}") from error


def _check_header(header: dict[str, Any], trainer: Trainer) -> None:
    for key in ("settings", "files", "described", "machine"):
        if not isinstance(header.get(key, {}), dict):
            raise ValueError(f"{key} is no JSON object")
    log = header["log"]
    for k, row in enumerate(log):
        if row["epoch"] != k + 1 or not all(isfinite(row[name]) for name in COLUMNS):
            raise ValueError(f"row {k + 1} of its log is {row}")
    best, reached = header["best_accuracy"], [row["val_accuracy"] for row in log]
    if best != max(reached, default=-1.0) or not all(0 <= accuracy <= 1 for accuracy in reached):
        raise ValueError(f"its best accuracy is {best}, where its log has {max(reached, default=None)}")
    batch, (loss, correct, images) = header["batch"], header["totals"]
    if not 0 <= batch <= len(trainer.train) or not isfinite(loss) or not 0 <= correct <= images:
        raise ValueError(
            f"it has done {batch} of {len(trainer.train)} batches, with the totals {header['totals']}"
        )
    if (batch > 0) != (images > 0) or not isfinite(header["seconds"]):
        raise ValueError(f"after {batch} batches it has met {images} images, in {header['seconds']} seconds")
    rate = header["learning_rate"]
    if not (
        0 < rate["factor"] <= 1 and rate["rollbacks"] >= 0 and rate["last"] >= 0 and isfinite(rate["last"])
    ):
        raise ValueError(f"its learning rate is {rate}")
    checks.whole(0, batch=batch, rollbacks=rate["rollbacks"])
    have, wanted = header["generators"], trainer.net.generators()
    if have.keys() != wanted.keys():
        raise ValueError(
            f"it has generators for {', '.join(have) or 'nothing'}, not {', '.join(wanted) or 'nothing'}"
        )
    for path, rng in wanted.items():
        deepcopy(rng.bit_generator).state = have[path]  # raises an error if it is none


def _check_tensors(tensors: dict[str, np.ndarray], header: dict[str, Any], trainer: Trainer) -> None:
    net, optimizer, frozen = trainer.net, trainer.optimizer, header["frozen"]
    parameters = net.parameters()
    kind, *names = header["optimizer"]
    if [kind, *names] != [type(optimizer).__name__, *optimizer.parameters]:
        here = f"{type(optimizer).__name__} of {len(optimizer.parameters)} parameters"
        raise ValueError(f"its optimizer is {kind} of {len(names)} parameters, not {here}")
    if unknown := set(frozen) - parameters.keys():
        raise ValueError(f"it froze {', '.join(sorted(unknown))}, which the network lacks")
    expected = {f"parameters.{name}": (p.shape, str(p.dtype)) for name, p in parameters.items()}
    expected |= {f"buffers.{name}": (a.shape, str(a.dtype)) for name, a in net.buffers().items()}
    still = {id(parameters[name]) for name in frozen}
    kept = optimizer.state_shapes([name for name, p in optimizer.parameters.items() if id(p) not in still])
    if header["log"] or header["batch"] or any(name.startswith("optimizer.") for name in tensors):
        expected |= {f"optimizer.{name}": value for name, value in kept.items()}
    for name in [*expected, *tensors]:
        if name not in tensors or name not in expected:
            raise ValueError(f"{'it' if name not in tensors else 'the network'} lacks {name}")
        have, wanted = (tensors[name].shape, str(tensors[name].dtype)), expected[name]
        if have != (tuple(wanted[0]), wanted[1]):
            raise ValueError(f"{name} is {have[1]} {have[0]}, not {wanted[1]} {tuple(wanted[0])}")


def _what_differs(header: dict[str, Any], trainer: Trainer) -> list[str]:
    """Return sentences on what is not as it was; refuse what must not change within an epoch."""
    said = []
    here, before = described(trainer), header.get("described", {})
    differ = {name: (here[name], before[name]) for name in here if before.get(name, here[name]) != here[name]}
    for name in OF_EPOCHS if header["batch"] else ():
        if name in differ:
            ours, theirs = differ[name]
            raise ValueError(f"it stopped within an epoch with {name} {theirs}, where this run has {ours}")
    if differ:
        settings = [f"{name} {ours}, before {theirs}" for name, (ours, theirs) in differ.items()]
        said.append(f"this run goes on with other settings: {'; '.join(settings)}")
    step = len(header["log"]) * len(trainer.train) + header["batch"]
    last, rate = header["learning_rate"]["last"], trainer.schedule(step)
    if step and (now := trainer.schedule(step - 1) * header["learning_rate"]["factor"]) != last:
        said.append(
            f"the learning rate goes on with {rate:.3g}, after {last:.3g}: the schedule is another, as for "
            f"another number of epochs, and would have had {now:.3g} at that step"
        )
    here, before = machine(trainer), header.get("machine", {})
    changed = [
        f"{name} {here.get(name)}, before {before[name]}" for name in before if here.get(name) != before[name]
    ]
    if changed:
        said.append(f"the bits may differ from here on, since this computes with {'; '.join(changed)}")
    return said


def put(snapshot: Snapshot, trainer: Trainer) -> None:
    """Put a trainer where it was; the snapshot has been checked."""
    (tensors, header), net = snapshot, trainer.net
    backend, parameters = net.backend, net.parameters()
    for name, p in parameters.items():
        p.data = backend.asarray(tensors[f"parameters.{name}"])
        p.trainable = name not in header["frozen"]
    for name, array in net.buffers().items():
        array[...] = backend.asarray(tensors[f"buffers.{name}"])
    start = "optimizer."
    kept = {name.removeprefix(start): a for name, a in tensors.items() if name.startswith(start)}
    trainer.optimizer.load_state(kept)
    for path, rng in net.generators().items():
        rng.bit_generator.state = header["generators"][path]
    place(header, trainer)


def place(header: dict[str, Any], trainer: Trainer) -> None:
    """Tell a trainer where it is: all but the arrays and the generators."""
    trainer.optimizer.lr, trainer.rate_set = header["learning_rate"]["last"], None
    trainer.rate_factor, trainer.rollbacks = (
        header["learning_rate"]["factor"],
        header["learning_rate"]["rollbacks"],
    )
    trainer.log = [{name: row[name] for name in COLUMNS} for row in deepcopy(header["log"])]
    trainer.best_accuracy, trainer.batch = header["best_accuracy"], header["batch"]
    trainer.totals, trainer.seconds = EpochTotals(*header["totals"]), header["seconds"]
    trainer.identity = header["run"]
