"""Small runs of the trainer, and all that they leave, to be compared bit for bit."""

import csv
import json

import numpy as np

from scratchnet.data import Augmentation, Loader, Normalisation
from scratchnet.models import vgg11
from scratchnet.optim import SGD, Cosine
from scratchnet.tensorfile import read_tensors
from scratchnet.training import RunDirectory, Trainer

NORMALISATION = Normalisation((0.2,) * 3, (0.2,) * 3)
FILES = {"best.safetensors", "config.json", "last.safetensors", "log.csv", "state.safetensors"}


def labelled_images(n, seed):
    """Ten classes that a small network tells apart at once: each its own colour and place, and noise."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 10)
    images = rng.integers(0, 60, (n, 32, 32, 3))
    for image, label in zip(images, labels, strict=True):
        image[3 * label : 3 * label + 4, :, label % 3] += 180
    return images.astype("uint8"), labels


def prepare(
    folder=None, seed=0, lr=0.02, n=40, schedule=None, momentum=0.9, calm=False, backend="numpy", **settings
):
    """Everything a run needs, with all that is random in it: order, weights, and unless calm dropout and
    augmentation."""
    size = {"width": 0.0625, "classifier_width": 16, "dropout": 0.0 if calm else 0.5, "batch_norm": True}
    net = vgg11(10, 32, seed=seed, **size | settings)
    how = {"normalisation": NORMALISATION, "seed": seed}
    augmentation = Augmentation.named("none" if calm else "crop-flip-cutout8")
    train = Loader(*labelled_images(n, 1), 16, shuffle=True, augmentation=augmentation, **how)
    validation = Loader(*labelled_images(20, 2), 16, shuffle=False, **how)
    optimizer = SGD(net.parameters(), lr, momentum, weight_decay=1e-3)
    schedule = schedule or Cosine(lr, steps=4 * len(train), warmup=2)
    header = {"data": "stripes", "class_names": [f"stripe {k}" for k in range(10)]}
    run = None if folder is None else RunDirectory(folder, header=header)
    return Trainer(net.to(backend), optimizer, schedule, train, validation, run)


def fit(folder, epochs, resume=False, **settings):
    trainer = prepare(folder, **settings)
    if resume:
        trainer.resume()
    else:
        trainer.run.write_config({})
    trainer.fit(epochs)
    return trainer


def bits(folder):
    """All that a run leaves, to be compared bit for bit, but for the seconds it took."""
    everything = {}
    for name in ("best", "last"):
        everything[name] = (folder / f"{name}.safetensors").read_bytes()
    tensors, header = read_tensors(folder / "state.safetensors")
    everything |= {name: array.tobytes() for name, array in tensors.items()}
    everything["header"] = without_seconds(json.loads(header))
    with open(folder / "log.csv", newline="") as file:
        everything["log"] = [without_seconds(row) for row in csv.DictReader(file)]
    return everything


def without_seconds(value):
    if isinstance(value, dict):
        skip = ("seconds", "images_per_second")
        return {key: without_seconds(item) for key, item in value.items() if key not in skip}
    return [without_seconds(item) for item in value] if isinstance(value, list) else value
