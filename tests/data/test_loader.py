"""The loader: every image once an epoch, the same bits however it is used; and the splits before it."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scratchnet import workers
from scratchnet.data import Augmentation, Loader, Normalisation, image_to_array, split_validation, subset


def numbered(n=10, size=8):
    """Images that carry their own index in every pixel, and labels that are that index."""
    images = np.empty((n, size, size, 3), np.uint8)
    images[:] = np.arange(n).reshape(-1, 1, 1, 1)
    return images, np.arange(n)


def collect(loader, epoch=0):
    batches = list(loader.epoch(epoch))
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])


@given(n=st.integers(1, 30), batch_size=st.integers(1, 35), shuffle=st.booleans())
@settings(deadline=None, max_examples=40)
def test_every_image_comes_once_with_its_label_and_the_short_batch_last(n, batch_size, shuffle):
    loader = Loader(*numbered(n, size=2), batch_size, shuffle=shuffle)
    batches = list(loader.epoch(0))
    sizes = [len(y) for _, y in batches]
    assert len(batches) == len(loader) and sizes[:-1] == [batch_size] * (len(sizes) - 1)
    x, y = (np.concatenate(part) for part in zip(*batches, strict=True))
    assert sorted(y) == list(range(n))
    assert np.array_equal(np.rint(x[:, 0, 0, 0] * 255), y)


def test_what_is_handed_out():
    x, y = next(Loader(*numbered(), 4, shuffle=False).epoch(0))
    assert x.shape == (4, 8, 8, 3) and x.dtype == np.float32 and x.flags.c_contiguous
    assert y.shape == (4,) and y.dtype == np.int64
    assert next(Loader(*numbered(), 4, shuffle=False, dtype="float64").epoch(0))[0].dtype == np.float64


def test_without_shuffling_the_order_is_the_given_one():
    assert collect(Loader(*numbered(), 3, shuffle=False))[1].tolist() == list(range(10))


def test_order_changes_with_epoch_and_seed_and_with_nothing_else():
    def order(seed, epoch, batch_size=7):
        return collect(Loader(*numbered(50, 2), batch_size, shuffle=True, seed=seed), epoch)[1].tolist()

    assert order(0, 0) == order(0, 0) == order(0, 0, batch_size=50)
    assert len({tuple(order(*key)) for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}) == 4


def test_batches_do_not_depend_on_what_was_drawn_before():
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    settings_ = dict(shuffle=True, augmentation=Augmentation.named("crop-flip-cutout"), seed=5)
    through, resumed = (Loader(images, np.arange(40), 16, **settings_) for _ in range(2))
    for epoch in range(3):
        expected = collect(through, epoch)
    found = collect(resumed, 2)  # straight to the third epoch
    assert np.array_equal(expected[0], found[0]) and np.array_equal(expected[1], found[1])


def test_two_epochs_at_once_do_not_disturb_each_other():
    loader = Loader(*numbered(20), 4, shuffle=True, augmentation=Augmentation.named("crop-flip"))
    for (xa, ya), (xb, yb) in zip(loader.epoch(1), loader.epoch(1), strict=True):
        assert np.array_equal(xa, xb) and np.array_equal(ya, yb)


def test_handed_out_batches_stay_as_they_are():
    batches = list(Loader(*numbered(), 5, shuffle=False).epoch(0))
    assert not np.shares_memory(batches[0][0], batches[1][0])
    assert batches[0][0][0].max() == 0


def test_augmentation_pads_with_what_normalises_to_about_zero():
    images = np.full((30, 8, 8, 3), 250, np.uint8)
    normalisation = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    crop = Augmentation(crop=4)
    loader = Loader(images, np.arange(30), 30, shuffle=False, augmentation=crop, normalisation=normalisation)
    x, _ = next(loader.epoch(0))
    assert set(np.unique(np.abs(x) < 0.01)) == {True, False}
    assert np.allclose(x[np.abs(x) >= 0.01], (250 / 255 - 0.5) / 0.25)


def test_indices_choose_without_copying_or_changing_the_images():
    images, labels = numbered(20)
    images.flags.writeable = labels.flags.writeable = False
    loader = Loader(
        images, labels, 3, shuffle=True, augmentation=Augmentation(flip=True), indices=[4, 9, 2, 17]
    )
    assert loader.images is images and len(loader) == 2 and loader.n_samples == 4
    assert sorted(collect(loader)[1]) == [2, 4, 9, 17]


def test_resizing_is_pillows_bilinear():
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    x, _ = next(Loader(image, [0], 1, shuffle=False, image_size=64).epoch(0))
    expected = np.asarray(Image.fromarray(image[0]).resize((64, 64), Image.Resampling.BILINEAR))
    assert np.array_equal(np.rint(x[0] * 255), expected)


@pytest.mark.parametrize("height, width", [(32, 64), (50, 33), (32, 32), (90, 40)])
def test_oblong_images_are_cropped_as_evaluation_does_and_not_squeezed(height, width):
    image = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    x, _ = next(Loader(image, [0], 1, shuffle=False, image_size=32).epoch(0))
    assert np.array_equal(np.rint(x[0] * 255), image_to_array(Image.fromarray(image[0]), 32))


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_any_channels_and_floats_are_resized_channel_by_channel(dtype, channels):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 20, 30, channels)).astype(dtype)
    x, _ = next(Loader(images, np.arange(3), 3, shuffle=False, image_size=12).epoch(0))
    assert x.shape == (3, 12, 12, channels) and x.dtype == np.float32
    for channel in range(channels):
        plane = Image.fromarray(images[1, ..., channel].astype("uint8" if dtype == "uint8" else "float32"))
        square = plane.resize((12, 12), Image.Resampling.BILINEAR, box=(5, 0, 25, 20))
        expected = np.asarray(square, np.float32)
        expected = expected / (255 if dtype == "uint8" else 1)
        np.testing.assert_allclose(x[1, ..., channel], expected, rtol=1e-5)


def test_digits_without_a_channel_axis_train():
    """MNIST's layout, (N, 28, 28) uint8, and labels of uint8."""
    images = np.random.default_rng(0).integers(0, 256, (50, 28, 28), np.uint8)
    labels = np.arange(50, dtype=np.uint8) % 10
    how = {"augmentation": Augmentation.named("crop2-cutout5"), "normalisation": Normalisation.of(images)}
    x, y = collect(Loader(images, labels, 16, shuffle=True, **how))
    assert x.shape == (50, 28, 28, 1) and abs(x.mean()) < 0.1 and y.dtype == np.int64
    floats = Loader(
        images / np.float32(255), labels, 16, shuffle=True, seed=1, augmentation=Augmentation(crop=2)
    )
    assert (collect(floats)[0] == 0).any()  # padded with the mean, here that of no normalisation


