"""What ``config.json`` holds of a run that was made in Python: what its trainer knows.

``options``
    Those of the command line, as far as they say what the trainer has.
``python``
    What keeps the command line from making the same trainer again, and so from resuming the run: a list of
    clauses, empty if nothing does. A run that the command line began has no such entry.
``described``
    What a resumed run must have in common with it, see ``snapshot.described``.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import scratchnet
from scratchnet import rebuild
from scratchnet.data import Augmentation, ImageData, Loader, divide
from scratchnet.data.named import NAMES
from scratchnet.header import channels
from scratchnet.losses import SoftmaxCrossEntropy, balanced_class_weights
from scratchnet.models import ARCHITECTURES, VGG
from scratchnet.optim import SCHEDULES, SGD, AdamW, schedule
from scratchnet.training.alone import Alone
from scratchnet.training.snapshot import described

if TYPE_CHECKING:
    from scratchnet.training.trainer import Trainer

BY_NAME = {name.replace("cifar", "CIFAR-"): name for name in NAMES}  # as a data set calls itself


def config_of(trainer: Trainer, epochs: int) -> dict[str, Any]:
    """Return what ``config.json`` is to hold of a run that is to have so many epochs."""
    options: dict[str, Any] = {"epochs": epochs, "clip_norm": trainer.clip_norm}
    options |= {"on_nan": trainer.saving.on_nan, "save_minutes": trainer.saving.minutes}
    options["engine"] = {"Layers": "layers", "Plans": "plan"}.get(type(trainer.engine).__name__)
    options |= {"backend": trainer.net.backend.name, "precision": getattr(trainer.engine, "precision", None)}
    parts = _network(trainer), _data(trainer), _optimizer(trainer), _schedule(trainer, epochs), _loss(trainer)
    obstacles = []
    for part in parts:
        for found in part:
            if isinstance(found, str):
                obstacles.append(found)
            else:
                options |= found
    if type(trainer.parallel) is not Alone:
        obstacles.append("its batches were divided among processes")
    run = trainer.run
    header = {} if run is None else {key: value for key, value in run.header.items() if value is not None}
    return {
        "options": options,
        "python": obstacles,
        "run": trainer.identity,
        "class_names": [f"class {k}" for k in range(_classes(trainer))],
        **header,
        "network": _name_of(trainer.net),
        "described": described(trainer),
        **circumstances(trainer.net.backend.device),
    }


def header_of(trainer: Trainer) -> dict[str, Any]:
    """Return what the trainer knows of the entries that its weights are saved with: the normalisation."""
    normalisation = getattr(trainer.train, "normalisation", None)
    if normalisation is None or channels(trainer.net) not in (None, len(normalisation.mean)):
        return {}
    return {"mean": list(normalisation.mean), "std": list(normalisation.std)}


def circumstances(device: str) -> dict[str, Any]:
    """Return what a run runs on, and when."""
    versions = {"scratchnet": scratchnet.__version__, "numpy": np.__version__}
    versions["python"] = platform.python_version()
    return {"device": device, "date": time.strftime("%Y-%m-%d %H:%M:%S"), "versions": versions}


def _name_of(net: Any) -> str:
    settings = net.settings()
    if not isinstance(net, VGG):
        return type(net).__name__
    name = settings["architecture"] if isinstance(settings["architecture"], str) else "VGG"
    return name + " with batch normalisation" * settings["batch_norm"]


def _classes(trainer: Trainer) -> int:
    """Return how many classes the network tells apart, or at least those that have labels."""
    try:
        size = getattr(trainer.train, "image_size", None)
        _, H, W, C = trainer.train.images.shape
        return int(trainer.net.output_shape((1, size or H, size or W, C))[-1])
    except (AttributeError, NotImplementedError, ValueError):  # another's loader, or another's layer
        return int(np.max(getattr(trainer.train, "labels", 0))) + 1


# Each yields options, and clauses on what no option says.

Found = Iterator[dict[str, Any] | str]


def _network(trainer: Trainer) -> Found:
    net = trainer.net
    entries = rebuild.entries(net)
    settings = entries.get("model", {})
    if "changes" in entries or settings.get("architecture") not in (*ARCHITECTURES,):
        yield "its network is none that --arch names"
    else:
        yield {"arch": settings["architecture"]}
    if settings.get("in_channels", 3) != 3 or net.dtype != "float32":
        yield "its network does not take colours in float32"
    names = ("batch_norm", "width", "image_size", "classifier_width", "dropout", "head")
    yield {name: settings[name] for name in names if name in settings}
    trained = [f"{name}." for name, p in net.parameters().items() if p.trainable]
    frozen = [name for name, p in net.parameters().items() if not p.trainable]
    if frozen:
        yield {"freeze": ",".join(dict.fromkeys(_shortest_apart(name, trained) for name in frozen))}


def _shortest_apart(name: str, others: Sequence[str]) -> str:
    """Return the shortest path that this parameter lies in, and none of the others.

    >>> _shortest_apart("features.0.weight", ["features.2.weight.", "classifier.0.weight."])
    'features.0'
    """
    parts = name.split(".")
    paths = (".".join(parts[: n + 1]) for n in range(len(parts)))
    return next((path for path in paths if not any(o.startswith(f"{path}.") for o in others)), name)


def _data(trainer: Trainer) -> Found:
    train, validation = trainer.train, trainer.validation
    header = {} if trainer.run is None else trainer.run.header
    name = header.get("data")
    if name in BY_NAME:
        yield {"data": BY_NAME[name]}
    elif name is None:
        yield "does not say which data it was trained on (RunDirectory takes header={'data': images.name})"
    else:
        yield f"its data, {name}, are none that --data names"
    if type(train) is not Loader or type(validation) is not Loader:
        yield "its images come from a loader of another kind"
        return
    yield {"batch_size": train.batch_size, "seed": int(train.seed), "validation": validation.n_samples}
    yield {"image_size": train.image_size or train.images.shape[1], "subset": train.n_samples}
    yield {"mean": list(train.normalisation.mean), "std": list(train.normalisation.std)}
    changes = train.augmentation or Augmentation()
    kinds = {"crop": changes.crop, "flip": changes.flip, "cutout": changes.cutout}
    sizes = {name: "" if name == "flip" else size for name, size in kinds.items() if size}
    yield {"augment": "-".join(f"{name}{size}" for name, size in sizes.items()) or "none"}
    if train.normalisation != validation.normalisation or train.image_size != validation.image_size:
        yield "its validation images are prepared otherwise than those to train on"
    if not _divided_as_usual(train, validation):
        yield "its validation images are not those that --validation draws from the training images"
    if train.images.shape[3] != 3:
        yield "its images are not in colour"


def _divided_as_usual(train: Loader, validation: Loader) -> bool:
    if not np.array_equal(train.labels, validation.labels):
        return False
    whole = ImageData(train.images, train.labels, train.images[:0], train.labels[:0], ())
    try:
        learn, validate = divide(whole, validation.n_samples, train.n_samples, train.seed)
    except ValueError:
        return False
    return np.array_equal(learn, train.indices) and np.array_equal(validate, validation.indices)


def _optimizer(trainer: Trainer) -> Found:
    optimizer = trainer.optimizer
    kind = {SGD: "sgd", AdamW: "adamw"}.get(type(optimizer))
    if kind is None:
        yield f"its optimizer is {type(optimizer).__name__}"
        return
    yield {"optimizer": kind, "weight_decay": optimizer.weight_decay}
    if isinstance(optimizer, SGD):
        yield {"momentum": optimizer.momentum, "nesterov": optimizer.nesterov}
    if isinstance(optimizer, AdamW) and (*optimizer.betas, optimizer.eps) != (0.9, 0.999, 1e-8):
        yield "its AdamW has other betas or another eps"
    if optimizer.lr_scales.keys() <= {"features"}:
        yield {"body_lr_scale": optimizer.lr_scales.get("features", 1.0)}
    else:
        yield "its learning rates are scaled layer by layer"
    if any(optimizer.no_decay(name, p) for name, p in optimizer.parameters.items()):
        yield "weight decay leaves some of its parameters alone"
    if list(optimizer.parameters) != list(trainer.net.parameters()):
        yield "its optimizer has some of the parameters only"


def _schedule(trainer: Trainer, epochs: int) -> Found:
    own = trainer.schedule
    lr, steps = getattr(own, "lr", None), epochs * len(trainer.train)
    if isinstance(lr, (int, float)):
        yield {"lr": lr}
    if lr is not None and (names := [n for n in SCHEDULES if own == schedule(n, lr, steps)]):
        yield {"schedule": names[0]}
    else:
        yield f"its schedule is none that --schedule names for {epochs} epochs of {len(trainer.train)} steps"


def _loss(trainer: Trainer) -> Found:
    loss = trainer.loss
    if type(loss) is not SoftmaxCrossEntropy:
        yield f"its loss is {type(loss).__name__}"
        return
    yield {"label_smoothing": loss.label_smoothing}
    if loss.class_weights is not None:
        labels = trainer.train.labels[trainer.train.indices]
        if np.array_equal(loss.class_weights, balanced_class_weights(labels, len(loss.class_weights))):
            yield {"class_weights": "balanced"}
        else:
            yield "its loss has class weights of its own"
