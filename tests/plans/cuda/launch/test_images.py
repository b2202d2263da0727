"""Batches of images, prepared on the GPU."""

import numpy as np
import pytest

from scratchnet import data
from scratchnet.plans.cuda.launch.images import advance, prepare_images


def check_images(k, augmentation, batch_size=4, shape=(7, 6, 5, 3)):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype="uint8")
    labels = np.arange(10, 10 + len(images))
    normalisation = data.Normalisation((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
    augmentation = data.Augmentation.named(augmentation)
    loader = data.Loader(
        images, labels, batch_size, shuffle=True, augmentation=augmentation, normalisation=normalisation
    )
    choices, batch = k.put(loader.choices(3)), k.put(np.zeros(1, "int64"))
    scale, shift = normalisation.affine
    for expected_x, expected_y in loader.epoch(3):
        x, y = k.empty(expected_x.shape), k.empty(expected_y.shape, "int64")
        prepare_images(
            k.put(images), k.put(labels), choices, batch, x, y,
            batch_size=batch_size, crop=augmentation.crop, cutout=augmentation.cutout,
            fill=normalisation.colour,
            scale=scale, shift=shift,
        )  # fmt: skip
        advance(batch)
        np.testing.assert_array_equal(k.get(y), expected_y)
        np.testing.assert_array_equal(k.get(x), expected_x)


@pytest.mark.parametrize("augmentation", ["none", "crop", "flip", "crop2-flip", "crop-flip-cutout3"])
def test_images_are_the_loaders_to_the_last_bit(k, augmentation):
    check_images(k, augmentation)


def test_advance(k):
    counters = k.put(np.array([0, 41, 2**40]))
    advance(counters)
    advance(counters[:1])
    assert k.get(counters).tolist() == [2, 42, 2**40 + 1]


FAULTS = {
    "mirrored the wrong way": (
        "images.cu", "W - 1 - w : w",
        "W - w : w", lambda k: check_images(k, "flip"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(plant, fault):
    plant(*FAULTS[fault])
