"""Normalisation and augmentation of uint8 batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchnet.data import Augmentation, Loader, Normalisation


def random_images(n=6, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)


# ---- normalisation ----


def test_normalisation_is_torchvisions_formula():
    images, mean, std = random_images(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    y = Normalisation(mean, std).apply(images)
    assert y.dtype == np.float32 and y.shape == images.shape
    np.testing.assert_allclose(y, (images / 255 - mean) / std, atol=1e-6)


def test_statistics_are_those_of_all_pixels_of_each_channel():
    images = random_images(2500, size=4)
    n = Normalisation.of(images)
    np.testing.assert_allclose(n.mean, (images / 255).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(n.std, (images / 255).std(axis=(0, 1, 2)), rtol=1e-12)
    y = n.apply(images, dtype="float64")
    np.testing.assert_allclose(y.mean(axis=(0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(y.std(axis=(0, 1, 2)), 1, atol=1e-12)


def test_statistics_of_chosen_images_only():
    images, chosen = random_images(30), np.array([3, 1, 20])
    assert Normalisation.of(images, indices=chosen) == Normalisation.of(images[chosen])


def test_a_constant_channel_does_not_divide_by_zero():
    images = random_images()
    images[..., 1] = 77
    assert Normalisation.of(images).std[1] == 1
    assert np.isfinite(Normalisation.of(images).apply(images)).all()


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_out_is_written_and_returned(layout):
    images, n = random_images(), Normalisation((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    out = np.full((6, 32, 32, 3), np.nan, np.float32)
    if layout == "strided":
        out = np.full((6, 32, 64, 3), np.nan, np.float32)[:, :, ::2]
    assert n.apply(images, out=out) is out
    assert np.array_equal(out, n.apply(images))


def test_input_that_is_not_contiguous_and_empty_batches():
    n = Normalisation((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    flipped = random_images()[:, :, ::-1]
    assert np.array_equal(n.apply(flipped), n.apply(flipped.copy()))
    assert n.apply(random_images(0)).shape == (0, 32, 32, 3)


def test_one_images_result_does_not_depend_on_its_batch():
    n = Normalisation.of(random_images())
    assert np.array_equal(n.apply(random_images())[2:3], n.apply(random_images()[2:3]))


@pytest.mark.parametrize(
    "mean, std",
    [((0, 0), (1,)), ((), ()), ((0, 0, 0), (1, 0, 1)), ((0, 0, 0), (1, -1, 1)), ((0, np.nan, 0), (1, 1, 1))],
)
def test_impossible_statistics_are_refused(mean, std):
    with pytest.raises(ValueError, match="normalisation needs"):
        Normalisation(mean, std)


@pytest.mark.parametrize(
    "wrong, remedy",
    [
        (np.zeros((2, 3, 8, 8), np.uint8), r"channels are last.*images.transpose\(0, 2, 3, 1\)"),
        (np.zeros((8, 8, 3), np.uint8), r"channels are last.*images\[None\] makes a batch"),
        (np.zeros((8, 8), np.uint8), "channels are last"),
        (np.zeros((2, 8, 8, 3), np.int64), r"uint8 or floats.*images.astype\('uint8'\)"),
        ([np.zeros((8, 8, 3), np.uint8)] * 2, "not a list: numpy.stack"),
        ("cats", "one array of images.*not a str"),
        (np.ma.masked_equal(np.zeros((2, 8, 8, 3), np.uint8), 0), r"images.filled\(0\)"),
    ],
)
def test_what_is_no_batch_of_images_is_refused_with_a_remedy(wrong, remedy):
    for use in (
        Normalisation((0, 0, 0), (1, 1, 1)).apply,
        Normalisation.of,
        lambda images: Augmentation().apply(images, np.random.default_rng(0)),
        lambda images: Loader(images, np.zeros(2, int), 1, shuffle=False),
    ):
        with pytest.raises(ValueError, match=remedy):
            use(wrong)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
@pytest.mark.parametrize("channels", [None, 1, 2, 3, 5])
def test_images_of_any_channels_and_of_floats_are_normalised(dtype, channels):
    shape = (40, 9, 7) if channels is None else (40, 9, 7, channels)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, shape).astype(dtype)
    if dtype != "uint8":
        images = (images / np.float32(300) - 0.3).astype(dtype)
    n = Normalisation.of(images)
    x = n.apply(images, dtype="float64")
    values = images.reshape(40, 9, 7, -1).astype("float64") / (255 if dtype == "uint8" else 1)
    np.testing.assert_allclose(n.mean, values.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(n.std, values.std((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(x, (values - values.mean((0, 1, 2))) / values.std((0, 1, 2)), atol=1e-9)
    padded = Augmentation(crop=3).apply(images, rng, fill=0)
    assert padded.dtype == images.dtype and padded.shape == x.shape


def test_floats_that_are_not_finite_and_another_number_of_channels_are_refused():
    with pytest.raises(ValueError, match="finite means"):
        Normalisation.of(np.full((2, 4, 4, 1), np.nan, np.float32))
    with pytest.raises(ValueError, match="of 3 channels, but the images have 1"):
        Normalisation((0, 0, 0), (1, 1, 1)).apply(np.zeros((2, 5, 5), np.uint8))


def test_statistics_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no images"):
        Normalisation.of(random_images(0))


# ---- augmentation ----


@pytest.mark.parametrize(
    "name, expected",
    [
        ("none", (0, False, 0)),
        ("flip", (0, True, 0)),
        ("crop-flip", (4, True, 0)),
        ("crop-flip-cutout", (4, True, 16)),
        ("flip-crop2-cutout8", (2, True, 8)),
    ],
)
def test_names(name, expected):
    a = Augmentation.named(name)
    assert (a.crop, a.flip, a.cutout) == expected


@pytest.mark.parametrize(
    "name", ["", "crop_flip", "flip-flip", "none-flip", "flip4", "crop-", "cutout-8", "crop٣"]
)
def test_unknown_names_are_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match="unknown augmentation.*none.*crop, flip and cutout"):
        Augmentation.named(name)


def test_none_changes_nothing_but_returns_its_own_array():
    images = random_images()
    y = Augmentation.named("none").apply(images, np.random.default_rng(0))
    assert np.array_equal(y, images) and not np.shares_memory(y, images)


def test_flip_mirrors_about_half_left_to_right_and_leaves_the_rest():
    images = random_images(400, size=4)
    y = Augmentation(flip=True).apply(images, np.random.default_rng(0))
    same, mirrored = (y == images).all((1, 2, 3)), (y == images[:, :, ::-1]).all((1, 2, 3))
    assert (same | mirrored).all() and 150 < mirrored.sum() < 250


def test_crop_cuts_every_place_out_of_the_padded_image():
    images, fill = random_images(600, size=8), (9, 8, 7)
    y = Augmentation(crop=2).apply(images, np.random.default_rng(0), fill=fill)
    padded = np.empty((600, 12, 12, 3), np.uint8)
    padded[:] = fill
    padded[:, 2:-2, 2:-2] = images
    windows = np.lib.stride_tricks.sliding_window_view(padded, (8, 8), axis=(1, 2))  # (N, 5, 5, 3, 8, 8)
    found = (windows == y.transpose(0, 3, 1, 2)[:, None, None]).all((3, 4, 5))  # (N, 5, 5)
    assert (found.sum((1, 2)) == 1).all()
    assert (found.sum(0) > 5).all()  # 600 / 25 = 24 expected at each place


@given(size=st.integers(1, 12), cutout=st.integers(1, 14), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_cutout_paints_one_rectangle_no_larger_than_asked(size, cutout, seed):
    images = np.full((5, size, size, 3), 200, np.uint8)
    y = Augmentation(cutout=cutout).apply(images, np.random.default_rng(seed), fill=(1, 2, 3))
    for image in y:
        hole = (image == (1, 2, 3)).all(axis=-1)
        assert (image[~hole] == 200).all()
        rows, columns = hole.any(axis=1), hole.any(axis=0)
        assert hole.sum() == rows.sum() * columns.sum() >= 1  # a rectangle
        assert max(rows.sum(), columns.sum()) <= cutout


def test_cutout_covers_corner_and_centre_alike():
    images = np.zeros((4000, 8, 8, 3), np.uint8)
    y = Augmentation(cutout=3).apply(images, np.random.default_rng(0), fill=(1, 1, 1))
    often = y[..., 0].mean(axis=0)
    assert often.min() > 0 and np.allclose(often[1:-1, 1:-1], 9 / 64, atol=0.03)


def test_drawn_from_the_generator_alone_and_the_argument_left_as_it_was():
    images = random_images(40)
    before, a = images.copy(), Augmentation.named("crop-flip-cutout")
    first, again, other = (a.apply(images, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(images, before)


def test_padding_with_the_mean_colour_becomes_nearly_zero():
    images = random_images(50)
    n = Normalisation.of(images)
    colour = np.array(n.colour, np.uint8).reshape(1, 1, 1, 3)
    assert np.abs(n.apply(colour)).max() <= 0.5 / 255 / min(n.std) + 1e-6


def test_empty_batch_and_oblong_images():
    a = Augmentation.named("crop-flip-cutout")
    assert a.apply(random_images(0), np.random.default_rng(0)).shape == (0, 32, 32, 3)
    assert a.apply(np.zeros((2, 5, 9, 3), np.uint8), np.random.default_rng(0)).shape == (2, 5, 9, 3)


@pytest.mark.parametrize("arguments", [{"crop": -1}, {"cutout": -3}])
def test_negative_sizes_are_refused(arguments):
    with pytest.raises(ValueError, match="must be a whole number of at least 0"):
        Augmentation(**arguments)