def test_the_next_batch_is_prepared_while_the_caller_computes(monkeypatch):
    prepared, another_thread = threading.Event(), []

    class Watched(Loader):
        def _prepare(self, order, epoch, batch):
            if batch == 1:
                another_thread.append(threading.current_thread() is not threading.main_thread())
                prepared.set()
            return super()._prepare(order, epoch, batch)

    batches = Watched(*numbered(), 5, shuffle=False).epoch(0)
    next(batches)
    assert prepared.wait(10) and another_thread == [True]  # though nobody has asked for it yet
    batches.close()


def test_a_busy_pool_does_not_hold_the_loader_up():
    release = threading.Event()
    others = [workers.submit(release.wait, 30) for _ in range(workers.size() + 2)]
    try:
        start = time.monotonic()
        assert len(list(Loader(*numbered(), 2, shuffle=False).epoch(0))) == 5
        assert time.monotonic() - start < 10
    finally:
        release.set()
        for other in others:
            other.result()


def test_an_error_while_preparing_reaches_the_caller():
    class Broken(Augmentation):
        def apply(self, images, rng, fill):
            if (images == 6).any():
                raise RuntimeError("cannot augment image 6")
            return images

    batches = Loader(*numbered(), 5, shuffle=False, augmentation=Broken()).epoch(0)
    next(batches)
    with pytest.raises(RuntimeError, match="image 6"):
        next(batches)


