"""What the example programs need and need not show: their options, their data, and how they fail."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np

import scratchnet
from scratchnet import data
from scratchnet.backend import BackendError
from scratchnet.checkpoint import FormatError
from scratchnet.initialise import INITIALISATIONS
from scratchnet.layers import Layer
from scratchnet.models import ARCHITECTURES
from scratchnet.models.vgg import HEADS
from scratchnet.optim import SCHEDULES
from scratchnet.training.engine import ENGINES, PRECISIONS
from scratchnet.training.evaluation import VIEWS
from scratchnet.training.rundir import RunDirectory, RunError
from scratchnet.training.trainer import NotFinite

DEFAULTS: dict[str, Any] = {
    "backend": "auto",
    "engine": None,
    "precision": "fp32",
    "data": "auto",
    "data_dir": "data",
    "arch": "vgg16",
    "batch_norm": False,
    "width": 1.0,
    "image_size": 32,
    "head": "flatten",
    "classifier_width": 4096,
    "dropout": 0.5,
    "init": "he",
    "output_scale": 1.0,
    "subset": None,
    "validation": None,
    "epochs": 15,
    "batch_size": 128,
    "lr": 0.02,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "label_smoothing": 0.0,
    "augment": "crop-flip",
    "seed": 0,
    "run_dir": None,
    "resume": False,
    "dry_run": False,
    "diagnose": False,
    "views": 1,
    "demo": False,
    "recipe": None,
}

UNSET = {"engine": str, "subset": int, "validation": int, "run_dir": str, "recipe": str}  # if not given: None

# A small network on the built-in images: about a minute on two cores.
DEMO: dict[str, Any] = {
    "data": "shapes10",
    "arch": "vgg11",
    "batch_norm": True,
    "width": 0.25,
    "classifier_width": 256,
    "dropout": 0.0,
    "epochs": 8,
    "batch_size": 64,
    "lr": 0.1,
    "weight_decay": 2e-3,
    "schedule": "one-cycle",
    "label_smoothing": 0.1,
    "augment": "flip",
    "run_dir": "runs/demo",
}

# The full runs whose results README shows: 15 epochs on CIFAR-10.
RECIPES: dict[str, dict[str, Any]] = {
    "vgg16-bn": {
        "batch_norm": True,
        "lr": 0.06,
        "weight_decay": 1e-3,
        "nesterov": True,
        "label_smoothing": 0.1,
        "dropout": 0.0,
        "output_scale": 0.1,
        "image_size": 48,  # enlarged, which learns in fewer epochs
        "head": "gap",  # takes this size, and does nothing to the last map, which is 1 x 1
        "augment": "crop-flip-cutout8",
        "validation": 1000,
        "views": 10,
    },
    "vgg16": {
        "batch_size": 64,
        "lr": 0.02,
        "weight_decay": 1e-3,
        "nesterov": True,
        "label_smoothing": 0.1,
        "dropout": 0.3,
        "validation": 2500,
        "views": 10,
    },
    "article": {"lr": 0.001, "schedule": "constant"},  # what our article trains with
}
RECIPES = {name: {"data": "cifar10", "arch": "vgg16", "epochs": 15, **own} for name, own in RECIPES.items()}

# What a resumed run may change: where it computes, where the data lie, and how long it goes on.
MAY_CHANGE = {"backend", "engine", "data_dir", "epochs", "run_dir", "resume", "dry_run", "diagnose", "views"}


def parse_training(arguments: Sequence[str] | None = None) -> SimpleNamespace:
    """Read the options of ``train_cifar.py``; with ``--resume``, those of the run that goes on.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default the command line.

    Returns
    -------
    SimpleNamespace
        With the names of ``DEFAULTS``.

    Raises
    ------
    SystemExit
        Status 2, after a sentence on standard error, if an option is not understood.
    RunError
        If ``--resume`` finds no run, or an option contradicts the one of the run.

    Examples
    --------
    >>> parse_training(["--arch", "vgg11", "--epochs", "3"]).epochs
    3
    """
    parser = _training_parser()
    given = vars(parser.parse_args(arguments))
    if given.get("demo") and given.get("recipe"):
        parser.error("--demo and --recipe are two different runs: give one")
    options = DEFAULTS | (DEMO if given.get("demo") else {}) | RECIPES.get(given.get("recipe"), {}) | given
    if options["resume"]:
        options = _options_of_run(options["run_dir"], given)
    elif options["run_dir"] is None:
        norm = "-bn" if options["batch_norm"] else ""
        options["run_dir"] = f"runs/{options['arch']}{norm}-{time.strftime('%Y%m%d-%H%M%S')}"
    return SimpleNamespace(**options)


class Parser(argparse.ArgumentParser):
    """A parser that says in one sentence what is wrong, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        """Leave with status 2."""
        message = message.removeprefix("argument ")
        self.exit(2, f"{self.prog}: {message} (--help lists all options)\n")


