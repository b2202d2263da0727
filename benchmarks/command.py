"""What the benchmarks' command lines have in common."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from race import PYTORCH, WorkerError, cores, measure
from report import race_table, save

TASK = ("kind", "arch", "image_size", "batch_size", "batch_norm", "width", "engine", "threads")
NETWORK = {"arch": "vgg16", "batch_norm": False, "width": 1.0, "engine": "plan", "threads": cores()}
PEERS = ["dezero", "jax"]
RIVALS = {"training": PYTORCH, "inference": [*PYTORCH, "onnxruntime", "openvino"]}  # who takes part unasked


class Parser(argparse.ArgumentParser):
    """A parser that says in one sentence what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence; exit with status 2."""
        self.exit(2, f"{self.prog}: {message}; --help lists what there is\n")


def at_least_one(text: str) -> int:
    """Read a whole number above zero."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above zero, not {text!r}")
    return int(text)


def above_zero(text: str) -> float:
    """Read a number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above zero, not {text!r}")
    return value


def new_file(text: str) -> Path:
    """Read the name of a file to write, before an hour is spent on what shall stand in it."""
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: no such folder, or it is one")
    return path


def network_parser(kind: str, rounds: int, description: str) -> Parser:
    """Return a parser with the options that say what network computes what."""
    parser = Parser(description=description)
    parser.set_defaults(**NETWORK, kind=kind, image_size=32, batch_size=128)
    parser.add_argument("--arch", help="a name in scratchnet.models.ARCHITECTURES (%(default)s)")
    parser.add_argument("--image-size", type=at_least_one, metavar="N", help="pixels (%(default)s)")
    parser.add_argument("--batch-size", type=at_least_one, metavar="N", help="images (%(default)s)")
    parser.add_argument("--batch-norm", action="store_true", help="with batch normalisation")
    parser.add_argument("--width", type=above_zero, metavar="X", help="scales the channels (%(default)s)")
    parser.add_argument("--threads", type=at_least_one, metavar="N", help="of each process (%(default)s)")
    parser.add_argument(
        "--rounds", type=at_least_one, metavar="N", default=rounds, help="of measuring (%(default)s)"
    )
    parser.add_argument("--output", type=new_file, metavar="FILE", help="write the table to this file too")
    return parser


def race(kind: str, rounds: int, description: str, arguments: Sequence[str] | None) -> int:
    """Be the program that times training steps, or inference; return the exit status."""
    parser = network_parser(kind, rounds, description)
    parser.add_argument("--engine", choices=("layers", "plan"), help="scratchnet's (%(default)s)")
    parser.add_argument(
        "--rivals",
        nargs="+",
        choices=RIVALS[kind] + PEERS,
        default=RIVALS[kind],
        metavar="NAME",
        help=f"who takes part: {', '.join(RIVALS[kind])}; only if asked for: {', '.join(PEERS)}",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes minutes")
    options = parser.parse_args(arguments)
    unwanted = ["compile"] * options.no_compile
    rivals = [rival for rival in dict.fromkeys(options.rivals) if rival not in unwanted]
    if not rivals:
        parser.error("nobody is left to compare with")

    def run() -> str:
        from tqdm import tqdm

        with tqdm(total=1 + len(rivals) + options.rounds, unit="", file=sys.stderr) as progress:
            return race_table(measure(task_of(options), ["scratchnet", *rivals], options.rounds, progress))

    return told(run, options.output)


def task_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the task that the options describe."""
    return {name: getattr(options, name) for name in TASK}


def told(run: Callable[[], str], output: Path | None) -> int:
    """Print what ``run`` returns, and write it to a file if wanted; errors are a sentence and status 2."""
    try:
        text = run()
    except WorkerError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    print(text)
    if output:
        save(text + "\n", output)
    return 0
