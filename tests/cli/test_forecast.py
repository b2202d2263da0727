"""The forecast: memory is what is then taken, time what is then needed, and not a bit of the run changes."""

import json
import os
import runpy
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from scratchnet import cores, data, plans
from scratchnet.cli.forecast import Timing, forecast
from scratchnet.data import Augmentation, Loader
from scratchnet.layers import Flatten, Layer, Linear, Parameter, Sequential
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.models import vgg11
from scratchnet.optim import SGD, Constant
from scratchnet.system import _of_container, available_bytes
from scratchnet.training import Trainer

FORECAST = sys.modules["scratchnet.cli.forecast"]
TRAIN = Path(__file__).parents[2] / "examples" / "train_cifar.py"


def small(**settings):
    return vgg11(10, 32, **{"width": 0.125, "classifier_width": 32} | settings)


def loader(n=48, batch_size=16, **settings):
    rng = np.random.default_rng(n)
    images, labels = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), np.arange(n) % 10
    return Loader(images, labels, batch_size, **{"shuffle": True} | settings)


@pytest.fixture
def limited(monkeypatch):
    """Pretend that so many bytes are available: ``limited(100e6)``."""
    return lambda size: monkeypatch.setattr(FORECAST, "available_bytes", lambda net: int(size))


# Memory


def test_memory_is_that_of_the_arrays_which_a_step_then_holds():
    net = small(batch_norm=True)
    optimizer = SGD(net.parameters(), 0.1, momentum=0.9)
    memory = forecast(net, 16, optimizer=optimizer).memory
    plan, loss = plans.compile(net, (16, 32, 32, 3), training=True), SoftmaxCrossEntropy()
    loss.forward(plan.forward(np.ones((16, 32, 32, 3), "float32")), np.zeros(16, int))
    plan.backward(loss.backward())
    optimizer.step()
    buffer = net.features[0].weight.buffer
    assert memory["parameters"] == buffer.data.nbytes
    assert memory["gradients"] == buffer.grad.nbytes
    assert memory["momentum"] == optimizer.momentum_buffer.nbytes
    assert memory["activations"] + memory["workspace"] == plan.arena.size
    maps = sum(buffer.nbytes for buffer in plan.arena.buffers if buffer.name.startswith("map "))
    assert memory["activations"] == maps


def test_what_there_is_not_is_not_listed():
    net = small()
    plain = forecast(net, 4, optimizer=SGD(net.parameters(), 0.1))
    assert "momentum" not in plain.memory and "saving" not in plain.memory
    assert "momentum" in forecast(net, 4).memory
    assert forecast(net, 4, saves=True).memory["saving"] == plain.memory["parameters"]
    assert plain.total == sum(plain.memory.values())


def test_what_is_frozen_has_no_gradient_and_no_momentum():
    net = small()
    net.freeze("features")
    learned = sum(p.size * 4 for name, p in net.parameters().items() if name.startswith("classifier"))
    memory = forecast(net, 4).memory
    assert memory["gradients"] == memory["momentum"] == learned < memory["parameters"]


def test_nothing_is_held_twice_whether_weights_exist_already_or_not(monkeypatch):
    # What the system says depends on what the process has let go of before, so it is not asked here.
    monkeypatch.setattr(FORECAST, "resident_bytes", lambda: 300_000_000)
    net = small(classifier_width=4096)  # 69 MB of weights, not drawn yet
    before = forecast(net, 4).total
    net.parameters()["features.0.weight"].data  # noqa: B018
    weights = net.features[0].weight.buffer.data.nbytes
    assert weights > 60_000_000
    monkeypatch.setattr(FORECAST, "resident_bytes", lambda: 300_000_000 + weights)
    assert forecast(net, 4).total == before


def test_a_batch_has_no_more_images_than_there_are():
    assert forecast(small(), 500, train=loader(48)).batch_size == 48


