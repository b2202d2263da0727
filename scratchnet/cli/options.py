"""The options of a training: the command line, the demo, the recipes, and the run that is resumed."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from scratchnet.cli import together
from scratchnet.cli.program import Parser, at_least_zero, command, positive
from scratchnet.data import named as data_sets
from scratchnet.initialise import INITIALISATIONS
from scratchnet.interop import CHANNELS
from scratchnet.layers import Layer
from scratchnet.models import ARCHITECTURES
from scratchnet.models.vgg import HEADS
from scratchnet.optim import SCHEDULES
from scratchnet.training import RunDirectory, RunError, Trainer
from scratchnet.training.arguments import ON_NAN
from scratchnet.training.config import circumstances
from scratchnet.training.engine import ENGINES, PRECISIONS
from scratchnet.training.evaluation import VIEWS
from scratchnet.training.options import DEFAULTS, read_options
from scratchnet.training.snapshot import described

# A small network on the built-in images: about a minute on two cores.
DEMO: dict[str, Any] = {
    **{"data": "shapes10", "arch": "vgg11", "batch_norm": True, "width": 0.25, "classifier_width": 256},
    **{"dropout": 0.0, "epochs": 8, "batch_size": 64, "lr": 0.1, "weight_decay": 2e-3},
    **{"schedule": "one-cycle", "label_smoothing": 0.1, "augment": "flip", "run_dir": "runs/demo"},
}

# The full runs whose results README shows: 15 epochs on CIFAR-10.
_CIFAR10 = {"data": "cifar10", "arch": "vgg16", "epochs": 15}
_GOOD = {**_CIFAR10, "weight_decay": 1e-3, "nesterov": True, "label_smoothing": 0.1, "views": 10}
RECIPES: dict[str, dict[str, Any]] = {
    "vgg16-bn": {
        **_GOOD,
        **{"batch_norm": True, "lr": 0.06, "dropout": 0.0, "output_scale": 0.1, "validation": 1000},
        "image_size": 48,  # enlarged, which learns in fewer epochs
        "head": "gap",  # takes this size, and does nothing to the last map, which is 1 x 1
        "augment": "crop-flip-cutout8",
    },
    "vgg16": {**_GOOD, "batch_size": 64, "lr": 0.02, "dropout": 0.3, "validation": 2500},
    "article": {**_CIFAR10, "lr": 0.001, "schedule": "constant"},  # "Implementing VGG16 from Scratch"
}

OPTIMIZERS: dict[str, dict[str, Any]] = {"sgd": {}, "adamw": {"lr": 1e-3, "weight_decay": 1e-2}}

# What a resumed run may change: where it computes, where the data lie, and how long it trains.
MAY_CHANGE = {"backend", "engine", "data_dir", "data_memory", "epochs", "run_dir", "resume", "dry_run"}
MAY_CHANGE |= {"diagnose", "views", "no_test", "on_nan", "save_minutes", "distributed"}


# What --help shows; --help-all shows the rest.
ESSENTIALS = {
    "--demo": "a small network on the built-in images, in about a minute",
    "--data DATA": "cifar10, cifar100, shapes10, or a FOLDER of one per class",
    "--data-dir DIR": "where CIFAR lies, or is to be downloaded to",
    "--arch NAME": f"{', '.join(ARCHITECTURES)}",
    "--batch-norm": "batch normalisation after every convolution",
    "--image-size S": "resize the images to S pixels",
    "--epochs N": "how many times to go through the images",
    "--batch-size N": "images per step",
    "--optimizer NAME": "sgd or adamw",
    "--lr RATE": "the highest learning rate",
    "--recipe NAME": f"the settings of a full run: {', '.join(RECIPES)}",
    "--init-from FILE": "begin with all weights of a file that fit",
    "--freeze PATHS": "do not train these layers, as in: features",
    "--run-dir DIR": "where weights, log and state are left",
    "--resume": "go on with a run, that of --run-dir or the newest",
    "--dry-run": "print what memory and time it will take, and stop",
    "--diagnose": "say how each layer does, and what is wrong",
}


def parse_training(arguments: Sequence[str] | None = None) -> SimpleNamespace:
    """Read the options of a training, named as in ``DEFAULTS``; with ``--resume``, of the run to resume.

    An option that is not understood ends the program with status 2, after a sentence on standard error.
    RunError is raised if ``--resume`` finds no run, or an option contradicts the one of the run.

    >>> parse_training(["--arch", "vgg11", "--epochs", "3"]).epochs
    3
    """
    parser = _training_parser()
    given = vars(parser.parse_args(arguments))
    if given.get("demo") and given.get("recipe"):
        parser.error("--demo and --recipe are two different runs: give one")
    chosen = DEMO if given.get("demo") else RECIPES.get(given.get("recipe", ""), {})
    if mistake := _mistake(given):
        parser.error(mistake)
    options = DEFAULTS | OPTIMIZERS[given.get("optimizer", "sgd")] | chosen | given

    def resolved() -> dict[str, Any]:
        return _options_of_run(options["run_dir"], given) if options["resume"] else options

    return SimpleNamespace(**together.options_of_all(options["distributed"], given, resolved))


def _training_parser() -> Parser:
    parser = Parser(
        description="Train a VGG on CIFAR-10, in NumPy or CuPy, with every gradient written by hand.",
        essentials=ESSENTIALS,
        argument_default=argparse.SUPPRESS,  # so that what was given can be told from what was not
    )

    def add(group: Any, name: str, text: str, **keywords: Any) -> None:
        default = DEFAULTS[name.replace("-", "_")]
        if default is not None and not isinstance(default, bool):
            text += f" (default {default})"
        group.add_argument(f"--{name}", help=text, **keywords)

    flag: dict[str, Any] = {"action": "store_true"}
    folder: dict[str, Any] = {"metavar": "DIR", "type": os.path.expanduser}
    count: dict[str, Any] = {"metavar": "N", "type": positive(int)}
    share: dict[str, Any] = {"type": at_least_zero(float)}
    data: dict[str, Any] = {"type": data_set, "metavar": "DATA"}
    where = parser.add_argument_group("where and what")
    add(where, "backend", "array library; only auto may choose", choices=("auto", "numpy", "cupy"))
    add(where, "engine", "a plan (the default), or the layers one by one", choices=ENGINES)
    add(where, "precision", "in which a GPU multiplies (default tf32 where it has that)", choices=PRECISIONS)
    names = ", ".join(data_sets.NAMES)
    add(where, "data", f"{names}, a FOLDER with a folder of images for each class, or auto: CIFAR-10", **data)
    add(where, "data-dir", "the folder that holds, or is to hold, CIFAR's archives or files", **folder)
    megabytes = "of resized images to keep; those of a FOLDER that take more are read in each epoch"
    add(where, "data-memory", megabytes, type=at_least_zero(int), metavar="MB")
    add(where, "subset", "train on N images only, of each class alike", **count)
    add(where, "validation", "validate on N training images (default a tenth of all)", **count)
    add(where, "run-dir", "the folder for weights, log and state (default a new one in runs/)", **folder)
    add(where, "no-test", "leave the test images alone, while settings are still chosen", **flag)
    add(where, "views", "also test with N views of each image", type=positive(int), choices=VIEWS)
    add(where, "resume", "resume the run in --run-dir (default the newest in runs/)", **flag)
    add(where, "dry-run", "print what memory and time it will take, by steps that it measures; stop", **flag)
    add(where, "diagnose", "print every few hundred steps how each layer does, and what is wrong", **flag)
    add(where, "demo", "a small network on the built-in images, in about a minute, into runs/demo", **flag)
    add(where, "recipe", "the settings of a full run, see benchmarks/README.md", choices=[*RECIPES])
    net = parser.add_argument_group("the network")
    add(net, "arch", 'architecture; article: "Implementing VGG16 from Scratch"', choices=[*ARCHITECTURES])
    add(net, "batch-norm", "batch normalisation after every convolution", **flag)
    add(net, "width", "multiplies the channels of the convolutions only", type=positive(float), metavar="W")
    add(net, "image-size", "resize the images to S pixels", type=positive(int), metavar="S")
    add(net, "head", "what the linear layers see: the last map, or its mean", choices=HEADS)
    add(net, "classifier-width", "of the hidden linear layers", **count)
    add(net, "dropout", "after the hidden linear layers", **share, metavar="P")
    add(net, "init", "initial weights; all but the default show failure", choices=[*INITIALISATIONS])
    add(net, "output-scale", "multiplies the last layer's initial weights", **share, metavar="S")
    start = parser.add_argument_group("weights to begin with")
    file: dict[str, Any] = {"metavar": "FILE", "type": os.path.expanduser}
    colours: dict[str, Any] = {"nargs": 3, "type": float, "metavar": ("R", "G", "B")}
    text = "take all weights that fit from FILE: safetensors, PyTorch's or ONNX; not on --resume"
    add(start, "init-from", text, **file)
    add(start, "new-head", "leave the last layer new, even if the one in FILE fits", **flag)
    add(start, "freeze", "do not train these layers: features, or features.0,classifier.0", metavar="PATHS")
    add(start, "body-lr-scale", "multiplies --lr for the convolutions", **share, metavar="S")
    add(start, "init-channels", "what FILE expects; bgr for Caffe's and Keras's VGG", choices=CHANNELS)
    text = "with --new-head: equal scales in all layers, for weights of 0-255 pixels"
    add(start, "init-rescale", text, **flag)
    text = "of pixels from 0 to 1 (default that of FILE, else of the training images)"
    add(start, "mean", text, **colours)
    add(start, "std", text, **colours)
    training = parser.add_argument_group("the training")
    add(training, "epochs", "how many", **count)
    add(training, "batch-size", "images per step", **count)
    add(training, "optimizer", "adamw begins with --lr 0.001 --weight-decay 0.01", choices=[*OPTIMIZERS])
    add(training, "lr", "the highest learning rate", type=positive(float))
    add(training, "momentum", "of SGD", **share)
    add(training, "nesterov", "take Nesterov's momentum: look one step ahead", **flag)
    add(training, "weight-decay", "of all weights", **share)
    add(training, "schedule", "of the learning rate", choices=SCHEDULES)
    add(training, "label-smoothing", "how much of the target goes to all classes", **share)
    text = "balanced: let every class count alike, however few images it has"
    add(training, "class-weights", text, choices=("balanced",))
    add(training, "augment", "what happens to training images: none, crop, flip, cutout, joined by dashes")
    add(training, "clip-norm", "of all gradients together, at most", type=positive(float), metavar="C")
    text = "where the loss is NaN: stop, or go back to the last good state with half the rate, at most thrice"
    add(training, "on-nan", text, choices=ON_NAN)
    add(training, "save-minutes", "save within an epoch, too, so often", **share, metavar="M")
    add(training, "seed", "of everything random", type=at_least_zero(int), metavar="N")
    many = parser.add_argument_group("many processes")
    add(many, "distributed", "divide each batch among the processes that mpirun has started", **flag)
    add(many, "sync-batch-norm", "normalise with the statistics of the whole batch, not of each part", **flag)
    add(many, "scale-lr", "multiply the learning rate by the number of processes, with a warm-up", **flag)
    add(many, "ranks", "that number (default as many as the run is begun with)", **count)
    return parser


def data_set(text: str) -> str:
    """Return the name of a data set, or the whole path of a folder, from the command line.

    >>> data_set("cifar10")
    'cifar10'
    """
    if text in ("auto", *data_sets.NAMES):
        return text
    folder = os.path.abspath(os.path.expanduser(text))
    if not os.path.isdir(folder):
        names = ", ".join(("auto", *data_sets.NAMES))
        raise argparse.ArgumentTypeError(f"must be {names}, or a folder of images, not {text!r}")
    return folder


def _mistake(given: dict[str, Any]) -> str:
    """Return what is wrong with options that go together; nothing if all is well."""
    if given.get("optimizer") == "adamw" and (own := {"momentum", "nesterov"} & given.keys()):
        return f"--{min(own)} is of --optimizer sgd, and adamw has none"
    if ("mean" in given) != ("std" in given):
        return "--mean and --std go together: give both"
    if "mean" in given and not all(0 <= value <= 1 for value in given["mean"]):
        return "--mean must be of pixels from 0 to 1: divide what is meant for pixels up to 255 by 255"
    if "std" in given and not all(0 < value < float("inf") for value in given["std"]):
        return "--std must be three numbers above zero, of pixels from 0 to 1"
    lacking = next((name for name in ("new_head", "init_channels") if name in given), "")
    if lacking and not {"init_from", "resume"} & given.keys():
        return f"--{lacking.replace('_', '-')} belongs to --init-from: give a file"
    if "init_rescale" in given and not {"new_head", "resume"} & given.keys():
        return "--init-rescale belongs to --new-head: the scale of an old one would no longer fit"
    return ""


def _options_of_run(run_dir: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the run that is resumed, and refuse those that contradict it."""
    if run_dir is None:
        states = sorted(Path("runs").glob("*/state.safetensors"), key=os.path.getmtime)
        if not states:
            raise RunError("there is no run to resume in the folder runs: say which with --run-dir")
        run_dir = str(states[-1].parent)
    if not Path(run_dir).is_dir():
        raise RunError(f"there is no run to resume: {run_dir} is no folder")
    run = RunDirectory(run_dir, read_only=True)
    options = read_options(run)
    refuse_what_only_python_has(run)
    if not run.has_state and not run.is_begun:
        raise RunError(f"{run_dir} has no {run.state.name} to resume from: begin a new run in another folder")
    for name, value in given.items():
        chosen = name == "data" and value == "auto"  # what it chose then is what it chooses now
        if name not in MAY_CHANGE and value != options[name] and not chosen:
            option, before = f"--{name.replace('_', '-')}", options[name]
            was = f"was begun {'with' if before else 'without'} {option}"
            if not isinstance(before, bool):
                was = f"has {option} {before}, not {value}" if before is not None else f"has no {option}"
            raise RunError(f"the run in {run_dir} {was}: leave {option} out to resume, or begin a new run")
    changed = {name: given[name] for name in MAY_CHANGE & set(given)}
    changed["no_test"] = given.get("no_test", False)  # is said each time, since nothing could take it back
    return options | changed | {"run_dir": run_dir, "resume": True}


