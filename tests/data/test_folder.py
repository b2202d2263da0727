"""Folders of images: classes, splits, what is left out and why; kept in memory or read again."""

import threading

import numpy as np
import pytest
from PIL import Image

from scratchnet import workers
from scratchnet.data import (
    DataError,
    ImageFiles,
    Loader,
    Normalisation,
    describe_left_out,
    divide,
    image_folder,
    image_to_array,
    load_image,
)
from scratchnet.data import folder as module


def draw(path, k=0, size=(40, 30), mode="RGB", **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(k).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **how)
    return path


@pytest.fixture
def pets(tmp_path):
    """30 cats and 10 dogs of every common format, at several depths."""
    endings = ["jpg", "PNG", "webp", "bmp", "gif", "tiff", "jpeg", "ppm"]
    for k in range(40):
        kind = "dogs" if k % 4 == 3 else "cats"
        deeper = f"{kind}/indoors/{k % 3}" if k % 5 == 0 else kind
        draw(tmp_path / "pets" / deeper / f"{k}.{endings[k % 8]}", k, size=(30 + k, 60 - k))
    return tmp_path / "pets"


def test_a_folder_for_each_class_at_any_depth_in_any_format(pets):
    data = image_folder(pets, 16)
    assert data.class_names == ("cats", "dogs") and data.name == "pets" and data.left_out == ()
    assert data.train_images.shape == (36, 16, 16, 3) and data.train_images.dtype == np.uint8
    assert np.bincount(data.train_labels).tolist() == [27, 9]  # a tenth of each is set aside
    assert np.bincount(data.test_labels).tolist() == [3, 1]
    assert data.train_labels.dtype == np.int64 and data.validation is None


def test_pixels_are_those_that_evaluation_reads(pets):
    listing, data = module.list_classes(pets), image_folder(pets, 16)
    expected = {
        image_to_array(load_image(name), 16).tobytes(): label for name, label in listing.files["train"]
    }
    both = [*data.train_images, *data.test_images], [*data.train_labels, *data.test_labels]
    assert {image.tobytes(): label for image, label in zip(*both, strict=True)} == expected


@pytest.mark.parametrize("seed", [0, 1])
def test_the_split_follows_from_the_seed(pets, seed):
    first, second = image_folder(pets, 8, seed=seed), image_folder(pets, 8, seed=seed)
    assert np.array_equal(first.test_images, second.test_images)
    assert np.array_equal(first.test_images, image_folder(pets, 8).test_images) == (seed == 0)


def test_what_does_not_fit_into_memory_is_read_again_and_the_same(pets):
    kept, read = image_folder(pets, 16), image_folder(pets, 16, memory=40 * 16 * 16 * 3 - 1)
    assert isinstance(kept.train_images, np.ndarray) and isinstance(read.train_images, ImageFiles)
    assert read.train_images.shape == kept.train_images.shape and len(read.test_images) == 4
    assert read.train_images.nbytes == kept.train_images.nbytes
    for index in (3, slice(2, 9), [5, 1, 1], np.arange(36) % 2 == 0):
        assert np.array_equal(read.train_images[index], kept.train_images[index])
    assert Normalisation.of(read.train_images) == Normalisation.of(kept.train_images)
    epochs = []
    for data in (kept, read):
        learn, validate = divide(data, seed=3)
        loader = Loader(data.train_images, data.train_labels, 8, shuffle=True, indices=learn)
        epochs.append([*loader.epoch(1)])
    for (x, y), (x_read, y_read) in zip(*epochs, strict=True):
        assert np.array_equal(x, x_read) and np.array_equal(y, y_read)


def test_files_are_decoded_on_the_workers_ahead_of_the_caller(pets, monkeypatch):
    data = image_folder(pets, 16, memory=0)
    on_a_worker, original = threading.Event(), module.decode_ahead

    def watched(names, size, ahead):
        assert ahead <= 2 * workers.size()
        if threading.current_thread() is not threading.main_thread():
            on_a_worker.set()
        return original(names, size, ahead)

    monkeypatch.setattr(module, "decode_ahead", watched)
    batches = Loader(data.train_images, data.train_labels, 8, shuffle=False).epoch(0)
    next(batches)
    assert on_a_worker.wait(20)  # though nobody has asked for the second yet
    batches.close()


