"""The two programs as a person runs them: what they print, where, and how they fail.

Three runs are real processes; the others run the same files in this one, with fewer built-in images.
"""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from scratchnet import backend, checkpoint, data
from scratchnet.models import VGG, vgg11

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = (
    "--backend numpy --data shapes10 --subset 64 --validation 64 "
    "--arch vgg11 --width 0.0625 --classifier-width 16"
)
LOG = [
    "Epoch 1/1",
    "-----",
    r"train Loss: .*",
    r"val Loss: .*",
    r"Training complete in .*",
    r"Best val Acc: .*",
]


@pytest.fixture(scope="module")
def images():
    return data.shapes10(n_train=300, n_test=50)


@pytest.fixture
def program(tmp_path, monkeypatch, capsys, images):
    """Run a program in this process, in an empty folder: ``program("evaluate.py MODEL cat.png")``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data.named, "shapes10", lambda: images)

    def call(text):
        name, *arguments = text.split()
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return SimpleNamespace(status=caught.value.code, out=out, err=err)

    return call


def process(text, **keywords):
    name, *arguments = text.split()
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    if os.name == "posix":  # what a shell started in the background ignores Ctrl-C, and so do its children
        keywords.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    return subprocess.Popen(command, **pipes, **keywords)


def failure(result):
    """The one sentence of a program that could not use what it was given."""
    lines = [line for line in result.err.splitlines() if not line.startswith("Device: ")]
    assert result.status == 2
    assert len(lines) == 1, result.err
    assert lines[0].startswith(("train_cifar.py: ", "evaluate.py: "))
    return lines[0].partition(": ")[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run in a process of its own: its folder, status, output and errors."""
    folder = tmp_path_factory.mktemp("trained")
    child = process(f"train_cifar.py {TINY} --epochs 1 --run-dir run", cwd=folder)
    out, err = child.communicate(timeout=120)
    return SimpleNamespace(folder=folder, run=folder / "run", status=child.returncode, out=out, err=err)


# Training


def test_training_prints_device_data_network_the_articles_log_and_the_test_accuracy(trained):
    assert (trained.status, trained.err) == (0, "")
    expected = [
        r"Device: numpy on CPU \(.*\)",
        r"Network: VGG\(architecture='vgg11', num_classes=10, image_size=32, .*\)",
        r"Parameters: 37,250",
        r"Data: shapes10, 64 images to train on, 64 to validate",
        r"Forecast: \d+\.\d [kM] multiply-adds per image, [\d,]+ MB of memory",
        *LOG,
        r"Best model: run/best.safetensors",
        r"Test Acc: 0\.\d{6} \(shapes10, 2,000 test images\)",
    ]
    lines = trained.out.replace(os.sep, "/").splitlines()
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line


def test_training_leaves_a_run_directory_and_nothing_beside_it(trained):
    assert os.listdir(trained.folder) == ["run"]
    files = {"best.safetensors", "config.json", "last.safetensors", "log.csv", "state.safetensors"}
    assert set(os.listdir(trained.run)) == files
    config = json.loads((trained.run / "config.json").read_text())
    assert config["data"] == "shapes10" and len(config["class_names"]) == 10
    info = checkpoint.load(trained.run / "best.safetensors").info
    assert info["data"] == "shapes10" and info["class_names"] == config["class_names"]
    assert info["mean"] == config["mean"] and info["std"] == config["std"]


def test_the_test_accuracy_is_that_of_the_best_model_as_evaluate_measures_it(program):
    run = program(f"train_cifar.py {TINY} --epochs 2 --run-dir run --views 10")
    tested = re.findall(r"^Test Acc: ([0-9.]+)", run.out, flags=re.MULTILINE)  # of one view, and of ten
    for option, accuracy in zip(("", "--views 10"), tested, strict=True):
        measured = program(f"evaluate.py run/best.safetensors --data shapes10 --backend numpy {option}")
        assert float(re.search(r"Accuracy: (\S+)", measured.out)[1]) == pytest.approx(
            float(accuracy), abs=1e-4
        )