def _training_parser() -> Parser:
    parser = Parser(
        description="Train a VGG on CIFAR-10, in NumPy or CuPy, with every gradient written by hand.",
        argument_default=argparse.SUPPRESS,  # so that what was given can be told from what was not
    )

    def add(group: Any, name: str, text: str, **keywords: Any) -> None:
        default = DEFAULTS[name.replace("-", "_")]
        if default is not None and not isinstance(default, bool):
            text += f" (default {default})"
        group.add_argument(f"--{name}", help=text, **keywords)

    flag = {"action": "store_true"}
    where = parser.add_argument_group("where and what")
    add(where, "backend", "array library; only auto may choose", choices=("auto", "numpy", "cupy"))
    add(where, "engine", "a plan (the default), or the layers one by one", choices=ENGINES)
    add(where, "precision", "in which a GPU multiplies", choices=PRECISIONS)
    add(
        where,
        "data",
        "data set; auto takes CIFAR-10 if it can be had",
        choices=("auto", "cifar10", "shapes10"),
    )
    add(where, "data-dir", "the folder that holds, or shall hold, cifar-10-batches-bin", metavar="DIR")
    add(where, "subset", "train on N images only, of each class alike", type=positive(int), metavar="N")
    add(
        where,
        "validation",
        "validate on N training images (default a tenth)",
        type=positive(int),
        metavar="N",
    )
    add(where, "run-dir", "the folder for weights, log and state (default a new one in runs/)", metavar="DIR")
    add(where, "views", "test with N views of each image, too", type=positive(int), choices=VIEWS)
    add(where, "resume", "go on with the run in --run-dir (default the newest in runs/)", **flag)
    add(where, "dry-run", "say what memory and time it will take, with a step that is measured; stop", **flag)
    add(where, "diagnose", "say every few hundred steps how each layer does, and what is wrong", **flag)
    add(where, "demo", "a small network on the built-in images, in about a minute, into runs/demo", **flag)
    add(where, "recipe", "the settings of a full run on CIFAR-10, see README", choices=tuple(RECIPES))
    net = parser.add_argument_group("the network")
    add(net, "arch", "architecture", choices=tuple(ARCHITECTURES))
    add(net, "batch-norm", "batch normalisation after every convolution", **flag)
    add(net, "width", "multiplies the channels", type=positive(float), metavar="W")
    add(net, "image-size", "resize the images to S pixels", type=positive(int), metavar="S")
    add(net, "head", "what comes before the linear layers; gap takes any size", choices=HEADS)
    add(net, "classifier-width", "of the hidden linear layers", type=positive(int), metavar="N")
    add(net, "dropout", "after the hidden linear layers", type=at_least_zero(float), metavar="P")
    add(net, "init", "how weights begin; all but he are there to fail", choices=tuple(INITIALISATIONS))
    add(
        net,
        "output-scale",
        "multiplies the last layer's initial weights",
        type=at_least_zero(float),
        metavar="S",
    )
    how = parser.add_argument_group("the training")
    add(how, "epochs", "how many", type=positive(int), metavar="N")
    add(how, "batch-size", "images a step", type=positive(int), metavar="N")
    add(how, "lr", "the highest learning rate", type=positive(float))
    add(how, "momentum", "of SGD", type=at_least_zero(float))
    add(how, "nesterov", "take Nesterov's momentum: look one step ahead", **flag)
    add(how, "weight-decay", "of SGD", type=at_least_zero(float))
    add(how, "schedule", "of the learning rate", choices=SCHEDULES)
    smoothing = "how much of the target goes to all classes"
    add(how, "label-smoothing", smoothing, type=at_least_zero(float))
    add(how, "augment", "what happens to training images: none, crop, flip, cutout, joined by dashes")
    add(how, "seed", "of everything random", type=at_least_zero(int), metavar="N")
    return parser


