"""``scratchnet evaluate``: what is in an image, or how good a model is."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from os.path import expanduser, isdir
from pathlib import Path
from typing import Any

import numpy as np

from scratchnet import backend
from scratchnet.backend import Array
from scratchnet.cli.datasets import describe_test, load_data
from scratchnet.cli.model import (
    MODEL,
    add_corrections,
    check_memory,
    correct,
    load_model,
    normalisation_of,
    sizes_of,
)
from scratchnet.cli.program import Parser, complain, device_line, positive
from scratchnet.data import (
    DataError,
    Loader,
    Normalisation,
    decode_ahead,
    describe_left_out,
    images_in,
    list_classes,
)
from scratchnet.data.folder import Listing
from scratchnet.data.named import NAMES
from scratchnet.layers import Chain
from scratchnet.training import confusion_matrix, evaluate, make_engine, predict
from scratchnet.training.console import Progress, say
from scratchnet.training.engine import ENGINES, Layers, Plans
from scratchnet.training.evaluation import VIEWS, confusion_table
from scratchnet.untrusted import printable

ESSENTIALS = {  # what --help shows
    "MODEL": "a file of weights: safetensors, PyTorch's or ONNX",
    "[IMAGE ...]": "image files, folders, or http(s) addresses",
    "--top K": "print the K likeliest classes with probabilities",
    "--data NAME": "measure on the test images of cifar10, cifar100 or shapes10",
    "--views N": "look at 2 or 10 views of each image",
    "--classes NAMES": "the classes, joined by commas, or a file of them",
}

Decoded = tuple[str | PathLike[str], np.ndarray | DataError]  # an image, and its pixels or why there are none


def main() -> int:
    """Name images, or measure accuracy."""
    options = _parse()
    device = backend.get(options.backend)
    print(device_line(device, options.engine), file=sys.stderr, flush=True)
    net = load_model(options.model, device)
    correct(net, options)
    size, _ = sizes_of(net, options.model)
    if options.engine != "layers":
        check_memory(net, options.model, size, batch_size(size))
    engine = make_engine(net, options.engine)
    normalisation = normalisation_of(net, options.model)
    if options.data:
        return measure(net, engine, normalisation, options)
    if len(options.images) == 1 and not options.top and isdir(options.images[0]):
        listing = of_classes(options.images[0], net.info.get("class_names") or [])
        if listing is not None:
            return measure_folder(net, engine, normalisation, options, listing)
    return name_images(net, engine, normalisation, options)


def _parse() -> Namespace:
    parser = Parser(ESSENTIALS, description="Say what is in an image, or how good a model is.")
    add = parser.add_argument
    add("model", metavar="MODEL", type=expanduser, help=MODEL)
    images = "image files, folders (measured, if they have one for each class), or http(s) addresses"
    add("images", metavar="IMAGE", nargs="*", default=[], type=expanduser, help=images)
    top = "print the K likeliest classes with probabilities"
    add("--top", type=positive(int), metavar="K", help=top)
    add("--data", choices=NAMES, help="measure on this set's test images")
    folder = "the folder of CIFAR-10 (default data)"
    add("--data-dir", default="data", metavar="DIR", type=expanduser, help=folder)
    add("--backend", choices=("auto", "numpy", "cupy"), default="auto")
    add("--engine", choices=ENGINES, help="a plan (the default), or the layers")
    views = "look at so many views of each image: 2 with its mirror image, 10 shifted, too (default 1)"
    add("--views", type=positive(int), choices=VIEWS, default=1, help=views)
    add_corrections(parser)
    options = parser.parse_intermixed_args()  # so that options may stand between the images
    if bool(options.images) == bool(options.data):
        parser.error("give either images to name, or --data to measure on")
    if options.data and options.top:
        parser.error("--top is for images; --data measures how often the likeliest class is right")
    return options


def name_images(net: Chain, engine: Layers | Plans, normalisation: Normalisation, options: Namespace) -> int:
    """Print the class of each image, one per line; for those that cannot be read, a sentence on stderr."""
    size, num_classes = sizes_of(net, options.model)
    classes, status = net.info.get("class_names") or [f"class {k}" for k in range(num_classes)], 0
    images: list[str] = []
    in_folders: set[str] = set()
    for given in options.images:
        try:
            found = images_in(given) if isdir(given) else []
        except OSError as error:
            complain(f"{given} cannot be read: {error.strerror}")
            status = 2
            continue
        in_folders.update(found)  # they are told apart by their names
        images += found or [given]

    for image, probabilities in classified(images, net, engine, normalisation, options):
        if probabilities is None:
            status = 2
            continue
        best = np.argsort(-probabilities, kind="stable")[: options.top or 1]
        words = [f"{classes[k]} {probabilities[k]:.4f}" if options.top else classes[k] for k in best]
        say(printable((f"{image}: " if image in in_folders else "") + ", ".join(words)))
    return status


def classified(
    images: Sequence[str],
    net: Chain,
    engine: Layers | Plans,
    normalisation: Normalisation,
    options: Namespace,
) -> Iterator[tuple[str, np.ndarray | None]]:
    """Yield each image and its probabilities, (K,); None, after a sentence, if it cannot be read."""
    size, _ = sizes_of(net, options.model)
    number = batch_size(size)
    decoded = decode_ahead(images, size, ahead=2 * number, crop=net.info.get("crop", 1.0))
    while batch := take(decoded, number):
        readable = [pixels for _, pixels in batch if not isinstance(pixels, DataError)]
        likely: Iterator[np.ndarray] = iter(())
        if readable:
            x = normalisation.apply(np.stack(readable), dtype=net.dtype)
            likely = iter(finite(predict(net, x, engine, options.views), options.model))
        for image, pixels in batch:
            if isinstance(pixels, DataError):
                complain(str(pixels))
            yield str(image), None if isinstance(pixels, DataError) else next(likely)


def finite(values: Array, model: str | Path) -> Array:
    """Return them, or refuse the model: of NaN the likeliest class would be the first."""
    if not np.isfinite(values).all():
        raise ValueError(f"{model} puts out NaN: its weights are damaged, or its training failed")
    return values


def take(decoded: Iterable[Decoded], count: int) -> list[Decoded]:
    """Take images until so many can be read: a batch of another size would take a plan of its own."""
    batch: list[Decoded] = []
    for item in decoded:
        batch.append(item)
        if sum(not isinstance(pixels, DataError) for _, pixels in batch) == count:
            break
    return batch


def batch_size(image_size: int) -> int:
    """Return how many images go through the network at a time."""
    return 128 if image_size <= 64 else 8


def of_classes(folder: str, class_names: Sequence[str]) -> Listing | None:
    """Return the images in folders that are named as classes of the model, if there are any such.

    Its labels are the model's. Where there are ``train`` and ``test``, it lists the images of ``test``.
    """
    try:
        found = list_classes(folder)
    except DataError:
        return None
    split = next(split for split in ("test", "val", "train") if found.files.get(split))
    labels = {name: k for k, name in enumerate(class_names)}
    files, left_out = [], list(found.left_out)
    for name, label in found.files[split]:
        kind = found.class_names[label]
        if kind in labels:
            files.append((name, labels[kind]))
        else:
            left_out.append((name, f"is no class of the model: {kind}"))
    return Listing(tuple(class_names), {split: files}, left_out) if files else None


def measure_folder(
    net: Chain, engine: Layers | Plans, normalisation: Normalisation, options: Namespace, listing: Listing
) -> int:
    """Print accuracy and a confusion matrix on the images in folders that are named after their classes."""
    for line in describe_left_out(listing.left_out):
        complain(line)
    ((split, files),) = listing.files.items()
    classes, labels, predictions = listing.class_names, [], []
    images = classified([name for name, _ in files], net, engine, normalisation, options)
    with Progress(options.images[0], len(files)) as progress:
        for (_, probabilities), (_, label) in zip(images, files, strict=True):
            progress.update(1)
            if probabilities is not None:
                labels.append(label)
                predictions.append(int(probabilities.argmax()))
    unreadable = len(files) - len(labels)
    if not labels:
        raise DataError(f"{options.images[0]} has no image that can be read")
    share = np.mean(np.equal(labels, predictions))
    of = printable(options.images[0]) + (f", its {split} images" if split != "train" else "")
    count = f"{len(labels):,} images" + (f", {unreadable:,} unreadable" if unreadable else "")
    say(f"Accuracy: {share:.4f} ({of}, {count})")
    say(confusion_table(confusion_matrix(labels, predictions, len(classes)), list(map(printable, classes))))
    return 2 if unreadable else 0


def measure(net: Chain, engine: Layers | Plans, normalisation: Normalisation, options: Namespace) -> int:
    """Print accuracy and a confusion matrix on test images."""
    images = load_data(options.data, options.data_dir)
    classes = images.class_names
    size, num_classes = sizes_of(net, options.model)
    if num_classes != len(classes):
        raise ValueError(f"{options.model} has {num_classes} classes, {images.name} has {len(classes)}")
    trained_on = net.info.get("data", images.name)
    if trained_on != images.name:
        complain(f"note: trained on {trained_on}, measured on {images.name}")
    how: dict[str, Any] = {"normalisation": normalisation, "image_size": size, "dtype": net.dtype}
    how["crop"] = net.info.get("crop", 1.0)
    test = Loader(images.test_images, images.test_labels, batch_size(size), shuffle=False, **how)
    with Progress(images.name, test.n_samples) as progress:
        result = evaluate(net, test, engine, options.views, progress.update)
    finite(np.array(result.loss), options.model)
    say(f"Accuracy: {result.accuracy:.4f} ({describe_test(images)})")
    say(confusion_table(confusion_matrix(result.labels, result.predictions, len(classes)), classes))
    return 0
