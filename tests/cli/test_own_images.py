"""Somebody's own images through the programs: trained, resumed, reported, measured."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scratchnet import checkpoint, report
from tests.cli.test_programs import failure, images, program  # noqa: F401

TINY = "--backend numpy --arch vgg11 --width 0.0625 --classifier-width 16 --batch-size 8 --dropout 0"


@pytest.fixture
def pets(tmp_path):
    """24 bright and 12 dark images in files of several kinds, and three files that are none."""
    endings, rng = ["jpg", "png", "webp", "gif"], np.random.default_rng(0)
    for k in range(36):
        kind = tmp_path / "pets" / ("dark" if k % 3 == 2 else "bright") / f"{k % 2}"
        kind.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (40 + k, 60, 3), np.uint8) + np.uint8(0 if k % 3 == 2 else 150)
        Image.fromarray(pixels).save(kind / f"{k}.{endings[k % 4]}")
    (tmp_path / "pets" / "dark" / "notes.txt").write_text("hello")
    (tmp_path / "pets" / "dark" / "broken.png").write_text("hello")
    (tmp_path / "pets" / "empty").mkdir()
    return tmp_path / "pets"


def train(program, options=""):  # noqa: F811
    return program(f"train_cifar.py {TINY} --data pets --run-dir run --epochs 1 {options}")


def test_a_folder_is_trained_resumed_reported_and_measured(program, pets):  # noqa: F811
    result = train(program, "--class-weights balanced --lr 0.05")
    assert result.status == 0
    for line in (
        "Data: pets, 30 images to train on, 3 to validate",
        "class    train   validate   test",
        "bright      20          2      2",
        "dark        10          1      1",
        "Images: 0.00 GB at 32 pixels, kept in memory (--data-memory)",
        "Class weights: bright 0.75, dark 1.5",
    ):
        assert line in result.out.splitlines(), result.out
    assert "(pets, 3 test images)" in result.out
    for line in (
        "dark/notes.txt is no image (.txt)",
        "dark/broken.png is not an image that can be read",
        "empty has no images: no class",
        "not used: 3 (",
    ):
        assert line in result.err
    config = json.loads(Path("run/config.json").read_text())
    assert config["options"]["data"] == str(pets) and config["class_names"] == ["bright", "dark"]

    resumed = program("train_cifar.py --resume --run-dir run --epochs 2 --data-memory 0")
    assert resumed.status == 0 and "read in each epoch" in resumed.out and "Epoch 2/2" in resumed.out
    assert len(Path("run/log.csv").read_text().splitlines()) == 3

    written = report.report.RunImages  # it divides the images as the training did
    assert written(*run_images()).validation.tolist() != []

    measured = program("evaluate.py run/best.safetensors pets")
    assert measured.status == 2, "one image cannot be read"
    assert measured.out.startswith("Accuracy: ") and "(pets, 36 images, 1 unreadable)" in measured.out
    assert "right \\ named   bright   dark   accuracy" in measured.out
    assert "notes.txt is no image" in measured.err and "broken.png is not an image" in measured.err


@pytest.mark.parametrize(
    "change, differs",
    [
        (lambda pets: (pets / "dark/0/2.webp").unlink(), "11 images of dark in train, where it had 12"),
        (
            lambda pets: (pets / "bright/0/0.jpg").rename(pets / "bright/0/new.jpg"),
            "other files, or changed ones, of bright in train",
        ),
        (
            lambda pets: Image.new("RGB", (9, 9)).save(pets / "dark/0/2.webp"),
            "other files, or changed ones, of dark in train",
        ),
        (
            lambda pets: pets.joinpath("dark").rename(pets / "cats"),
            "12 images of cats in train, where it had 0",
        ),
    ],
)
def test_a_run_does_not_go_on_with_other_files(program, pets, change, differs):  # noqa: F811
    assert train(program).status == 0
    before = Path("run/state.safetensors").read_bytes()
    change(pets)
    resumed = program("train_cifar.py --run-dir run --resume --epochs 2")
    assert resumed.status == 2
    assert f"the folder pets has {differs}" in resumed.err.splitlines()[-1]
    assert Path("run/state.safetensors").read_bytes() == before


def run_images():
    from scratchnet.data import Normalisation, load
    from scratchnet.training import RunDirectory
    from scratchnet.training.options import read_options

    options = read_options(RunDirectory("run", read_only=True))
    return load(options["data"], image_size=32), options, Normalisation((0,) * 3, (1,) * 3)


def test_kept_and_read_again_train_the_same_network(program, pets):  # noqa: F811
    files = []
    command = f"train_cifar.py {TINY} --data pets --epochs 1 --lr 0.05"
    for memory in ("2000", "0"):
        run = program(f"{command} --run-dir {memory} --data-memory {memory}")
        assert run.status == 0
        files.append(checkpoint.load(Path(memory) / "last.safetensors").parameters())
    for first, second in zip(*(net.values() for net in files), strict=True):
        assert np.array_equal(first.data, second.data)


def test_a_folder_that_is_not_there_is_refused_with_the_names_of_what_is(program):  # noqa: F811
    sentence = failure(program(f"train_cifar.py {TINY} --data no/such"))
    assert sentence.startswith("--data: must be auto, cifar10, ") and "or a folder of images" in sentence


def test_a_class_of_one_image_is_refused(program, pets):  # noqa: F811
    (pets / "single").mkdir()
    (pets / "dark" / "0" / "2.webp").rename(pets / "single" / "1.webp")
    (pets / "dark" / "broken.png").unlink()
    assert "class single of " in failure(train(program))


def test_evaluate_measures_the_test_images_of_a_folder_and_leaves_out_other_classes(program, pets):  # noqa: F811
    assert train(program).status == 0
    (pets / "dark" / "broken.png").unlink()
    whole = pets.rename(pets.parent / "train")
    for split in ("sets/train", "sets/test"):
        (pets.parent / split).parent.mkdir(exist_ok=True)
        (pets.parent / split).symlink_to(whole)
    Image.new("RGB", (9, 9)).save(whole / "empty" / "1.png")
    measured = program("evaluate.py run/best.safetensors sets")
    assert measured.status == 0 and "(sets, its test images, 36 images)" in measured.out
    assert "1.png is no class of the model: empty" in measured.err


def test_evaluate_names_the_images_of_a_folder_of_other_folders(program, pets):  # noqa: F811
    assert train(program).status == 0
    pets.rename(pets.parent / "others")
    (pets.parent / "others" / "dark").rename(pets.parent / "others" / "a")
    (pets.parent / "others" / "bright").rename(pets.parent / "others" / "b")
    named = program("evaluate.py run/best.safetensors others")
    assert len(named.out.splitlines()) == 36
    assert all(": bright" in line or ": dark" in line for line in named.out.splitlines())
    assert len(program("evaluate.py run/best.safetensors others --top 1").out.splitlines()) == 36