def positive(kind: type) -> Callable[[str], Any]:
    """Return what reads an int or float above zero from the command line, and refuses everything else."""
    return lambda text: _number(kind, text, "above zero", lambda value: value > 0)


def at_least_zero(kind: type) -> Callable[[str], Any]:
    """Return what reads an int or float of at least zero, and refuses everything else."""
    return lambda text: _number(kind, text, "of at least zero", lambda value: value >= 0)


def _number(kind: type, text: str, wanted: str, is_wanted: Callable[[Any], bool]) -> Any:
    name = {int: "whole number", float: "number"}[kind]
    try:
        value = kind(text)
    except ValueError:
        value = float("nan")
    if not (is_wanted(value) and value < float("inf")):
        raise argparse.ArgumentTypeError(f"must be a {name} {wanted}, not {text!r}")
    return value


def _options_of_run(run_dir: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the run that goes on, and refuse those that contradict it."""
    if run_dir is None:
        states = sorted(Path("runs").glob("*/state.safetensors"), key=os.path.getmtime)
        if not states:
            raise RunError("there is no run to go on with in the folder runs: say which with --run-dir")
        run_dir = str(states[-1].parent)
    if not Path(run_dir).is_dir():
        raise RunError(f"there is no run to go on with: {run_dir} is no folder")
    run = RunDirectory(run_dir)
    options = run.read_config().get("options")
    if not isinstance(options, dict):
        raise RunError(f"{run.config} is damaged: it does not hold the options of a run")
    options = DEFAULTS | options  # a run that was begun before there was an option goes on without it
    check_options(options, run)
    if not run.has_state:
        raise RunError(f"{run_dir} holds no finished epoch to go on from: begin a new run")
    for name, value in given.items():
        chosen = name == "data" and value == "auto"  # what it chose then is what it chooses now
        if name not in MAY_CHANGE and value != options[name] and not chosen:
            option, before = f"--{name.replace('_', '-')}", options[name]
            was = f"was begun {'with' if before else 'without'} {option}"
            if not isinstance(before, bool):
                was = f"has {option} {before}, not {value}" if before is not None else f"has no {option}"
            raise RunError(f"the run in {run_dir} {was}: leave {option} out to go on, or begin a new run")
    return (
        options
        | {name: given[name] for name in MAY_CHANGE & set(given)}
        | {"run_dir": run_dir, "resume": True}
    )


def check_options(options: dict[str, Any], run: RunDirectory) -> None:
    """Raise RunError if an option that was read from a run's ``config.json`` is of the wrong kind."""
    for name in DEFAULTS:
        if wanted := _kind_missed(name, options[name]):
            shown = f"{name} is {json.dumps(options[name])}, and should be {wanted}"
            raise RunError(f"{run.config} is damaged: its option {shown}")


def _kind_missed(name: str, value: Any) -> str:
    """Return what an option should have been, in words; nothing if ``value`` is that."""
    if value is None and name in UNSET:
        return ""
    kind = UNSET.get(name) or type(DEFAULTS[name])
    if kind in (bool, str):
        return "" if isinstance(value, kind) else {bool: "true or false", str: "text"}[kind]
    least = 1 if kind is int and name != "seed" else 0
    kinds = int if kind is int else (int, float)  # who calls the library may say lr=1
    if isinstance(value, kinds) and not isinstance(value, bool) and least <= value < float("inf"):
        return ""
    return f"a {'whole number' if kind is int else 'number'} of at least {least}"


def open_run(options: SimpleNamespace, net: Layer) -> RunDirectory:
    """Return the run directory, and refuse one that another run has used already.

    Parameters
    ----------
    options : SimpleNamespace
        Of ``parse_training``.
    net : Layer
        What the run will save.

    Raises
    ------
    RunError
        If there is a run that this one would overwrite (the demo may overwrite a demo), nothing can be
        written, or there is not enough space.
    """
    run = RunDirectory(options.run_dir)
    run.require_space(net)
    if options.resume:
        run.remove_partial()
    elif options.demo and _holds_demo(run):
        run.clear()
    elif run.has_results:
        how = "go on with it by --resume" if run.has_state else "remove it"
        raise RunError(f"{run.path} holds a run: {how}, or choose another --run-dir")
    return run


def _holds_demo(run: RunDirectory) -> bool:
    try:
        return bool(run.read_config()["options"]["demo"])
    except (RunError, KeyError, TypeError):
        return False


def load_data(name: str, folder: str | os.PathLike, dry_run: bool = False) -> data.ImageData:
    """Return a data set by name: ``cifar10``, ``shapes10``, or ``auto``.

    Only ``auto`` may choose: CIFAR-10 where it lies in the folder or can be downloaded, and otherwise
    shapes10, which it says in three lines that cannot be overlooked. CIFAR-10 that is there but damaged is an
    error all the same. A dry run downloads nothing: grey images stand in for CIFAR-10.

    Raises
    ------
    DataError
        If the data set is missing or damaged.
    """
    if name == "shapes10":
        return data.shapes10()
    try:
        return data.cifar10(folder, download=not dry_run)
    except data.MissingDataError as error:
        if dry_run:
            print("CIFAR-10 is not here: as many grey images stand in for it.", file=sys.stderr, flush=True)
            grey, labels = np.full((60_000, 32, 32, 3), 128, np.uint8), np.arange(60_000) % 10
            train, test = slice(50_000), slice(50_000, None)
            names = tuple(str(k) for k in range(10))
            return data.ImageData(grey[train], labels[train], grey[test], labels[test], names, "CIFAR-10")
        if name != "auto":
            raise
        for line in (
            "*** CIFAR-10 IS NOT HERE: this trains on the built-in set shapes10 INSTEAD.",
            f"*** {error}",
            "*** Accuracies on shapes10 say nothing about CIFAR-10. Log and model name the data set.",
        ):
            print(line, file=sys.stderr, flush=True)
        return data.shapes10()


def warn(sentence: str) -> None:
    """Print a sentence on standard error, if there is one."""
    if sentence:
        print(f"{Path(sys.argv[0]).name}: warning: {sentence}", file=sys.stderr, flush=True)


def describe_run(options: SimpleNamespace, device: str, header: dict[str, Any]) -> dict[str, Any]:
    """Return what ``config.json`` says of a run: its options, what it ran on, and the command given."""
    chosen = header["data"].lower().replace("-", "")  # what auto took: a resumed run takes it again
    return {
        "options": vars(options) | {"resume": False, "data": chosen},
        **header,
        "device": device,
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "versions": {
            "scratchnet": scratchnet.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def run(main: Callable[[], int | None], memory_advice: str = "") -> None:
    """Call a program's main function and leave, with one sentence on standard error where it fails.

    Parameters
    ----------
    main : callable
        Returns the exit status, None for 0.
    memory_advice : str
        What to do where there is not enough memory, behind those words.

    Notes
    -----
    Status 2: what it was given cannot be used. Status 1: the run itself failed. Status 130: Ctrl-C.
    """
    # What overflows shows in the loss, which the trainer watches; NumPy's remarks would only come in between.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="scratchnet")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (it stays open)
    if hasattr(sys.stdout, "reconfigure"):
        # Names of files need not be text; they are printed as they are, and if that cannot be, spelt out.
        utf = sys.stdout.encoding.lower().startswith("utf")
        sys.stdout.reconfigure(errors="surrogateescape" if utf else "backslashreplace")
    try:
        sys.exit(main() or 0)
    except (BackendError, data.DataError, FormatError, RunError, ValueError) as error:
        status, message = 2, str(error)
    except MemoryError:
        status, message = 2, f"not enough memory{memory_advice}"
    except NotFinite as error:
        status, message = 1, str(error)
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = error.filename or "cannot write"  # what has no name is the output
        status, message = 2, f"{where}: {error.strerror}" if error.strerror else str(error)
    except KeyboardInterrupt as error:
        status, message = 130, f"stopped {error}".strip()
    print(f"{Path(sys.argv[0]).name}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(status)


def write_pictures(folder: Path, pictures: data.ImageData) -> None:
    """Write one test image of each class as PNG, enlarged, so that there is something to name.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    images : ImageData
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for label, name in enumerate(pictures.class_names):
        image = pictures.test_images[int(np.argmax(pictures.test_labels == label))]
        Image.fromarray(image).resize((256, 256), Image.Resampling.NEAREST).save(folder / f"{name}.png")