def test_a_run_goes_on_and_may_become_longer(program):
    assert program(f"train_cifar.py {TINY} --epochs 1 --run-dir run --schedule constant").status == 0
    result = program("train_cifar.py --resume --run-dir run --epochs 2")
    assert result.status == 0 and "Epoch 1/" not in result.out and "Epoch 2/2" in result.out
    resumed = Path("run/last.safetensors").read_bytes()
    assert program(f"train_cifar.py {TINY} --epochs 2 --run-dir other --schedule constant").status == 0
    assert Path("other/last.safetensors").read_bytes() == resumed
    assert json.loads(Path("run/config.json").read_text())["options"]["epochs"] == 2


def test_the_demo_trains_saves_and_leaves_images_to_name(program):
    small = "--width 0.0625 --classifier-width 16 --epochs 1 --subset 64 --backend numpy"
    for _ in range(2):  # it may be run again
        result = program(f"train_cifar.py --demo {small}")
        assert result.status == 0 and "Test Acc: " in result.out.splitlines()[-1]
    named = program("evaluate.py runs/demo/best.safetensors runs/demo/pictures/star.png")
    assert named.status == 0 and named.out.strip() in data.shapes10().class_names


def test_other_heads_sizes_and_augmentations(program):
    more = "--head gap --image-size 48 --augment crop-flip-cutout4 --batch-norm --label-smoothing 0.1"
    assert program(f"train_cifar.py {TINY} {more} --epochs 1 --run-dir run").status == 0
    Image.new("RGB", (300, 200), "red").save("red.png")
    assert program("evaluate.py run/best.safetensors red.png").status == 0


@pytest.mark.parametrize(
    "options, sentence",
    [
        ("--epochs none", "--epochs: must be a whole number above zero"),
        ("--width 0.001", "--width must leave at least one channel everywhere, and 0.001 does not"),
        ("--image-size 31", "--image-size must be a whole number of at least 32, not 31"),
        ("--dropout 1.5", "--dropout must be a number between 0 and 1, not 1.5"),
        ("--label-smoothing 1", "--label-smoothing must be below 1"),
        ("--augment rain", "unknown augmentation 'rain': say none, or join"),
        ("--subset 100000", "cannot draw a subset of 100000"),
        ("--validation 300", "cannot set aside 300 of 300 training images for validation"),
    ],
)
def test_training_with_impossible_options_is_refused_and_leaves_no_folder(program, options, sentence):
    assert failure(program(f"train_cifar.py {TINY} {options} --run-dir run")).startswith(sentence)
    assert not os.path.exists("run")


def test_training_refuses_a_folder_that_holds_a_run_and_leaves_it_untouched(program):
    program(f"train_cifar.py {TINY} --epochs 1 --run-dir run")
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    sentence = failure(program(f"train_cifar.py {TINY} --epochs 1 --run-dir run"))
    assert sentence == "run holds a run: resume it by --resume, or choose another --run-dir"
    assert failure(program("train_cifar.py --resume --run-dir run --lr 7")).startswith(
        "the run in run has --lr"
    )
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before


def test_training_goes_on_only_from_a_run(program):
    assert failure(program("train_cifar.py --resume")).startswith("there is no run to resume")
    program(f"train_cifar.py {TINY} --epochs 1 --run-dir run")
    state = Path("run/state.safetensors")
    state.write_bytes(state.read_bytes()[:1000])
    assert "state.safetensors is damaged" in failure(
        program("train_cifar.py --resume --run-dir run --epochs 2")
    )


def test_a_run_directory_that_cannot_be_written_to_is_named(program):
    Path("file").write_text("")
    assert "cannot write to the folder file" in failure(program(f"train_cifar.py {TINY} --run-dir file"))


