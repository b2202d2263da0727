"""The built-in data set: balanced, repeatable, and neither trivial nor impossible."""

import numpy as np
import pytest

from scratchnet.data import shapes10


@pytest.fixture(scope="module")
def data():
    return shapes10(n_train=2000, n_test=1000, seed=3)


def test_arrays_have_the_shapes_and_types_that_data_promises(data):
    for images, labels, n in [
        (data.train_images, data.train_labels, 2000),
        (data.test_images, data.test_labels, 1000),
    ]:
        assert images.shape == (n, 32, 32, 3) and images.dtype == np.uint8
        assert labels.shape == (n,) and labels.dtype == np.int64
    assert len(data.class_names) == len(set(data.class_names)) == 10
    assert data.name == "shapes10"


def test_classes_are_balanced_and_shuffled(data):
    assert (np.bincount(data.train_labels) == 200).all()
    assert (np.diff(data.train_labels) != 0).mean() > 0.8


@pytest.mark.parametrize("n", [0, 1, 7, 23])
def test_any_size_is_balanced_to_within_one(n):
    counts = np.bincount(shapes10(n_train=n, n_test=0).train_labels, minlength=10)
    assert counts.sum() == n and np.ptp(counts) <= 1


def test_same_seed_same_bytes_and_another_seed_others():
    first, again, other = shapes10(60, 40, seed=1), shapes10(60, 40, seed=1), shapes10(60, 40, seed=2)
    assert all(np.array_equal(a, b) for a, b in zip(first[:4], again[:4], strict=True))
    assert not np.array_equal(first.train_images, other.train_images)


def test_test_images_do_not_depend_on_how_many_train(data):
    assert np.array_equal(shapes10(n_train=10, n_test=1000, seed=3).test_images, data.test_images)


def test_splits_share_no_image(data):
    train = {image.tobytes() for image in data.train_images}
    assert len(train) == 2000 and not train & {image.tobytes() for image in data.test_images}


def test_brightness_and_colour_do_not_give_the_class_away(data):
    means = data.train_images.mean(axis=(1, 2))  # (N, 3)
    per_class = np.array([means[data.train_labels == k].mean(axis=0) for k in range(10)])
    spread = means.std(axis=0)
    assert (np.ptp(per_class, axis=0) < spread).all()


def test_every_image_shows_something(data):
    assert data.train_images.std(axis=(1, 2)).max(axis=1).min() > 5


def test_a_linear_classifier_stays_below_half(data):
    # Ridge regression to one-hot targets, with the best of several strengths: a generous linear classifier.
    x, xt = (a.reshape(len(a), -1) / np.float32(255) - 0.5 for a in (data.train_images, data.test_images))
    onehot = np.eye(10, dtype=np.float32)[data.train_labels]
    gram = x @ x.T  # (N, N): fewer images than pixels
    best = 0
    for strength in (10, 100, 1000):
        weights = x.T @ np.linalg.solve(gram + strength * np.eye(len(x), dtype=np.float32), onehot)
        best = max(best, ((xt @ weights).argmax(axis=1) == data.test_labels).mean())
    assert best < 0.5


@pytest.mark.parametrize("arguments", [{"n_train": -1}, {"n_test": -1}, {"seed": -1}])
def test_negative_sizes_and_seeds_are_refused(arguments):
    with pytest.raises(ValueError, match="must be a whole number of at least 0"):
        shapes10(**arguments)