MEASURE = """
import json, sys
from tests.cli.test_forecast import *
net = vgg11(10, 32, width=float(sys.argv[2]), batch_norm=True, classifier_width=1024)
train, validation = loader(3 * 64, 64), loader(64, 64)
optimizer = SGD(net.parameters(), 0.01, momentum=0.9)
f = forecast(net, 64, optimizer=optimizer, engine=sys.argv[1])
Trainer(net, optimizer, Constant(0.01), train, validation, engine=sys.argv[1]).fit(1)
lines = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
print(json.dumps([f.total, peak, f.memory]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say")
@pytest.mark.parametrize("engine, width", [("plan", "0.5"), ("layers", "0.25")])
def test_the_peak_of_a_training_in_its_own_process_is_within_15_percent(engine, width):
    command = [sys.executable, "-c", MEASURE, engine, width]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.returncode == 0, result.stderr
    total, peak, memory = json.loads(result.stdout.splitlines()[-1])
    assert memory["program"] < 0.6 * peak, "there should be something to forecast"
    assert total == pytest.approx(peak, rel=0.15), memory


def test_layers_are_estimated_by_what_they_keep():
    net = small(batch_norm=True, width=0.25)
    memory = forecast(net, 32, engine="layers").memory
    x = np.random.default_rng(0).standard_normal((32, 32, 32, 3)).astype("float32")
    net.backward(net.forward(x)[...], need_input_gradient=False)  # parameters and gradients are there
    tracemalloc.start()
    y = net.forward(x)
    kept, _ = tracemalloc.get_traced_memory()
    net.backward(y, need_input_gradient=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The network's input is the caller's; column matrices take 8 MB at most.
    assert kept + x.nbytes == pytest.approx(memory["activations"], rel=0.1)
    assert peak + x.nbytes == pytest.approx(memory["activations"] + memory["workspace"], rel=0.3)


# What fits


@pytest.mark.parametrize("threads", [1, 2, 8])  # each has scratch memory of its own, for its share of a batch
def test_the_largest_batch_fits_and_a_much_larger_one_does_not(limited, threads, monkeypatch):
    monkeypatch.setenv("SCRATCHNET_THREADS", str(threads))
    net = small()
    limited(40e6)
    f = forecast(net, 16)
    assert f.fits and not f.warning
    assert forecast(net, f.largest_batch).fits
    assert not forecast(net, int(1.6 * f.largest_batch)).fits


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_a_batch_that_does_not_fit_gets_a_warning_that_names_one_that_does(limited, threads, monkeypatch):
    monkeypatch.setenv("SCRATCHNET_THREADS", str(threads))
    net = small()
    limited(40e6)
    f = forecast(net, 2000)
    assert not f.fits
    assert f"{f.largest_batch} would fit" in f.warning and "a batch of 2000 needs" in f.warning
    assert f.warning.count("\n") == 0
    assert forecast(net, f.largest_batch).fits


def test_where_nothing_fits_it_says_so(limited):
    limited(1000)
    f = forecast(small(), 16)
    assert (f.fits, f.largest_batch) == (False, 0)
    assert "no batch would fit" in f.warning and "no batch fits" in str(f)


def test_the_largest_batch_is_no_larger_than_the_data_set():
    f = forecast(small(), 16, train=loader(48))
    assert f.largest_batch == 48 and "a batch of all 48 images would fit" in str(f)


def test_without_a_word_from_the_system_everything_fits(monkeypatch):
    monkeypatch.setattr(FORECAST, "available_bytes", lambda net: None)
    f = forecast(small(), 16)
    assert f.fits and f.largest_batch is None and "available" not in str(f)


def test_a_container_may_take_what_its_limit_leaves_besides_files_that_were_read(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(cores, "MEMBERSHIP", tmp_path / "none")
    assert list(_of_container()) == []
    files = {
        "memory.max": "1000\n",
        "memory.current": "700\n",
        "memory.stat": "anon 500\ninactive_file 150\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert list(_of_container()) == [450]
    (tmp_path / "memory.max").write_text("max\n")
    assert list(_of_container()) == []
    (tmp_path / "memory").mkdir()
    old = {"limit_in_bytes": "2000\n", "usage_in_bytes": "500\n", "stat": "total_inactive_file 100\n"}
    for name, text in old.items():
        (tmp_path / "memory" / f"memory.{name}").write_text(text)
    assert list(_of_container()) == [1600]


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the system does not say")
def test_available_memory_is_part_of_the_machines():
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < available_bytes(small().backend) < total


# Time


class Sleep(Layer):
    """As slow as it says, whatever else the machine does; it learns, so that its backward pass is needed."""

    def __init__(self):
        super().__init__()
        self.weight = Parameter(np.zeros(1, "float32"))

    def forward(self, x):
        time.sleep(0.04 if self.training else 0.02)
        return self.save_for_backward(x, x)

    def backward(self, dy):
        self.saved(dy)
        time.sleep(0.04)
        self.weight.grad = np.zeros(1, "float32")
        return dy


def test_time_is_that_of_the_steps_and_of_validation(monkeypatch):
    monkeypatch.setattr(FORECAST, "SECONDS", 0.2)
    net = Sequential(Flatten(), Linear(32 * 32 * 3, 10), Sleep())
    train, validation = loader(100 * 8, 8), loader(50 * 8, 8, shuffle=False)
    timing = forecast(net, 8, 32, train=train, validation=validation, epochs=3, measure=True).timing
    assert (timing.steps, timing.validation_steps, timing.epochs) == (100, 50, 3)
    assert 0.08 < timing.step < 0.12
    assert 0.02 < timing.validation_step < 0.04


def test_time_is_within_15_percent_of_the_epoch_that_follows(monkeypatch):
    monkeypatch.setattr(FORECAST, "SECONDS", 0.2)
    net = Sequential(Sleep(), Flatten(), Linear(32 * 32 * 3, 10))
    train, validation = loader(20 * 8, 8), loader(10 * 8, 8, shuffle=False)
    timing = forecast(net, 8, 32, train=train, validation=validation, measure=True).timing
    trainer = Trainer(net, SGD(net.parameters(), 0.0), Constant(0.0), train, validation)
    trainer.fit(1)
    assert timing.epoch == pytest.approx(trainer.log[0]["seconds"], rel=0.15)


def test_what_was_not_measured_is_not_told():
    f = forecast(small(), 16, train=loader())
    assert f.timing is None and "per step" not in str(f)


@pytest.mark.parametrize("engine", ["plan", "layers"])
def test_measuring_changes_no_bit_of_the_run(engine, monkeypatch):
    monkeypatch.setattr(FORECAST, "SECONDS", 0.02)

    def run(measure):
        net = small(width=0.0625, classifier_width=16, batch_norm=True, dropout=0.5)
        train = loader(40, 16, augmentation=Augmentation.named("crop-flip"))
        validation = loader(20, 16, shuffle=False)
        optimizer = SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
        trainer = Trainer(net, optimizer, Constant(0.05), train, validation, engine=engine)
        how = {"optimizer": optimizer, "train": train, "validation": validation, "engine": engine}
        for epoch in (1, 2):  # before the first step, and where momentum and statistics are there
            if measure:
                forecast(net, 16, measure=True, **how)
            trainer.fit(epoch)
        state = {name: p.data.tobytes() for name, p in net.parameters().items()}
        state |= {name: array.tobytes() for name, array in net.buffers().items()}
        state |= {path: rng.bit_generator.state for path, rng in net.generators().items()}
        losses = [row["train_loss"] for row in trainer.log]
        return state, optimizer.momentum_buffer.tobytes(), optimizer.lr, losses

    assert run(measure=True) == run(measure=False)


def test_a_forecast_leaves_no_gradients_and_the_network_in_its_mode():
    net = small()
    forecast(net, 16, train=loader(16), validation=loader(16), measure=True)
    assert net.training and all(p.grad is None for p in net.parameters().values())


# What it says


def test_the_table_has_a_row_for_each_category_and_adds_up():
    f = forecast(small(), 16, saves=True)
    text = str(f)
    for name in ("parameters", "gradients", "momentum", "activations", "workspace", "batches", "saving"):
        assert f"\n  {name} " in text
    assert max(map(len, text.splitlines())) <= 90
    assert f.multiply_adds == small().multiply_adds((1, 32, 32, 3))
    assert f.parameters == sum(p.size for p in small().parameters().values())
    assert f"{f.parameters:,}" in text and f.line in f"{f.line}\n" and "\n" not in f.line


def test_an_epoch_is_its_steps_and_its_validation():
    assert Timing(2.0, 10, 0.5, 4).epoch == 22.0


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"batch_size": 8, "measure": True}, "give a Loader as train"),
        ({"batch_size": 8, "image_size": 48}, "expected images of 32 x 32"),
    ],
)
def test_what_cannot_be_forecast_is_one_sentence(arguments, words):
    with pytest.raises(ValueError, match=words):
        forecast(small(), **arguments)


def test_a_network_that_does_not_know_its_images_has_to_be_told():
    net = Sequential(Flatten(), Linear(4 * 4 * 3, 10))
    with pytest.raises(ValueError, match="image_size"):
        forecast(net, 8)
    assert forecast(net, 8, image_size=4).multiply_adds == 480


# The program


def program(text, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_cifar.py", *text.split()])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(TRAIN), run_name="__main__")
    return caught.value.code, *capsys.readouterr()


TINY = "--backend numpy --arch vgg11 --width 0.0625 --classifier-width 16 --batch-size 32 --epochs 3"


def test_a_dry_run_prints_the_table_and_stops_even_where_there_is_no_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FORECAST, "SECONDS", 0.05)
    status, out, err = program(f"{TINY} --data cifar10 --dry-run", monkeypatch, capsys)
    assert status == 0 and os.listdir(tmp_path) == []
    assert "as many grey images" in err and err.count("\n") == 1
    for words in ("activations", "total", "per step", "1,407 steps, and 157 to validate", "  3 epochs"):
        assert words in out
    assert "Epoch" not in out


def test_a_batch_too_large_is_warned_of_and_tried_all_the_same(tmp_path, monkeypatch, capsys, limited):
    monkeypatch.chdir(tmp_path)
    limited(1e6)
    images = data.shapes10(n_train=100, n_test=20)
    monkeypatch.setattr(data.named, "shapes10", lambda: images)
    status, out, err = program(
        f"{TINY} --data shapes10 --subset 32 --validation 32 --epochs 1 --run-dir run", monkeypatch, capsys
    )
    assert status == 0 and "Epoch 1/1" in out
    assert err.startswith("train_cifar.py: warning: a batch of 32 needs") and err.count("\n") == 1