def test_damaged_cifar10_is_named_and_not_replaced_by_anything(program):
    folder = Path("D/cifar-10-batches-bin")
    folder.mkdir(parents=True)
    (folder / "data_batch_1.bin").write_bytes(b"short")
    for which in ("cifar10", "auto"):
        sentence = failure(
            program(f"train_cifar.py --backend numpy --data {which} --data-dir D --run-dir run")
        )
        assert "cifar-10-batches-bin" in sentence
    assert not os.path.exists("run")


def without_cupy(name="auto"):
    raise backend.BackendError("CuPy is not installed: use --backend numpy")


@pytest.mark.parametrize("text", [f"train_cifar.py {TINY} --run-dir run", "evaluate.py model cat.png"])
def test_a_gpu_that_was_asked_for_and_is_not_there_is_an_error(program, monkeypatch, text):
    monkeypatch.setattr(backend, "_cupy", without_cupy)
    result = program(f"{text} --backend cupy")
    assert failure(result) == "CuPy is not installed: use --backend numpy"
    assert result.out == "" and not os.path.exists("run")


def test_a_loss_that_is_not_finite_stops_the_run_with_status_1_and_one_sentence(program):
    result = program(f"train_cifar.py {TINY} --lr 1e12 --batch-size 16 --schedule constant --run-dir run")
    assert result.status == 1 and len(result.err.splitlines()) == 1
    assert re.match(
        r"train_cifar.py: the loss .* it first appeared in .*(features|classifier)\.\d", result.err
    )
    assert {*os.listdir("run")} - {".lock"} == {"config.json"}  # the lock goes with its process, this one


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_stops_a_run_with_a_sentence_and_status_130(tmp_path):
    child = process(f"train_cifar.py {TINY} --epochs 100000 --run-dir run", cwd=tmp_path)
    for line in child.stdout:
        if line.startswith("Epoch 3/"):
            break
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 130
    done = r"train_cifar.py: stopped after \d+ of 100000 epochs( and \d+ of \d+ steps)?"
    assert re.fullmatch(
        done + r"; go on with: python\S* \S*train_cifar.py --resume --run-dir run", err.splitlines()[-1]
    )
    assert not [name for name in os.listdir(tmp_path / "run") if name.endswith(".partial")]


# Naming images


