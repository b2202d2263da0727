"""One flipped bit in each file that is read: noticed, wherever there is something to notice it by."""

from __future__ import annotations

import importlib
import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scratchnet import checkpoint, interop
from scratchnet.data import DataError
from scratchnet.tensorfile import FormatError
from scratchnet.training import Observer, RunError
from scratchnet.training.options import read_options
from tests.attack.files_of_weights import onnx_files, small_vgg, torch_files
from tests.attack.registry import Tally, attack
from tests.fakes.runs import prepare

REFUSED = (FormatError, DataError, RunError, FileNotFoundError)


def contents(net: Any) -> list[bytes]:
    """Return everything that a network holds, to be compared bit for bit."""
    info = repr(sorted((key, repr(value)) for key, value in getattr(net, "info", {}).items()))
    arrays = [p.data for p in net.parameters().values()] + list(net.buffers().values())
    return [info.encode(), repr(net).encode(), *(np.ascontiguousarray(array).tobytes() for array in arrays)]


class Notices(Observer):
    """Takes it for a refusal where a resumed run says that something is not as it was."""

    def on_notice(self, trainer: Any, sentence: str) -> None:
        raise RunError(sentence)


def resumed(trainer: Any) -> list[Any]:
    again = prepare(None, n=16)
    again.observers, again.run = (Notices(),), trainer.run
    again.schedule = trainer.schedule
    config, rows = read_options(trainer.run), trainer.run.read_log()
    again.resume()
    log = [{**row, "seconds": 0, "images_per_second": 0} for row in again.log]
    return [config, rows, *contents(again.net), log, again.best_accuracy, repr(again.optimizer.state())]


@attack("bit flips", "0 unnoticed where there is a digest or a checksum; 0 tracebacks elsewhere", 2_000, 3.0)
def flips(tally: Tally) -> None:
    folder = tally.folder / "run"
    trainer = prepare(folder, n=16)
    trainer.observers = ()
    trainer.run.write_config({"options": {"lr": 0.3, "seed": 17, "momentum": 0.9}})
    trainer.fit(1)
    checkpoint.save(tally.folder / "net.safetensors", small_vgg(), class_names=["a", "b", "c"])
    targets: list[tuple[Path, Callable[[Path], Any], bool]] = [
        (tally.folder / "net.safetensors", lambda path: contents(checkpoint.load(path)), True),
        (trainer.run.best, lambda path: contents(checkpoint.load(path)), True),
        (trainer.run.last, lambda path: contents(checkpoint.load(path)), True),
        (trainer.run.state, lambda path: resumed(trainer), True),
        (trainer.run.config, lambda path: resumed(trainer), True),
        (trainer.run.log, lambda path: resumed(trainer), True),
    ]
    for name, found, guarded in (
        ("net.pth", torch_files()[:1], True),
        ("net.onnx", onnx_files(tally)[:1], False),
    ):
        for content in found:
            (tally.folder / name).write_bytes(content)
            targets.append((tally.folder / name, lambda path: contents(interop.load(path)), guarded))
    archive_of(tally)
    targets.append((tally.folder / "set.tar.gz", unpacked, True))
    whole = {path: (path.read_bytes(), read(path)) for path, read, _ in targets}
    while tally.goes_on():
        path, read, guarded = targets[tally.cases % len(targets)]
        content, expected = whole[path]
        place = tally.rng.randrange(8 * len(content))
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with tally.case(f"bit {place} of {path.name}, seed {tally.seed}"):
            try:
                same = read(path) == expected
                assert same or not guarded, "read, with other contents"
                tally.outcomes[f"{path.name}: {'read, the same' if same else 'UNNOTICED, no digest'}"] += 1
            except REFUSED:
                tally.outcomes[f"{path.name}: refused"] += 1
        path.write_bytes(content)


def archive_of(tally: Tally) -> None:
    with tarfile.open(tally.folder / "set.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("set/a.bin")
        member.size = 1000
        tar.addfile(member, io.BytesIO(bytes(range(250)) * 4))


def unpacked(path: Path) -> bytes:
    """Unpack an archive, whose checksum is gzip's own here, and elsewhere that of the whole file."""
    target = path.with_name("unpacked") / "set"
    target.parent.mkdir(exist_ok=True)
    try:
        importlib.import_module("scratchnet.data.download").unpack(path, target, {"a.bin": 1000})
        return (target / "a.bin").read_bytes()
    finally:
        shutil.rmtree(target.parent)