def refuse_what_only_python_has(run: RunDirectory, trainer: Trainer | None = None) -> None:
    """Raise a RunError if a run was made in Python as no options say, or otherwise than this trainer."""
    config = run.read_config()
    obstacles = config.get("python")
    if obstacles is None:
        return
    if not isinstance(obstacles, list) or not isinstance(config.get("described", {}), dict):
        raise RunError(f"{run.config} is damaged: what it says of Python is no list")
    if not obstacles and trainer is not None:
        here, before = described(trainer), config.get("described", {})
        differ = [name for name in here if before.get(name) != here[name]]
        obstacles = [f"its {name} are not those of its options" for name in differ]
    if obstacles:
        advice = "make the same Trainer in Python and call its resume()"
        raise RunError(f"the run in {run.path} was made in Python, and {obstacles[0]}: {advice}")


def open_run(options: SimpleNamespace, net: Layer, header: dict[str, Any], kept: int = 1) -> RunDirectory:
    """Return the run directory, and refuse one that another run has used; the demo may overwrite a demo.

    Without ``--run-dir`` it is a new folder in ``runs``, whose name is then ``options.run_dir``. ``header``
    is saved beside the weights of ``net``. RunError is raised, too, if nothing can be written there, or
    there is not enough space.
    """
    if options.run_dir is None:
        norm = "-bn" if options.batch_norm else ""
        name = f"{options.arch}{norm}-{time.strftime('%Y%m%d-%H%M%S')}"
        run = RunDirectory.create(Path("runs", name), header)
        options.run_dir = str(run.path)
    else:
        run = RunDirectory(options.run_dir, header=header)
    run.settings = {name: value for name, value in _kept(options, header).items() if name not in MAY_CHANGE}
    run.lock()
    try:
        run.require_space(net, kept)
        if not options.resume and options.demo and _holds_demo(run):
            run.clear()
        elif not options.resume and run.has_results:
            advice = "resume it by --resume" if run.has_state else "remove it"
            raise RunError(f"{run.path} holds a run: {advice}, or choose another --run-dir")
    except RunError:
        run.release()
        raise
    return run


def _holds_demo(run: RunDirectory) -> bool:
    try:
        return bool(run.read_config()["options"]["demo"])
    except (RunError, KeyError, TypeError):
        return False


def _kept(options: SimpleNamespace, header: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a run as a resumed run is to have them."""
    chosen = options.data
    if chosen == "auto" and "data" in header:  # what it took: a resumed run takes it again
        chosen = header["data"].lower().replace("-", "")
    return vars(options) | {"resume": False, "data": chosen}


def describe_run(
    options: SimpleNamespace, device: str, header: dict[str, Any], identity: str
) -> dict[str, Any]:
    """Return what ``config.json`` reports of a run: its options, what it ran on, and the command given."""
    return {
        "options": _kept(options, header),
        "run": identity,
        **header,
        "command": command(*sys.argv[1:]),
        **circumstances(device),
    }