@pytest.fixture
def files(tmp_path):
    """A model of three classes, two images, and files of all kinds that are none."""
    net = vgg11(3, 32, width=0.0625, classifier_width=16)
    checkpoint.save(
        tmp_path / "model", net, class_names=["airplane", "cat", "dog"], mean=[0] * 3, std=[1] * 3
    )
    whole = (tmp_path / "model").read_bytes()
    (tmp_path / "half-model").write_bytes(whole[: len(whole) // 2])
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(tmp_path / "cat.png")
    Image.fromarray(rng.integers(0, 255, (20, 9), dtype=np.uint8)).save(tmp_path / "grey.png")
    image = (tmp_path / "cat.png").read_bytes()
    (tmp_path / "half.png").write_bytes(image[: len(image) // 2])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_text("")
    (tmp_path / "folder").mkdir()
    return tmp_path


CLASSES = {"airplane", "cat", "dog"}


def test_evaluate_prints_one_class_a_line_on_standard_output_and_nothing_else(files):
    child = process("evaluate.py model cat.png grey.png cat.png", cwd=files)
    out, err = child.communicate(timeout=60)
    lines = out.splitlines()
    assert child.returncode == 0 and len(lines) == 3 and set(lines) <= CLASSES
    assert lines[0] == lines[2]
    assert re.fullmatch(r"Device: \w+ on .*\n", err)


@pytest.mark.parametrize("text", ["model cat.png --top 2", "model --top 2 cat.png", "--top 2 model cat.png"])
def test_the_likeliest_classes_come_with_probabilities_wherever_the_option_stands(program, files, text):
    line = program(f"evaluate.py {text}").out.strip()
    assert re.fullmatch(r"\w+ 0\.\d{4}, \w+ 0\.\d{4}", line)
    first, second = (float(part.split()[1]) for part in line.split(", "))
    assert first >= second


def test_more_classes_than_there_are_is_all_of_them(program, files):
    parts = program("evaluate.py model cat.png --top 99").out.strip().split(", ")
    assert {part.split()[0] for part in parts} == CLASSES
    assert sum(float(part.split()[1]) for part in parts) == pytest.approx(1, abs=2e-4)


def test_a_model_without_class_names_numbers_them(program, files):
    checkpoint.save("plain", vgg11(3, 32, width=0.0625, classifier_width=16))
    assert program("evaluate.py plain cat.png").out in {"class 0\n", "class 1\n", "class 2\n"}


@pytest.mark.parametrize(
    "model, sentence",
    [
        ("absent", "there is no file absent"),
        ("folder", "folder is a folder, not a safetensors file"),
        ("cat.png", "cat.png is damaged, or not a safetensors file at all"),
        ("text.png", "text.png is damaged, or not a safetensors file at all"),
        ("empty.png", "empty.png is damaged, or not a safetensors file at all"),
        ("half-model", "half-model is damaged, or not a safetensors file at all"),
    ],
)
def test_a_model_that_is_none_is_named(program, files, model, sentence):
    result = program(f"evaluate.py {model} cat.png")
    assert failure(result).startswith(sentence)
    assert result.out == ""


@pytest.mark.parametrize(
    "image, sentence",
    [
        ("absent.png", "absent.png does not exist"),
        ("folder", "folder is a folder without images"),
        ("half.png", "half.png cannot be decoded, it may be truncated"),
        ("text.png", "text.png is not an image that can be read"),
        ("empty.png", "empty.png is empty"),
        ("model", "model is not an image that can be read"),
        ("ftp://host/cat.png", "ftp://host/cat.png is neither a file nor an http or https address"),
        ("http://127.0.0.1:1/cat.png", "http://127.0.0.1:1/cat.png cannot be fetched"),
    ],
)
def test_an_image_that_is_none_is_named_and_the_others_are_classified(program, files, image, sentence):
    result = program(f"evaluate.py model cat.png {image} grey.png")
    assert failure(result).startswith(sentence)
    assert len(result.out.splitlines()) == 2 and set(result.out.split()) <= CLASSES


def test_evaluate_names_the_images_of_a_folder_and_which_is_which(program, files):
    one_by_one = program("evaluate.py model cat.png grey.png --top 3").out.splitlines()
    for k in range(70):  # more than go through the network at a time
        Path("folder", f"{k:03}.png").write_bytes(Path("grey.png" if k % 2 else "cat.png").read_bytes())
    Path("folder", "045.png").write_text("hello")
    Path("folder", "notes.txt").write_text("no image, and not taken for one")
    result = program("evaluate.py model cat.png folder --top 3")
    assert failure(result).startswith(f"{Path('folder', '045.png')} is not an image")
    lines = result.out.splitlines()
    assert lines[0] == one_by_one[0] and len(lines) == 70
    assert lines[1] == f"{Path('folder', '000.png')}: {one_by_one[0]}"
    assert lines[-1] == f"{Path('folder', '069.png')}: {one_by_one[1]}"


def test_evaluate_names_images_by_a_model_in_float64(program, files):
    net = checkpoint.load("model")
    double = VGG(**net.settings(), dtype="float64")
    checkpoint.load_weights("model", double)
    checkpoint.save("double", double, **net.info)
    assert program("evaluate.py double cat.png folder").out == program("evaluate.py model cat.png folder").out


def test_evaluate_refuses_a_model_that_puts_out_nan(program, files):
    net = checkpoint.load("model")
    net.parameters()["classifier.6.bias"].data[0] = np.nan
    checkpoint.save("broken", net, **net.info)
    assert failure(program("evaluate.py broken cat.png")).startswith("broken puts out NaN")


@pytest.mark.skipif(os.name != "posix", reason="what a shell closes by 2>&-")
@pytest.mark.parametrize("closed", [1, 2])
def test_evaluate_with_an_output_that_is_closed(files, closed):
    child = process("evaluate.py model cat.png", cwd=files, preexec_fn=lambda: os.close(closed))
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0 and (out.strip() in CLASSES or closed == 1)


def test_evaluate_spells_out_names_that_the_output_cannot_hold(files):
    (files / "folder" / "日本.png").write_bytes((files / "cat.png").read_bytes())
    child = process("evaluate.py model folder", cwd=files, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 0 and "\\u65e5\\u672c.png: " in out


@pytest.mark.skipif(os.name != "posix", reason="file names are text there")
def test_evaluate_names_images_whose_names_are_no_text(files):
    (files / "folder" / "paper.pdf").write_text("Pillow writes PDF, and does not read it")
    (files / "folder" / "sub.png").mkdir()
    with open(os.fsencode(files) + b"/folder/caf\xe9.png", "wb") as file:
        file.write((files / "cat.png").read_bytes())
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    child = process("evaluate.py model folder", cwd=files, env=strict, errors="surrogateescape")
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0 and len(err.splitlines()) == 1
    assert len(out.splitlines()) == 1 and out.split(": ")[1].strip() in CLASSES


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "the following arguments are required: MODEL"),
        ("model", "give either images to name, or --data to measure on"),
        ("model cat.png --data shapes10", "give either images to name, or --data to measure on"),
        ("model cat.png --top 0", "--top: must be a whole number above zero, not '0'"),
        ("model --data shapes10 --top 3", "--top is for images"),
        ("model cat.png --views 3", "--views: invalid choice: 3"),
        ("model cat.png --views two", "--views: must be a whole number above zero, not 'two'"),
        ("model --data mnist", "--data: invalid choice: 'mnist'"),
        ("model --data shapes10", "model has 3 classes, shapes10 has 10"),
    ],
)
def test_evaluate_refuses_options_that_do_not_fit(program, files, text, sentence):
    assert failure(program(f"evaluate.py {text}")).startswith(sentence)


# Measuring


def test_evaluate_prints_accuracy_and_a_confusion_matrix(program, trained, images):
    result = program(f"evaluate.py {trained.run}/best.safetensors --data shapes10 --backend numpy")
    assert result.status == 0, result.err
    first, titles, *rows = result.out.splitlines()
    accuracy = re.fullmatch(r"Accuracy: (0\.\d{4}) \(shapes10, 50 test images\)", first)
    assert titles.split() == ["right", "\\", "named", *images.class_names, "accuracy"]
    counts = np.array([[int(cell) for cell in row.split()[1:11]] for row in rows])
    assert counts.sum() == 50 and counts.trace() / 50 == pytest.approx(float(accuracy[1]))
    assert result.err == f"Device: {backend.get('numpy')}\n"


def test_a_named_data_set_is_cropped_as_image_files_are(program, images, tmp_path):
    net = vgg11(10, 32, width=0.0625, classifier_width=16)
    about = {"class_names": images.class_names, "mean": [0.5] * 3, "std": [0.2] * 3, "crop": 0.5}
    checkpoint.save("model", net, **about)
    for k, (pixels, label) in enumerate(zip(images.test_images, images.test_labels, strict=True)):
        folder = tmp_path / "files" / images.class_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    by_name = program("evaluate.py model --data shapes10").out.splitlines()[1:]
    assert by_name == program("evaluate.py model files").out.splitlines()[1:]


def test_evaluate_notes_that_a_model_was_trained_on_other_images(program, images):
    net = vgg11(10, 32, width=0.0625, classifier_width=16)
    about = {"class_names": images.class_names, "mean": [0] * 3, "std": [1] * 3}
    checkpoint.save("model", net, **about, data="CIFAR-10")
    result = program("evaluate.py model --data shapes10")
    assert result.status == 0
    assert result.err.splitlines()[1] == "evaluate.py: note: trained on CIFAR-10, measured on shapes10"