def test_stopping_midway_leaves_nothing_behind_and_the_loader_usable():
    loader = Loader(*numbered(100), 2, shuffle=True)
    for k in range(50):
        for _ in loader.epoch(k):
            break
    assert workers.submit(int, "7").result(10) == 7
    assert len(list(loader.epoch(0))) == 50


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"batch_size": 2.0}, "batch_size must be a whole number"),
        ({"image_size": 0}, "image_size must be a whole number of at least 1"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"labels": np.arange(9)}, "10 whole-number labels"),
        ({"labels": np.arange(10.0)}, r"whole-number.*labels.astype\('int64'\)"),
        ({"labels": np.arange(10) + 0.5}, "whole-number"),
        ({"labels": np.arange(10)[:, None]}, r"whole-number.*\(10, 1\): labels.ravel\(\)"),
        ({"labels": np.eye(10)}, r"whole-number.*labels.argmax\(axis=1\)"),
        ({"labels": ["cat"] * 10}, "whole-number.*numpy.unique"),
        ({"labels": [[1, 2], [3]]}, "10 whole-number labels"),
        ({"labels": np.ma.masked_equal(np.arange(10), 3)}, "a mask would be ignored"),
        ({"indices": np.ma.masked_equal(np.arange(10), 3)}, "must not be a masked array"),
        ({"normalisation": Normalisation([0], [1])}, "of 1 channels, but the images have 3"),
        ({"indices": [0, 10]}, "indices must lie within the 10 images, not 0 to 10"),
        ({"indices": [-1]}, "indices must lie within"),
        ({"indices": [0.0, 1.0]}, r"whole numbers, or a mask of 10 truth values, not float64 \(2,\)"),
        ({"indices": [True, False]}, r"a mask of 10 truth values, not bool \(2,\)"),
        ({"indices": [[0, 1]]}, "whole numbers, or a mask"),
        ({"images": np.zeros((10, 3, 8, 8), np.uint8)}, "channels are last"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    images, labels = numbered()
    arguments = dict(images=images, labels=labels, batch_size=2, shuffle=True) | change
    with pytest.raises(ValueError, match=message):
        Loader(**arguments)


def test_a_mask_chooses_the_images_where_it_is_true():
    images, labels = numbered(1500)
    mask = labels % 700 < 2
    chosen = np.flatnonzero(mask)
    assert Loader(images, labels, 2, shuffle=False, indices=mask).indices.tolist() == chosen.tolist()
    assert subset(labels, mask.tolist(), 3).tolist() == subset(labels, chosen, 3).tolist()
    assert Normalisation.of(images, mask) == Normalisation.of(images, chosen)
    for use in (
        lambda given: Loader(images, labels, 2, shuffle=False, indices=given),
        lambda given: subset(labels, given, 3),
        lambda given: Normalisation.of(images, given),
    ):
        for wrong in (chosen.astype(float), mask[:-1]):
            with pytest.raises(ValueError, match="whole numbers, or a mask of 1500 truth values"):
                use(wrong)


def test_no_index_at_all_is_an_empty_epoch():
    assert list(Loader(*numbered(), 2, shuffle=True, indices=[]).epoch(0)) == []


# ---- stratified splits ----


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), data=st.data(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=80)
def test_splits_are_stratified_disjoint_and_complete(labels, data, seed):
    labels = np.array(labels)
    n = data.draw(st.integers(0, len(labels) - 1))
    train, validation = split_validation(labels, n, seed)
    assert len(validation) == n
    assert sorted([*train, *validation]) == list(range(len(labels)))
    check_shares(labels, np.arange(len(labels)), validation)
    m = data.draw(st.integers(1, len(train)))
    chosen = subset(labels, train, m, seed)
    assert len(set(chosen)) == len(chosen) == m and set(chosen) <= set(train)
    check_shares(labels, train, chosen)


def check_shares(labels, pool, chosen):
    """Every class has its exact share, rounded down or up."""
    share = np.bincount(labels[pool], minlength=5) * len(chosen) / len(pool)
    assert (np.abs(np.bincount(labels[chosen], minlength=5) - share) < 1).all()


def test_cifar_sized_split_is_exact_and_depends_on_the_seed():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 5000))
    train, validation = split_validation(labels)
    assert len(train) == 45000 and (np.bincount(labels[validation]) == 500).all()
    assert (np.bincount(labels[subset(labels, train, 2000)]) == 200).all()
    assert np.array_equal(split_validation(labels)[1], validation)
    assert not np.array_equal(split_validation(labels, seed=1)[1], validation)


@pytest.mark.parametrize(
    ("n", "sentence"),
    [(-1, "n_validation must be"), (10, "cannot set aside 10 of 10"), (11, "cannot set aside 11 of 10")],
)
def test_impossible_validation_sizes_are_refused(n, sentence):
    with pytest.raises(ValueError, match=sentence):
        split_validation(np.zeros(10, int), n)