def test_what_is_left_out_is_listed_with_the_reason(pets):
    (pets / "cats" / "notes.txt").write_text("hello")
    (pets / "cats" / ".DS_Store").write_bytes(b"x")
    (pets / "readme.md").write_text("hello")
    (pets / "empty").mkdir()
    (pets / "texts").mkdir()
    (pets / "texts" / "a.txt").write_text("hello")
    (pets / "__MACOSX").mkdir()
    broken = draw(pets / "dogs" / "broken.png")
    broken.write_bytes(broken.read_bytes()[:500])
    (pets / "dogs" / "no.jpg").write_text("hello")
    data = image_folder(pets, 8)
    found = {name.removeprefix(f"{pets}/"): reason for name, reason in data.left_out}
    assert found.pop("dogs/broken.png").startswith("cannot be decoded, it may be truncated: ")
    assert found == {
        "cats/notes.txt": "is no image (.txt)",
        "cats/.DS_Store": "is no image (.DS_Store)",
        "readme.md": "lies in no class's folder",
        "empty": "has no images: no class",
        "texts": "has no images: no class",
        "texts/a.txt": "is no image (.txt)",
        "__MACOSX": "is hidden",
        "dogs/no.jpg": "is not an image that can be read",
    }
    assert data.class_names == ("cats", "dogs") and len(data.train_labels) + len(data.test_labels) == 40
    *lines, last = describe_left_out(data.left_out)
    assert len(lines) == 9 and last.startswith("not used: 9 (")
    assert describe_left_out(data.left_out, most=2)[-1].startswith("and 7 more; not used: 9 (")
    assert describe_left_out(()) == []


@pytest.mark.parametrize("val", ["val", "Valid", "validation"])
def test_splits_that_are_there_are_taken(tmp_path, val):
    for split, count in (("train", 8), (val, 4), ("test", 6)):
        for k in range(count):
            draw(tmp_path / split / f"class {k % 2}" / f"{split}{k}.png", k)
    (tmp_path / "extra" / "class 0").mkdir(parents=True)
    data = image_folder(tmp_path, 8)
    assert (len(data.train_labels), len(data.test_labels)) == (12, 6)
    assert data.class_names == ("class 0", "class 1") and len(data.left_out) == 1
    learn, validate = divide(data)
    assert learn.tolist() == [*range(8)] and validate.tolist() == [*range(8, 12)]
    assert np.array_equal(
        data.train_images[8], image_to_array(load_image(tmp_path / val / "class 0" / f"{val}0.png"), 8)
    )
    learn, validate = divide(data, validation=2, n=4, seed=1)
    assert len(learn) == 4 and learn.max() < 8 and len(validate) == 2 and validate.min() >= 8


def test_without_test_a_tenth_of_train_is_set_aside(tmp_path):
    for split, count in (("train", 40), ("val", 4)):
        for k in range(count):
            draw(tmp_path / split / f"{k % 2}" / f"{k}.png", k)
    data = image_folder(tmp_path, 8)
    assert (len(data.train_labels), len(data.test_labels), len(data.validation)) == (40, 4, 4)


def test_a_folder_that_holds_a_single_folder_stands_for_that_one(tmp_path, pets):
    wrapped = tmp_path / "a" / "b"
    wrapped.mkdir(parents=True)
    pets.rename(wrapped / "pets")
    assert image_folder(tmp_path / "a", 8).class_names == ("cats", "dogs")


def test_a_class_of_the_test_images_that_was_not_trained_is_left_out(tmp_path):
    for split, kinds in (("train", "ab"), ("test", "abc")):
        for kind in kinds:
            for k in range(3):
                draw(tmp_path / split / kind / f"{k}.png", k)
    data = image_folder(tmp_path, 8)
    assert data.class_names == ("a", "b") and len(data.test_labels) == 6
    assert {reason for _, reason in data.left_out} == {"its class c has no images in train"}


def test_one_image_is_no_class(pets):
    draw(pets / "birds" / "1.png")
    with pytest.raises(DataError, match="class birds of .* has 1 image that can be read: two are the least"):
        image_folder(pets, 8)
    for k in range(2):
        (pets / "birds" / f"{k}.png").write_text("hello")
    with pytest.raises(DataError, match="class birds of .* has no images that can be read"):
        image_folder(pets, 8)


def test_folders_that_are_none_of_images(tmp_path):
    with pytest.raises(DataError, match="is not a folder of images"):
        image_folder(tmp_path / "no")
    with pytest.raises(DataError, match="has no folder with images in it: a folder for each class"):
        image_folder(tmp_path)
    draw(tmp_path / "1.png")
    with pytest.raises(DataError, match="has no folder with images"):
        image_folder(tmp_path)
    for k in range(3):
        draw(tmp_path / "cats" / f"{k}.png", k)
    with pytest.raises(DataError, match="one class only, cats"):
        image_folder(tmp_path)


def test_a_file_that_vanishes_while_training_is_named(pets):
    data = image_folder(pets, 8, memory=0)
    for name in data.train_images.paths:
        (pets / name).unlink()
    with pytest.raises(DataError, match="does not exist"):
        next(Loader(data.train_images, data.train_labels, 8, shuffle=False).epoch(0))


def test_progress_counts_every_file(pets):
    (pets / "cats" / "no.png").write_text("hello")
    seen = []
    image_folder(pets, 8, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(k + 1, 41) for k in range(41)]


@pytest.mark.parametrize("arguments", [{"image_size": 0}, {"memory": -1}, {"seed": 1.5}])
def test_arguments_that_do_not_fit_are_refused(pets, arguments):
    with pytest.raises(ValueError, match="must be a whole number"):
        image_folder(pets, **arguments)
