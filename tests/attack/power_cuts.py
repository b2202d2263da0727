"""Power cuts, simulated: a run's calls are recorded, and disks made that a cut may leave.

What a disk holds after a cut: all that was synced. Of what was written since, any part: a file's bytes
written after its last sync may be there, be cut short, or be zeros. Names (made, renamed, removed) that were
changed in a folder since its last sync may have reached it up to any of them; those of a journalling file
system keep their order.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

from scratchnet.tensorfile import FormatError
from scratchnet.training import RunError
from tests.attack.killing import EPOCHS, GOES_ON, a_whole_run, check
from tests.attack.registry import Tally, attack
from tests.fakes import tiny
from tests.fakes.writes import watched, within

NAMING = {"open", "rename", "replace", "unlink", "remove"}


class Disk:
    """One folder as it is in memory, and what of it is surely on the disk."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}  # from name to file
        self.content: dict[int, bytes] = {}
        self.synced: dict[int, bytes] = {}
        self.synced_names: dict[str, int] = {}
        self.history: list[dict[str, int]] = []  # the names after each change since the folder's last sync

    def apply(self, call: str, path: str, *more: Any) -> None:
        """Do what a call did."""
        name = os.path.basename(path)
        if call == "open":
            if name not in self.names:
                self.names = self.names | {name: len(self.content)}
                self.content[self.names[name]] = b""
            elif more[0]:
                self.content[self.names[name]] = b""
        elif call == "write":
            self.content[self.names[name]] += more[0]
        elif call == "fsync" and name in self.names:
            self.synced[self.names[name]] = self.content[self.names[name]]
        elif call == "fsync":
            self.synced_names, self.history = self.names, []
        elif call in ("rename", "replace"):
            self.names = {n: f for n, f in self.names.items() if n != name} | {
                os.path.basename(more[0]): self.names[name]
            }
        elif call in ("unlink", "remove"):
            self.names = {n: f for n, f in self.names.items() if n != name}
        if call in NAMING:
            self.history.append(self.names)

    def after_a_cut(self, rng: random.Random, folder: Path) -> None:
        """Make the folder that may be found."""
        folder.mkdir()
        for name, file in rng.choice([self.synced_names, *self.history]).items():
            whole, sure = self.content[file], self.synced.get(file, b"")
            kept = rng.randrange(len(sure), len(whole) + 1) if whole.startswith(sure) else len(whole)
            zeros = rng.choice((0, len(whole) - kept))
            (folder / name).write_bytes(whole[:kept] + bytes(zeros))


@attack("power cuts (writes since the last sync dropped)", "0 silent errors, " + GOES_ON, 200, minutes=4.0)
def power_cuts(tally: Tally) -> None:
    whole = a_whole_run(tally)
    trace: list[tuple[Any, ...]] = []
    recorded = tally.folder / "recorded"
    with watched(within(recorded, lambda *call: trace.append(call))):
        tiny.go_on(recorded, EPOCHS, save_minutes=0.0)
    trace = [call for call in trace if call[0] != "done"]
    while tally.goes_on():
        moment = tally.rng.randrange(1, len(trace) + 1)
        folder, disk = tally.folder / f"run{tally.cases}", Disk()
        for call in trace[:moment]:
            if call[0] not in ("mkdir", "chmod"):
                disk.apply(*call)
        with tally.case(f"a cut after call {moment} of {len(trace)}", limit=60.0):
            disk.after_a_cut(tally.rng, folder)
            left = sorted(os.listdir(folder))
            tally.outcomes["with a state" if "state.safetensors" in left else "without a state"] += 1
            try:
                check(folder, whole)
            except (RunError, FormatError, FileNotFoundError) as error:
                raise AssertionError(f"of {left}: {error}") from error
        shutil.rmtree(folder, ignore_errors=True)
    tally.outcomes["calls in the trace"] = len(trace)
