"""The options of a run and their defaults: what ``config.json`` holds."""

from __future__ import annotations

import json
from math import inf
from typing import Any

from scratchnet import checks
from scratchnet.training.rundir import RunDirectory, RunError

DEFAULTS: dict[str, Any] = {
    **{"backend": "auto", "engine": None, "precision": None, "data": "auto", "data_dir": "data"},
    **{"data_memory": 2000, "class_weights": None},
    # The network
    **{"arch": "vgg16", "batch_norm": False, "width": 1.0, "image_size": 32, "head": "flatten"},
    **{"classifier_width": 4096, "dropout": 0.5, "init": "he", "output_scale": 1.0},
    # Weights that it begins with
    **{
        "init_from": None,
        "init_channels": "rgb",
        "init_rescale": False,
        "new_head": False,
        "freeze": None,
        "mean": None,
        "std": None,
    },
    # The training
    **{"subset": None, "validation": None, "epochs": 15, "batch_size": 128, "lr": 0.02, "momentum": 0.9},
    "optimizer": "sgd",
    **{"nesterov": False, "weight_decay": 5e-4, "schedule": "cosine", "label_smoothing": 0.0},
    **{"augment": "crop-flip", "seed": 0, "body_lr_scale": 1.0, "clip_norm": None},
    **{"on_nan": "stop", "save_minutes": 10.0},
    # The program
    **{
        "run_dir": None,
        "resume": False,
        "dry_run": False,
        "diagnose": False,
        "views": 1,
        "no_test": False,
        "demo": False,
    },
    "recipe": None,
    # Many processes
    **{"distributed": False, "sync_batch_norm": False, "scale_lr": False, "ranks": None},
}

# If they are not given: None
UNSET = {"engine": str, "subset": int, "validation": int, "run_dir": str, "recipe": str, "init_from": str}
UNSET |= {
    "clip_norm": float,
    "ranks": int,
    "class_weights": str,
    "freeze": str,
    "precision": str,
    "mean": list,
    "std": list,
}


def read_options(run: RunDirectory) -> dict[str, Any]:
    """Return the options of a run, each of the right kind; those that there were not yet by their defaults.

    RunError is raised if its ``config.json`` is missing or damaged.

    >>> import tempfile
    >>> run = RunDirectory(tempfile.mkdtemp())
    >>> run.write_config({"options": {"lr": 0.3}})
    >>> options = read_options(run)
    >>> options["lr"], options["momentum"]
    (0.3, 0.9)
    """
    options = run.read_config().get("options")
    if not isinstance(options, dict):
        raise RunError(f"{run.config} is damaged: it does not hold the options of a run")
    options = DEFAULTS | options
    for name in DEFAULTS:
        if wanted := _kind_missed(name, options[name]):
            shown = f"{name} is {json.dumps(options[name])}, and should be {wanted}"
            raise RunError(f"{run.config} is damaged: its option {shown}")
    if (options["mean"] is None) != (options["std"] is None):
        raise RunError(f"{run.config} is damaged: its options mean and std go together")
    return options


def _kind_missed(name: str, value: Any) -> str:
    """Return what an option should have been, in words; nothing if ``value`` is that."""
    if value is None and name in UNSET:
        return ""
    kind = UNSET.get(name) or type(DEFAULTS[name])
    if kind is list:
        try:
            checks.real(**{str(i): v for i, v in enumerate(value)})
        except (TypeError, ValueError):
            value = None
        return "" if isinstance(value, list) and len(value) == 3 else "three numbers"
    if kind in (bool, str):
        return "" if isinstance(value, kind) else {bool: "true or false", str: "text"}[kind]
    least = 1 if kind is int and name not in ("seed", "data_memory") else 0
    try:
        if kind is int:
            checks.whole(least, inf if name == "seed" else checks.MOST, value=value)
        else:
            checks.real(least, value=value)  # a caller of the library may say lr=1
    except ValueError as error:
        return str(error).partition("must be ")[2].rpartition(", not ")[0]
    return ""
