"""Networks of 1000 classes name ImageNet's, and see images as torchvision's transform makes them."""

import numpy as np
import pytest
from PIL import Image

from scratchnet.data import image_to_array
from scratchnet.interop import imagenet

SIZES = [(500, 375), (375, 500), (256, 256), (224, 224), (1023, 300), (301, 900), (100, 61), (640, 427)]


def photograph(width, height):
    rng = np.random.default_rng(width + height)
    small = rng.integers(0, 256, (height // 7 + 1, width // 7 + 1, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def by_hand(image, size=224):
    """Return what torchvision's transform makes of an image, by Pillow alone."""
    width, height = image.size
    shorter = size * 256 // 224
    if width <= height:
        resized = image.resize((shorter, int(shorter * height / width)), Image.Resampling.BILINEAR)
    else:
        resized = image.resize((int(shorter * width / height), shorter), Image.Resampling.BILINEAR)
    left, top = round((resized.width - size) / 2), round((resized.height - size) / 2)
    return np.asarray(resized)[top : top + size, left : left + size]


@pytest.mark.parametrize("size", [224, 240, 112])
@pytest.mark.parametrize("width, height", SIZES)
def test_images_are_resized_and_cropped_as_pillow_does_it_by_hand(width, height, size):
    image = photograph(width, height)
    ours = image_to_array(image, size, imagenet.CROP)
    difference = abs(ours.astype(int) - by_hand(image, size))
    assert difference.max() <= (1 if size == 224 else 2) and (difference > 1).mean() < 1e-4


def test_an_image_of_one_row_is_not_made_of_millions():
    assert image_to_array(Image.new("RGB", (100_000, 1), "red"), 224, imagenet.CROP)[0, 0, 0] == 255


@pytest.mark.parametrize("width, height", SIZES)
def test_images_are_those_of_torchvisions_transform_within_one_grey_level(width, height):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    transforms = pytest.importorskip("torchvision", reason="torchvision is not installed").transforms
    image = photograph(width, height)
    normalise = transforms.Normalize(imagenet.MEAN, imagenet.STD)
    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), normalise]
    theirs = transforms.Compose(steps)(image).numpy().transpose(1, 2, 0)
    ours = (image_to_array(image, 224, imagenet.CROP) / 255 - imagenet.MEAN) / imagenet.STD
    assert (abs(ours - theirs) <= (1 / 255 + 1e-6) / np.array(imagenet.STD)).all()


def test_the_names_are_torchvisions():
    names = imagenet.class_names()
    assert len(set(names)) == 1000
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")
    models = pytest.importorskip("torchvision", reason="torchvision is not installed").models
    assert names == models.VGG16_Weights.IMAGENET1K_V1.meta["categories"]
