"""The smallest run that has everything in it: convolution, normalisation, dropout, augmentation, momentum.

Three steps an epoch, of some milliseconds each; what it leaves is compared by ``tests.fakes.runs.bits``.
"""

import numpy as np

from scratchnet.data import Augmentation, Loader, Normalisation
from scratchnet.layers import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential
from scratchnet.optim import SGD, Cosine
from scratchnet.training import Observer, RunDirectory, Trainer

STEPS = 3  # of an epoch
__all__ = ["Observer", "go_on", "prepare"]


def network(seed=0):
    rng = np.random.default_rng(seed)
    features = Conv2d(3, 4, rng=rng), BatchNorm2d(4), ReLU(), MaxPool2d(2), Flatten()
    return Sequential(*features, Dropout(0.5, rng=rng), Linear(4 * 4 * 4, 4, rng=rng))


def loaders(seed=0):
    rng = np.random.default_rng(7)
    images, labels = rng.integers(0, 256, (32, 8, 8, 3)).astype("uint8"), np.arange(32) % 4
    how = {"normalisation": Normalisation((0.5,) * 3, (0.3,) * 3), "seed": seed}
    augmentation = Augmentation.named("crop1-flip")
    train = Loader(images, labels, 8, shuffle=True, indices=np.arange(20), augmentation=augmentation, **how)
    return train, Loader(images, labels, 8, shuffle=False, indices=np.arange(20, 32), **how)


def prepare(folder=None, seed=0, engine="layers", backend="numpy", observers=(), epochs=3, **settings):
    """A trainer; settings are those of ``Trainer``."""
    net, (train, validation) = network(seed).to(backend), loaders(seed)
    optimizer = SGD(net.parameters(), 0.02, momentum=0.9, weight_decay=1e-3)
    run = None if folder is None else RunDirectory(folder)
    schedule = settings.pop("schedule", None) or Cosine(0.02, steps=epochs * len(train), warmup=2)
    how = {"engine": engine, "observers": observers} | settings
    return Trainer(net, optimizer, schedule, train, validation, run, **how)


def go_on(folder, epochs=3, **settings):
    """Begin a run, or go on with it, until so many epochs are done; return the trainer."""
    trainer = prepare(folder, **settings)
    with trainer.run.locked():
        if trainer.run.has_state or trainer.run.is_begun:
            trainer.resume(epochs)
        else:
            trainer.run.write_config({"run": trainer.identity})
        trainer.fit(epochs)
    return trainer
