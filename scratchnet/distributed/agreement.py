"""What has to be the same on all ranks, compared before the first step: later it would only be wrong."""

from __future__ import annotations

import platform
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

import scratchnet
from scratchnet.data import Loader
from scratchnet.distributed.communicator import Communicator, DistributedError

if TYPE_CHECKING:
    from scratchnet.training import Trainer

SAMPLES = 1000  # images of which a digest is made


def require_agreement(ranks: Communicator, facts: dict[str, Any]) -> None:
    """Raise DistributedError on all ranks, naming what differs, unless these facts are theirs, too."""
    all_facts = ranks.gather({name: str(value) for name, value in facts.items()})
    for name in dict.fromkeys(name for theirs in all_facts for name in theirs):
        first = all_facts[0].get(name, "not given")
        for rank, theirs in enumerate(all_facts):
            if (other := theirs.get(name, "not given")) != first:
                raise ranks.met(
                    DistributedError(
                        f"the ranks disagree: {name} is {first} on rank 0 and {other} on rank {rank}: start "
                        "all of them with the same arguments, data and versions"
                    )
                )


def facts_of(trainer: Trainer) -> dict[str, Any]:
    """Return what of a trainer must be the same on all ranks."""
    net, optimizer, steps = trainer.net, trainer.optimizer, len(trainer.train)
    shapes = {name: (p.shape, str(p.dtype), p.trainable) for name, p in net.parameters().items()}
    numbers = {k: v for k, v in vars(optimizer).items() if isinstance(v, (bool, int, float, str))}
    versions = {"scratchnet": scratchnet.__version__, "numpy": np.__version__}
    return {
        **{f"the version of {name}": version for name, version in versions.items()},
        "the version of Python": ".".join(platform.python_version_tuple()[:2]),
        "the network": type(net).__name__,
        "the number of parameters": sum(p.size for p in net.parameters().values()),
        "the digest of the parameters' names and shapes": _digest(repr(shapes).encode()),
        "the engine": type(trainer.engine).__name__,
        "the optimizer": f"{type(optimizer).__name__} {numbers}",
        "the learning rate": [trainer.schedule(step) for step in (0, steps // 2, steps, 10 * steps)],
        "the loss": {k: v for k, v in vars(trainer.loss).items() if not k.startswith("_")},
        **_of_data("training", trainer.train),
        **_of_data("validation", trainer.validation),
    }


def _of_data(which: str, loader: Loader) -> dict[str, Any]:
    chosen = np.ascontiguousarray(loader.indices)
    sample = chosen[:: -(-len(chosen) // SAMPLES) or 1]
    return {
        f"the number of {which} images": len(chosen),
        f"the batch size in {which}": loader.batch_size,
        f"the seed in {which}": loader.seed,
        f"the augmentation in {which}": loader.augmentation,
        f"the normalisation in {which}": loader.normalisation,
        f"the image size in {which}": loader.image_size or loader.images.shape[1:],
        f"the digest of which {which} images there are": _digest(chosen.astype(np.int64).tobytes()),
        f"the digest of the {which} images": _digest(np.ascontiguousarray(loader.images[sample]).data),
        f"the digest of the {which} labels": _digest(loader.labels[chosen].tobytes()),
    }


def _digest(data: Any) -> str:
    return f"{zlib.crc32(data):08x}"
