"""Data sets by name, as the programs take them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from scratchnet import data
from scratchnet.cli.program import complain
from scratchnet.tables import aligned
from scratchnet.training import RunError
from scratchnet.training.console import Progress
from scratchnet.untrusted import printable


def load_data(
    name: str,
    folder: str | os.PathLike[str],
    dry_run: bool = False,
    image_size: int = 224,
    megabytes: int = 2000,
) -> data.ImageData:
    """Return a data set by name, ``auto`` or one of ``data.named.NAMES``, or a folder of images.

    Only ``auto`` may choose: CIFAR-10 where it lies in the folder or can be downloaded, and otherwise
    shapes10, which it reports in three lines that cannot be overlooked. CIFAR-10 that is there but damaged
    is an error all the same: DataError. A dry run downloads nothing: grey images stand in for CIFAR. Of a
    folder it says what is not used, and why.
    """
    if name == "shapes10":
        return _draw()
    if name not in ("auto", "cifar10", "cifar100"):
        return _read(name, folder, not dry_run, image_size, megabytes)
    try:
        return (data.cifar100 if name == "cifar100" else data.cifar10)(folder, download=not dry_run)
    except data.MissingDataError as error:
        if dry_run:
            K = 100 if name == "cifar100" else 10
            print(f"CIFAR-{K} is not here: as many grey images stand in for it.", file=sys.stderr, flush=True)
            grey, labels = np.full((60_000, 32, 32, 3), 128, np.uint8), np.arange(60_000) % K
            train, test = slice(50_000), slice(50_000, None)
            names = tuple(str(k) for k in range(K))
            return data.ImageData(grey[train], labels[train], grey[test], labels[test], names, f"CIFAR-{K}")
        if name != "auto":
            raise
        first = "*** CIFAR-10 IS NOT HERE: this trains on the built-in set shapes10 INSTEAD."
        last = "*** Accuracies on shapes10 say nothing about CIFAR-10. Log and model name the data set."
        print(first, f"*** {error}", last, sep="\n", file=sys.stderr, flush=True)
        return _draw()


def _draw() -> data.ImageData:
    with Progress("drawing shapes10", 10_000):  # some seconds
        return data.named.load("shapes10")


def _read(
    name: str, folder: str | os.PathLike[str], download: bool, image_size: int, megabytes: int
) -> data.ImageData:
    bars: list[Progress] = []

    def show(done: int, total: int) -> None:
        if not bars:
            bars.append(Progress(f"reading {os.path.basename(name)}", total))
        bars[0].update(1)

    try:
        images = data.load(name, folder, download, image_size, megabytes * 1_000_000, show)
    finally:
        for bar in bars:
            bar.close()
    for line in data.describe_left_out(images.left_out):
        complain(line)
    return images


def describe_classes(images: data.ImageData, learn: np.ndarray, validate: np.ndarray) -> str:
    """Return a table of how many images of each class there are, to train on, to validate, to test."""
    names, labels = images.class_names, images.train_labels
    parts = labels[learn], labels[validate], images.test_labels
    counts = np.stack([np.bincount(part, minlength=len(names)) for part in parts], axis=1)  # (K, 3)
    if len(names) > 50:
        least, most = counts[:, 0].min(), counts[:, 0].max()
        return f"Classes: {len(names):,}, with {least:,} to {most:,} images each to train on"
    rows = [[printable(name), *map("{:,}".format, row)] for name, row in zip(names, counts, strict=True)]
    return "\n".join(aligned([["class", "train", "validate", "test"], *rows]))


def refuse_other_files(images: data.ImageData, before: object, where: object) -> None:
    """Raise a RunError if the files of a folder are not those of before, as ``config.json`` holds them."""
    if images.contents is None or not isinstance(before, dict) or images.contents == before:
        return
    name = min(
        name
        for name in images.contents.keys() | before.keys()
        if images.contents.get(name) != before.get(name)
    )
    (now, then) = (str(of.get(name, 0)).partition(" ")[0] for of in (images.contents, before))
    differ = (
        f"{now} images of {name}, where it had {then}"
        if now != then
        else f"other files, or changed ones, of {name} than"
    )
    changed = f"the folder {images.name} has {differ} when the run began"
    raise RunError(f"{where} cannot go on: {changed}: put them back, or begin a new run")


def describe_test(images: data.ImageData) -> str:
    """Say which test images an accuracy is of, and how many."""
    official = "official " if images.name in ("CIFAR-10", "CIFAR-100") else ""
    return f"{printable(images.name)}, {len(images.test_labels):,} {official}test images"


def write_images(folder: Path, images: data.ImageData) -> None:
    """Write one test image of each class as PNG, enlarged, so that there is something to name."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for label, name in enumerate(images.class_names):
        pixels = images.test_images[int(np.argmax(images.test_labels == label))]
        Image.fromarray(pixels).resize((256, 256), Image.Resampling.NEAREST).save(folder / f"{name}.png")
