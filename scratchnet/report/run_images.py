"""The images of a run: those that it trained and validated on, prepared as in training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from scratchnet import data

MAX_IMAGE_SIZE = 128  # pixels per side, on the page


class TracedImage(NamedTuple):
    """An image that is followed through the network."""

    pixels: np.ndarray  # uint8 (H, W, 3), to look at
    x: np.ndarray  # (1, S, S, 3), normalised, as the network sees it
    name: str


class RunImages:
    """A run's data set, divided into training and validation images as training divided it.

    Parameters
    ----------
    dataset : ImageData
    options : mapping
        Of the run.
    normalisation : Normalisation

    Raises
    ------
    ValueError
        If the options do not fit the data set.
    """

    def __init__(
        self, dataset: data.ImageData, options: Mapping[str, Any], normalisation: data.Normalisation
    ):
        self.images, self.labels = dataset.train_images, dataset.train_labels
        self.options, self.normalisation = options, normalisation
        n_validation, seed = options["validation"] or len(self.labels) // 10, options["seed"]
        self.training, self.validation = data.split_validation(self.labels, n_validation, seed)
        if options["subset"]:
            self.training = data.subset(self.labels, self.training, options["subset"], seed)

    def loader(self, indices: np.ndarray) -> data.Loader:
        """Return a loader of these images, neither shuffled nor augmented."""
        return data.Loader(
            self.images,
            self.labels,
            batch_size=128 if self.options["image_size"] <= 64 else 8,
            shuffle=False,
            normalisation=self.normalisation,
            image_size=self.options["image_size"],
            indices=indices,
        )

    def first_of_each_class(self, class_names: list[str]) -> list[TracedImage]:
        """Return the first validation image of each class."""
        traced = []
        for k, name in enumerate(class_names):
            for index in self.validation[self.labels[self.validation] == k][:1]:
                x, _ = next(self.loader(np.array([index])).epoch(0))
                traced.append(TracedImage(self.images[index], x, name))
        return traced


def given_image(image: str | os.PathLike[str], size: int, normalisation: data.Normalisation) -> TracedImage:
    """Read an image file or address for a network that takes images of this size.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    if os.path.isdir(image):
        raise data.DataError(f"{os.fsdecode(image)} is a folder, where one image is wanted")
    loaded = data.load_image(image)
    x = normalisation.apply(data.image_to_array(loaded, size)[None])
    pixels = data.image_to_array(loaded, min(size, MAX_IMAGE_SIZE))
    return TracedImage(pixels, x, os.path.basename(os.fsdecode(image)))
