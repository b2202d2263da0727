"""What every program shares: its parser, the numbers that it takes, and how it fails."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from typing import Any, NoReturn

from scratchnet import checks, cuda_errors, data
from scratchnet.backend import Backend, BackendError
from scratchnet.checkpoint import FormatError
from scratchnet.distributed import started_by_mpirun
from scratchnet.tables import aligned
from scratchnet.training import NotFinite, RunError
from scratchnet.training.engine import choose_engine
from scratchnet.training.options import DEFAULTS
from scratchnet.training.stopping import Stopped
from scratchnet.untrusted import printable

EXTRAS = ("matplotlib", "onnx")  # packages that not everything needs, by the names under which they install
quiet = False  # in all processes but one, where many run one program
failing: Callable[[BaseException, int, str], NoReturn] | None = None  # how those end, where one fails


class Parser(argparse.ArgumentParser):
    """A parser that says in one sentence what is wrong, as everything else here does.

    ``--help`` fits one screen: where there are ``essentials``, what is written on the command line with a few
    words each, it shows these, and ``--help-all`` shows everything.
    """

    def __init__(self, essentials: Mapping[str, str] | None = None, **keywords: Any):
        super().__init__(add_help=False, **keywords)
        self.essentials = dict(essentials or {})
        self.add_argument("-h", "--help", action=_Help, help="show this and exit")
        if self.essentials:
            self.add_argument("--help-all", action=_Help, help="show all options and exit")

    def format_essentials(self) -> str:
        """Return the help that fits one screen."""
        rows = [*self.essentials.items(), ("--help-all", "all options, and their defaults")]
        given = " ".join(name for name in self.essentials if not name.startswith("-"))
        lines = aligned(rows, left=2, gap="  ")
        first = f"usage: {self.prog} {given} [options]".replace("  ", " ")
        return "\n".join([first, "", self.description or "", "", *(f"  {line}" for line in lines), ""])

    def error(self, message: str) -> NoReturn:
        """Leave with status 2."""
        message = message.removeprefix("argument ")
        listing = "--help-all" if self.essentials else "--help"
        first = started_by_mpirun()[1] == 0  # of processes with the same arguments one says so
        shown = printable(f"{self.prog}: {message} ({listing} lists all options)") + "\n"
        self.exit(2, shown if first else None)


class _Help(argparse.Action):
    """Prints a parser's help, all of it or what is essential, and ends the program."""

    def __init__(self, option_strings: list[str], **keywords: Any):
        keywords |= {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS, "nargs": 0}
        super().__init__(option_strings, **keywords)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        short = parser.essentials and option_string != "--help-all"
        print(parser.format_essentials() if short else parser.format_help(), end="")
        parser.exit()


def positive(kind: type) -> Callable[[str], Any]:
    """Return what reads an int or float above zero from the command line, and refuses everything else."""
    return lambda text: _number(kind, text, "above zero", 1 if kind is int else sys.float_info.min)


def at_least_zero(kind: type) -> Callable[[str], Any]:
    """Return what reads an int or float of at least zero, and refuses everything else."""
    return lambda text: _number(kind, text, "of at least zero", 0)


def _number(kind: type, text: str, wanted: str, least: Any) -> Any:
    try:
        value = kind(text)
        if kind is int:
            checks.whole(least, inf, value=value)
            if least and value > checks.MOST:  # a seed may be as large as it likes
                wanted += f" and at most {checks.MOST}"
                raise ValueError
        else:
            checks.real(least, value=value)
        return value
    except ValueError:
        name = "whole number" if kind is int else "number"
        raise argparse.ArgumentTypeError(f"must be a {name} {wanted}, not {checks.shown(text)}") from None


def as_options(message: str) -> str:
    """Give arguments the names that they have on the command line.

    >>> as_options("image_size must be 32 here; head='gap' takes any")
    '--image-size must be 32 here; --head gap takes any'
    """
    named = re.sub(r"\b([a-z_]+)='(\w+)'", r"--\1 \2", message)
    option = re.match(rf"({'|'.join(DEFAULTS)})(?= must)", named)  # keys of a file keep their names
    return f"--{option[0].replace('_', '-')}{named[option.end() :]}" if option else named


def device_line(device: Backend, engine: str | None = None, precision: str | None = None) -> str:
    """Return what a program prints first: on what it computes, and on a GPU how."""
    note = choose_engine(device, engine, precision).note
    return f"Device: {device}{note and f'; {note}'}"


def name_of_program() -> str:
    """Return what messages begin with: the script's name, or ``scratchnet train``."""
    return Path(sys.argv[0]).name


def command(*arguments: str) -> str:
    """Return the command line that starts this program with these arguments."""
    name = name_of_program()
    dispatched = name.startswith("scratchnet ")  # by __main__.py
    return shlex.join(
        [*(name.split() if dispatched else (Path(sys.executable).name, sys.argv[0])), *arguments]
    )


def goes_on(run_dir: str) -> str:
    """Return the command line that resumes a run."""
    if failing is None:
        return command("--resume", "--run-dir", run_dir)
    return f"mpirun -n {started_by_mpirun()[0]} {command('--distributed', '--resume', '--run-dir', run_dir)}"


def complain(sentence: str) -> None:
    """Print a sentence on standard error, on one line, whatever a file in it may be called."""
    if not quiet:
        print(printable(f"{name_of_program()}: {' '.join(sentence.split())}"), file=sys.stderr, flush=True)


def run(main: Callable[[], int | None], memory_advice: str = "") -> NoReturn:
    """Call a program's main function and leave, with one sentence on standard error where it fails.

    Status 2: what it was given cannot be used. Status 1: the run itself failed. Status 130: Ctrl-C, 143:
    SIGTERM, 129: SIGHUP; what a training has done until then is saved, and the message has the command that
    goes on.
    Otherwise that which main returns, None for 0. Where there is not enough memory ``memory_advice`` says
    what to do.
    """
    # What overflows shows in the loss, which the trainer watches; NumPy's remarks would only come in between.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="scratchnet")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before we were started
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (it stays open)
    if hasattr(sys.stdout, "reconfigure"):
        # Names of files need not be text; they are printed as they are, and if that cannot be, spelt out.
        utf = sys.stdout.encoding.lower().startswith("utf")
        sys.stdout.reconfigure(errors="surrogateescape" if utf else "backslashreplace")
    caught: BaseException
    try:
        with cuda_errors.explained():
            sys.exit(main() or 0)
    except (BackendError, data.DataError, FormatError, RunError, ValueError) as error:
        caught, status, message = error, 2, as_options(str(error))
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        caught, status, message = (
            error,
            2,
            f"this needs the package {error.name}: python -m pip install {error.name}",
        )
    except MemoryError as error:
        caught, status, message = error, 2, f"not enough memory{memory_advice}"
    except NotFinite as error:
        caught, status, message = error, 1, str(error)
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = error.filename or "cannot write"  # what has no name is the output
        caught, status = error, 2
        message = f"{where}: {error.strerror}" if error.strerror else str(error)
    except KeyboardInterrupt as error:
        caught, status, message = error, 130, f"stopped {error}".strip()
        if isinstance(error, Stopped):
            status, message = 128 + error.signal, f"stopped {error.done}"
            if error.run is not None:
                message += f"; go on with: {goes_on(str(error.run))}"
    except Exception as error:
        if failing is None:
            raise
        caught, status, message = error, 1, ""
    if failing is not None:
        failing(caught, status, message)
    complain(message)
    sys.exit(status)
