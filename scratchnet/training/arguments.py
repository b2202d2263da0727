"""The arguments of a trainer, each accepted or refused before anything is computed."""

from __future__ import annotations

import os
from typing import Any

from scratchnet import checks
from scratchnet.layers import Layer
from scratchnet.training.observers import Observer
from scratchnet.training.rundir import RunDirectory

ON_NAN = ("stop", "rollback")


def check(
    net: Any,
    optimizer: Any,
    schedule: Any,
    loaders: dict[str, Any],
    run: Any,
    loss: Any,
    engine: Any,
    observers: Any,
) -> None:
    """Raise a ValueError, with the argument's name, unless all of them can do what a trainer asks of them."""
    if not isinstance(net, Layer):
        raise _wrong("net", "a layer, such as models.vgg16()", net)
    if not hasattr(optimizer, "step") or not hasattr(optimizer, "parameters"):
        raise _wrong("optimizer", "one of scratchnet.optim's, such as SGD", optimizer)
    own = {id(p) for p in net.parameters().values()}
    if not any(id(p) in own for p in optimizer.parameters.values()):
        raise ValueError("optimizer has no parameter of this network: make it of net.parameters()")
    if not callable(schedule):
        raise _wrong("schedule", "a function of the step, such as optim.Constant(0.01)", schedule)
    checks.real(0.0, **{"schedule(0)": schedule(0)})
    for name, loader in loaders.items():
        if not all(hasattr(loader, needed) for needed in ("epoch", "n_samples", "__len__")):
            raise _wrong(name, "a data.Loader", loader)
        if not loader.n_samples:
            raise ValueError(f"{name} has no images")
    if not isinstance(run, (str, os.PathLike, RunDirectory, type(None))):
        raise _wrong("run", "a path or a RunDirectory", run)
    for name, value in {"loss": loss, "engine": engine}.items():
        if not isinstance(value, (str, type(None))) and not (
            hasattr(value, "forward") and hasattr(value, "backward")
        ):
            raise _wrong(name, "something with forward and backward", value)
    if isinstance(loss, str):
        raise _wrong("loss", "something with forward and backward", loss)
    try:
        listed = [] if observers is None else list(observers)
    except TypeError:
        raise _wrong("observers", "a list of observers", observers) from None
    needed = [name for name in vars(Observer) if name.startswith("on_")]
    for observer in listed:
        if isinstance(observer, type) or not all(hasattr(observer, name) for name in needed):
            raise _wrong("observers", "a list of training.Observer", observer)


def check_options(save_minutes: Any, on_nan: Any, max_norm: Any) -> None:
    """The same for those that are numbers and names."""
    checks.real(0.0, save_minutes=save_minutes)
    if on_nan not in ON_NAN:
        raise ValueError(f"on_nan must be 'stop' or 'rollback', not {on_nan!r}")
    if max_norm is not None:
        checks.real(0.0, clip_norm=max_norm)


def _wrong(name: str, wanted: str, value: Any) -> ValueError:
    what = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
    return ValueError(f"{name} must be {wanted}, not {what}")
