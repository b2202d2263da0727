"""Options and exit codes that the benchmarks' command lines share."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from race import PYTORCH, WITHOUT_SWITCH, WorkerError, cores, limited_to_avx2, measure
from report import race_table, save

TASK = ("kind", "arch", "image_size", "batch_size", "batch_norm", "width", "engine", "threads")
NETWORK = {"arch": "vgg16", "batch_norm": False, "width": 1.0, "engine": "plan", "threads": cores()}
PEERS = ["dezero", "jax"]
RIVALS = {"training": PYTORCH, "inference": [*PYTORCH, "onnxruntime", "openvino"]}  # by default


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence; exit with status 2."""
        self.exit(2, f"{self.prog}: {message}; --help lists all options\n")


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
    """Read the name of a file to write: fail early, not after an hour of measuring."""
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: no such folder, or it is one")
    return path


def network_parser(kind: str, rounds: int, description: str) -> Parser:
    """Return a parser with the options that describe a network and its task."""
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
    """Time training steps or inference as the command line says; return the exit status."""
    parser = network_parser(kind, rounds, description)
    parser.add_argument("--engine", choices=("layers", "plan"), help="scratchnet's (%(default)s)")
    parser.add_argument(
        "--rivals",
        nargs="+",
        choices=RIVALS[kind] + PEERS,
        default=RIVALS[kind],
        metavar="NAME",
        help=f"default: {', '.join(RIVALS[kind])}; also: {', '.join(PEERS)}",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes minutes")
    text = "limit all to AVX2, as on older processors; leaves out rivals that have no switch for that"
    parser.add_argument("--avx2", action="store_true", help=text)
    options = parser.parse_args(arguments)
    unwanted = ["compile"] * options.no_compile
    if options.avx2:
        os.environ.update(limited_to_avx2())
        unwanted += WITHOUT_SWITCH
    rivals = [rival for rival in dict.fromkeys(options.rivals) if rival not in unwanted]
    if not rivals:
        parser.error("no rival is left to compare with")

    def run() -> str:
        from tqdm import tqdm

        with tqdm(total=1 + len(rivals) + options.rounds, unit="", file=sys.stderr) as progress:
            return race_table(measure(task_of(options), ["scratchnet", *rivals], options.rounds, progress))

    return print_result(run, options.output)


def task_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the task that the options describe."""
    return {name: getattr(options, name) for name in TASK}


def print_result(run: Callable[[], str], output: Path | None = None, *errors: type[Exception]) -> int:
    """Print what ``run`` returns, and write it to a file if wanted; an error is a sentence and status 2."""
    try:
        text = run()
    except (WorkerError, *errors) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    print(text)
    if output:
        save(text + "\n", output)
    return 0
