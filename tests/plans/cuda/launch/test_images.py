"""Batches of images, prepared on the GPU."""

import numpy as np
import pytest

from scratchnet import data
from scratchnet.plans.cuda.launch.images import advance, prepare_images, resizing_taps


def check_images(k, augmentation, batch_size=4, shape=(7, 6, 5, 3), image_size=None):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype="uint8")
    labels = np.arange(10, 10 + len(images))
    normalisation = data.Normalisation((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
    augmentation = data.Augmentation.named(augmentation)
    loader = data.Loader(
        images,
        labels,
        batch_size,
        shuffle=True,
        augmentation=augmentation,
        normalisation=normalisation,
        image_size=image_size,
    )
    choices, batch = k.put(loader.choices(3)), k.put(np.zeros(1, "int64"))
    scale, shift = normalisation.affine
    taps = None if image_size is None else k.put(resizing_taps(shape[1], image_size))
    for expected_x, expected_y in loader.epoch(3):
        x, y = k.empty(expected_x.shape), k.empty(expected_y.shape, "int64")
        prepare_images(
            k.put(images), k.put(labels), choices, batch, x, y,
            batch_size=batch_size, crop=augmentation.crop, cutout=augmentation.cutout,
            fill=normalisation.colour,
            scale=scale, shift=shift, taps=taps,
        )  # fmt: skip
        advance(batch)
        np.testing.assert_array_equal(k.get(y), expected_y)
        np.testing.assert_array_equal(k.get(x), expected_x)


@pytest.mark.parametrize("augmentation", ["none", "crop", "flip", "crop2-flip", "crop-flip-cutout3"])
def test_images_are_the_loaders_to_the_last_bit(k, augmentation):
    check_images(k, augmentation)


@pytest.mark.parametrize("size, new_size", [(8, 12), (32, 48), (9, 8), (9, 4), (7, 23), (6, 6)])
def test_images_are_resized_as_pillow_does(k, size, new_size):
    """Bit for bit: after augmentation, in whole numbers, before normalisation."""
    check_images(k, "crop2-flip-cutout3", 2, (3, size, size, 3), new_size)


def test_what_cannot_be_resized_is_refused(k):
    with pytest.raises(ValueError, match="these taps are for 12 pixels, not for"):
        prepare_images(
            k.empty((2, 8, 6, 3), "uint8"), k.empty((2,), "int64"), k.empty((2, 6), "int32"),
            k.empty((1,), "int64"), k.empty((2, 12, 12, 3)), k.empty((2,), "int64"), batch_size=2, crop=0,
            cutout=0, fill=(0, 0, 0), scale=(1, 1, 1), shift=(0, 0, 0), taps=k.put(resizing_taps(8, 12)),
        )  # fmt: skip


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
    "rows that are not rounded before columns": (
        "images.cu", "sum += grey_level(of_row) * down[2 + i];",
        "sum += (of_row >> 22) * down[2 + i];",
        lambda k: check_images(k, "none", 2, (3, 8, 8, 3), 12),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(plant, fault):
    plant(*FAULTS[fault])
