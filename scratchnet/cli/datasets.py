"""Data sets by name, as the programs take them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from scratchnet import data
from scratchnet.training.console import Progress
from scratchnet.untrusted import printable


def load_data(name: str, folder: str | os.PathLike[str], dry_run: bool = False) -> data.ImageData:
    """Return a data set by name: ``cifar10``, ``shapes10``, or ``auto``.

    Only ``auto`` may choose: CIFAR-10 where it lies in the folder or can be downloaded, and otherwise
    shapes10, which it reports in three lines that cannot be overlooked. CIFAR-10 that is there but damaged
    is an error all the same: DataError. A dry run downloads nothing: grey images stand in for CIFAR-10.
    """
    if name == "shapes10":
        return _draw()
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
        first = "*** CIFAR-10 IS NOT HERE: this trains on the built-in set shapes10 INSTEAD."
        last = "*** Accuracies on shapes10 say nothing about CIFAR-10. Log and model name the data set."
        print(first, f"*** {error}", last, sep="\n", file=sys.stderr, flush=True)
        return _draw()


def _draw() -> data.ImageData:
    with Progress("drawing shapes10", 10_000):  # some seconds
        return data.shapes10()


def describe_test(images: data.ImageData) -> str:
    """Say which test images an accuracy is of, and how many."""
    official = "official " if images.name == "CIFAR-10" else ""
    return f"{printable(images.name)}, {len(images.test_labels):,} {official}test images"


def write_images(folder: Path, images: data.ImageData) -> None:
    """Write one test image of each class as PNG, enlarged, so that there is something to name."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for label, name in enumerate(images.class_names):
        pixels = images.test_images[int(np.argmax(images.test_labels == label))]
        Image.fromarray(pixels).resize((256, 256), Image.Resampling.NEAREST).save(folder / f"{name}.png")