@pytest.mark.parametrize(
    ("n", "sentence"), [(-1, "n must be"), (0, "subset of 0 from 3"), (4, "subset of 4 from 3")]
)
def test_impossible_subsets_are_refused(n, sentence):
    with pytest.raises(ValueError, match=sentence):
        subset(np.zeros(10, int), [1, 2, 3], n)


@pytest.mark.parametrize("name", ["none", "crop2-flip", "crop-flip-cutout5", "cutout3"])
def test_choices_say_what_an_epoch_does_to_which_image(name):
    """The numbers alone are enough to make the same images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 8, 6, 3), dtype=np.uint8)
    augmentation, fill = Augmentation.named(name), np.array([9, 8, 7], np.uint8)
    normalisation = Normalisation(mean=fill / 255, std=(0.2, 0.3, 0.4))
    how = {"shuffle": True, "augmentation": augmentation, "normalisation": normalisation, "seed": 3}
    loader = Loader(images, np.arange(7), 3, indices=np.array([6, 0, 2, 5, 3]), **how)
    scale, shift = (factor.astype("float32") for factor in normalisation.affine)
    made = []
    for index, top, left, mirrored, hole_top, hole_left in loader.choices(4):
        c = augmentation.crop
        padded = np.empty((8 + 2 * c, 6 + 2 * c, 3), np.uint8)
        padded[:] = fill
        padded[c : c + 8, c : c + 6] = images[index]
        image = padded[top : top + 8, left : left + 6][:, :: -1 if mirrored else 1].copy()
        for h in range(hole_top, hole_top + augmentation.cutout):
            for w in range(hole_left, hole_left + augmentation.cutout):
                if 0 <= h < 8 and 0 <= w < 6:
                    image[h, w] = fill
        made.append(image * scale - shift)
    expected = [(x, y) for x, y in loader.epoch(4)]
    np.testing.assert_array_equal(np.stack(made), np.concatenate([x for x, _ in expected]))
    np.testing.assert_array_equal(loader.choices(4)[:, 0], np.concatenate([y for _, y in expected]))


def test_an_epoch_that_begins_at_a_later_batch_has_the_same_batches_from_there_on():
    images = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3)).astype("uint8")
    augmentation = Augmentation.named("crop1-flip")
    loader = Loader(images, np.arange(11), 3, shuffle=True, augmentation=augmentation, seed=5)
    whole = list(loader.epoch(2))
    for first in range(len(loader) + 1):
        rest = list(loader.epoch(2, first))
        assert len(rest) == len(whole) - first
        for (x, y), (expected_x, expected_y) in zip(rest, whole[first:], strict=True):
            np.testing.assert_array_equal(x, expected_x)
            np.testing.assert_array_equal(y, expected_y)


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_shards_hand_out_together_what_the_loader_does_to_the_bit(ranks):
    augmentation = Augmentation.named("crop-flip-cutout8")
    loader = Loader(*numbered(23), 5, shuffle=True, augmentation=augmentation, seed=3)
    shards = [loader.shard(rank, ranks) for rank in range(ranks)]
    for whole, *parts in zip(*(some.epoch(2) for some in (loader, *shards)), strict=True):
        for mine, theirs in zip(whole, zip(*parts, strict=True), strict=True):
            np.testing.assert_array_equal(mine, np.concatenate(theirs))


def test_a_shard_knows_its_rows_and_some_have_none():
    loader = Loader(*numbered(5), 4, shuffle=False)
    assert [tuple(loader.shard(rank, 3).rows(1)) for rank in range(3)] == [(0, 1, 1), (1, 1, 1), (1, 1, 1)]
    assert loader.shard(2, 3).n_samples == 5 and len(loader.shard(2, 3)) == 2
    with pytest.raises(ValueError, match="ranks"):
        loader.shard(3, 3)


def test_a_subclass_that_augments_in_its_own_way_sees_whole_batches_in_shards_too():
    class Brighter(Augmentation):
        def apply(self, images, rng, fill):
            return images + rng.integers(0, 9, (len(images), 1, 1, 1)).astype(np.uint8)

    loader = Loader(*numbered(6), 4, shuffle=False, augmentation=Brighter())
    (x, _), _ = loader.epoch(0)
    (part, _), _ = loader.shard(1, 2).epoch(0)
    np.testing.assert_array_equal(part, x[2:])
