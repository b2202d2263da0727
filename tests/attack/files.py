"""Mutants of every file that is read: each is read, or refused by the documented exception."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.attack.mutating import Coverage, Mutate, mutant, other_json
from tests.attack.registry import Tally, peak, reset_peak

# What reading a file may take: so much that any may, and so many times its size.
MEMORY = 96 << 20
MULTIPLE = 32
BOUND = f"0 crashes, 0 tracebacks, {MEMORY >> 20} MB + {MULTIPLE} x the file, 10 s each"
GUIDED = 0.3  # of the cases are run under the tracer, which slows them down several times
KEPT = 400  # files of the corpus


@dataclass
class Target:
    """A kind of file: whole ones, what reads them, and what that may raise."""

    name: str  # of the file that is read
    seeds: Sequence[bytes]
    read: Callable[[Path], Any]
    documented: tuple[type[Exception], ...]
    knowing: Sequence[Mutate] = field(default_factory=list)  # mutators that know the format
    memory: int = MEMORY


def besiege(tally: Tally, target: Target) -> None:
    """Read mutants until the time is up: half of them of what last reached new lines of the package."""
    corpus, coverage, rng = list(target.seeds), Coverage(), tally.rng
    path = tally.folder / target.name
    path.parent.mkdir(parents=True, exist_ok=True)
    while tally.goes_on():
        number = tally.cases
        if number < len(target.seeds):
            content = target.seeds[number]
        else:
            parent = rng.choice(corpus[-40:] if rng.random() < 0.5 else corpus)
            knows = target.knowing and rng.random() < 0.5
            content = rng.choice(target.knowing)(rng, parent) if knows else mutant(rng, parent, corpus)
        path.write_bytes(content)

        def read(path: Path = path) -> None:
            try:
                target.read(path)
                tally.outcomes["read"] += 1
            except target.documented as error:
                tally.outcomes["refused"] += 1
                told = str(error)
                assert told.isprintable() or "import keras" in told, f"raw on the terminal: {told!r}"

        failed, before = tally.failed, reset_peak()
        with tally.case(f"case {number} of seed {tally.seed}"):
            if rng.random() < GUIDED:
                if coverage.of(read) and len(corpus) < KEPT:
                    corpus.append(content)
            else:
                read()
            grown = peak() - before
            allowed = target.memory + MULTIPLE * len(content)
            assert grown <= allowed, f"{grown >> 20} MB for a file of {len(content):,} bytes"
        if tally.failed > failed:
            kept = Path(tally.keep or tally.folder, f"failed-{tally.failed}-{path.name}")
            kept.write_bytes(content)
    tally.outcomes["lines of the package"] = len(coverage.seen)


def with_other_json(rng: random.Random, content: bytes) -> bytes:
    """Change what a file of JSON holds, not how it is written."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return mutant(rng, content)
    for _ in range(rng.choice([1, 1, 2, 3])):
        value = other_json(rng, value)
    return json.dumps(value).encode()
