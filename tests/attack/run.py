"""All attacks, each in a process of its own, and one table of what came of them.

    python tests/attack/run.py                      every attack, as long as its long form takes
    python tests/attack/run.py servers pickles      these
    python tests/attack/run.py --minutes 1          a minute each
    python tests/attack/run.py --list               their names, bounds and minutes

A process that dies, or outlasts its time, is a failure too. Status 1 if there was any.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from scratchnet.tables import aligned  # noqa: E402
from tests.attack.registry import KEPT, Attack, NotHere, Tally, all_attacks  # noqa: E402

GRACE = 120.0  # seconds after its time within which an attack must end
HEAD = ["attack", "bound", "cases", "of at least", "failed", "longest", "memory", "minutes"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Attack the package, and print what came of it.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of attacks; by default all of them")
    parser.add_argument("--minutes", type=float, help="of each attack (default its own)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", metavar="DIR", help="leave the files there that did harm")
    parser.add_argument("--list", action="store_true", help="print the attacks, and stop")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    attacks = all_attacks()
    for name in set(options.names) - set(attacks):
        parser.error(f"there is no attack {name!r}: {', '.join(attacks)}")
    chosen = [attacks[name] for name in options.names or attacks]
    if options.list:
        rows = [[a.name, f"{a.at_least:,} cases", f"{a.minutes:g} min", a.bound] for a in chosen]
        print("\n".join(aligned(rows, left=4)))
        return 0
    if options.in_this_process:
        print(json.dumps(carried_out(chosen[0], options)))
        return 0
    rows, failures = [HEAD], []
    for attack in chosen:
        print(f"{attack.name} ...", file=sys.stderr, flush=True)
        minutes = attack.minutes if options.minutes is None else options.minutes
        result = in_a_process(attack, minutes, options)
        rows.append(row_of(attack, minutes, result))
        failures += [f"{attack.name}: {failure}" for failure in result["failures"]]
        print("   ".join(rows[-1]), result["outcomes"], file=sys.stderr, flush=True)
    print("\n".join(aligned(rows, left=2)))
    print("\n".join(failures))
    return int(bool(failures))


def carried_out(attack: Attack, options: argparse.Namespace) -> dict:
    """Carry out an attack here; return what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        tally = Tally(60 * options.minutes, Path(folder), options.seed, options.keep)
        try:
            attack.run(tally)
        except NotHere as reason:
            tally.outcomes[f"skipped: {reason}"] += 1
    outcomes = dict(sorted(tally.outcomes.items()))
    return {
        **{"cases": tally.cases, "failed": tally.failed, "failures": tally.failures, "outcomes": outcomes},
        **{"longest": tally.longest, "memory": tally.memory},
    }


def in_a_process(attack: Attack, minutes: float, options: argparse.Namespace) -> dict:
    """Carry out an attack in a process of its own; its end, if it is not a good one, is a failure."""
    command = [sys.executable, "-X", "faulthandler", __file__, attack.name, "--in-this-process"]
    command += ["--minutes", str(minutes), "--seed", str(options.seed)]
    if options.keep:
        Path(options.keep).mkdir(parents=True, exist_ok=True)
        command += ["--keep", str(Path(options.keep).resolve())]
    lost = {"cases": 0, "failed": 1, "outcomes": {}, "longest": 0.0, "memory": 0}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=60 * minutes + GRACE, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        return lost | {"failures": [f"still running {GRACE:.0f} seconds after its time"]}
    if done.returncode:
        told = done.stderr.strip()[-KEPT * 100 :]
        return lost | {"failures": [f"the process ended with status {done.returncode}: {told}"]}
    return json.loads(done.stdout.splitlines()[-1])


def row_of(attack: Attack, minutes: float, result: dict) -> list[str]:
    """Return a row of the table."""
    numbers = [f"{result['cases']:,}", f"{attack.at_least:,}", f"{result['failed']:,}"]
    costs = [f"{result['longest']:.1f} s", f"{result['memory'] / 1e6:.0f} MB", f"{minutes:g}"]
    return [attack.name, attack.bound, *numbers, *costs]


if __name__ == "__main__":
    sys.exit(main())
