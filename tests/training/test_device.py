"""Epochs on a GPU: the trainer's results, whether device or loader prepares images, and after a resume."""

import csv

import numpy as np
import pytest

from scratchnet import backend
from scratchnet.data import Augmentation, Loader, Normalisation, shapes10
from scratchnet.doctor import Doctor
from scratchnet.layers import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import SGD, Step
from scratchnet.training import NotFinite, RunDirectory, Trainer, make_engine
from scratchnet.training import device as epochs_on_device
from scratchnet.training.device import DeviceEpochs
from tests.fakes import cuda_runtime, cupy_stand_in

IMAGES = shapes10(n_train=24, n_test=10)
MIDDLES = [images[:, 12:20, 12:20] for images in (IMAGES.train_images, IMAGES.test_images)]


def network(dropout=0.0, side=8):
    features = 4 * (side // 2) ** 2
    classifier = Linear(features, 8), ReLU(), Dropout(dropout), Linear(8, 10)
    return Sequential(Conv2d(3, 4), BatchNorm2d(4), ReLU(), MaxPool2d(2), Flatten(), *classifier)


def loaders(image_size=None, labels=None, batch_size=10):
    images, labels = MIDDLES[0], IMAGES.train_labels if labels is None else labels
    how = {"normalisation": Normalisation.of(images), "image_size": image_size, "seed": 1}
    train = Loader(
        images, labels, batch_size, shuffle=True, augmentation=Augmentation.named("crop1-flip"), **how
    )
    return train, Loader(MIDDLES[1], IMAGES.test_labels, 10, shuffle=False, **how)


def trainer(
    where, run=None, dropout=0.0, lr=0.02, image_size=None, engine=None, precision="fp32", **settings
):
    net = network(dropout, image_size or 8).to(where)
    sgd = SGD(net.parameters(), lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    engine = make_engine(net, engine, precision)
    schedule = Step(lr, milestones=(4,))  # in the middle of the second epoch
    return Trainer(
        net, sgd, schedule, *loaders(image_size), run, SoftmaxCrossEntropy(0.1), engine, **settings
    )


def fitted(*arguments, epochs=2, **settings):
    made = trainer(*arguments, **settings)
    if made.run is not None and made.run.has_state:
        made.resume()
    made.fit(epochs)
    return made


def without_times(log):
    return [{name: row[name] for name in row if name not in ("seconds", "images_per_second")} for row in log]


def test_cuda_epochs_are_those_of_the_layers_on_numpy(device):
    expected = fitted("numpy", engine="layers").log
    ours = fitted(device)
    assert ours.device_epochs is not None and ours.device_epochs.resident
    for row, right in zip(without_times(ours.log), without_times(expected), strict=True):
        for name, value in right.items():
            assert row[name] == pytest.approx(value, rel=1e-3), name


def test_cuda_epochs_resume_bit_for_bit_with_dropout(device, tmp_path):
    whole = fitted(device, RunDirectory(tmp_path / "whole"), dropout=0.3)
    fitted(device, RunDirectory(tmp_path / "parts"), dropout=0.3, epochs=1)
    resumed = fitted(device, RunDirectory(tmp_path / "parts"), dropout=0.3)
    assert without_times(resumed.log) == without_times(whole.log)
    for ours, right in zip(resumed.net.parameters().values(), whole.net.parameters().values(), strict=True):
        np.testing.assert_array_equal(backend.to_numpy(ours.data), backend.to_numpy(right.data))
    with open(tmp_path / "parts" / "log.csv", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_cuda_epochs_take_images_from_the_loader_where_the_gpu_cannot_prepare_them(device, monkeypatch):
    resident = fitted(device, epochs=1)
    monkeypatch.setattr(epochs_on_device, "RESIDENT_BYTES", 1000)
    uploaded = fitted(device, epochs=1)
    assert not uploaded.device_epochs.resident
    assert without_times(uploaded.log) == without_times(resident.log)
    monkeypatch.undo()


@pytest.mark.parametrize("size", [10, 12])
def test_cuda_epochs_resize_square_images_on_the_gpu(device, size, monkeypatch):
    """As ``--recipe vgg16-bn`` does; the loader would be slower than the steps."""
    resized = fitted(device, epochs=1, image_size=size)
    assert resized.device_epochs.resident
    monkeypatch.setattr(epochs_on_device, "RESIDENT_BYTES", 1000)
    uploaded = fitted(device, epochs=1, image_size=size)
    assert not uploaded.device_epochs.resident
    assert without_times(resized.log) == without_times(uploaded.log), "the same images, bit for bit"
    expected = fitted("numpy", epochs=1, image_size=size).log[0]["train_loss"]
    assert resized.log[0]["train_loss"] == pytest.approx(expected, rel=1e-3)


def test_cuda_epochs_read_the_loss_once_in_a_while(stand_in, monkeypatch):
    monkeypatch.setattr(epochs_on_device, "READ_EVERY", 4)
    net = network().to("cupy")
    train, _ = loaders(batch_size=4)  # six steps an epoch
    epochs = DeviceEpochs(net, SGD(net.parameters(), 0.01), SoftmaxCrossEntropy(), train)
    schedule = Step(0.01, milestones=())
    with cuda_runtime.counted() as traffic:
        told = list(epochs.run(0, schedule))
    assert [(step, totals.images) for step, totals in told] == [(3, 16), (5, 24)]
    assert told[1][1].loss > told[0][1].loss > 0
    assert traffic.reads == 2


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # which is what it is about
def test_cuda_epochs_notice_a_loss_that_is_not_finite(device):
    made = trainer(device, lr=1e30)
    with pytest.raises(NotFinite, match=r"the loss became .* in epoch 1, between image 1 and 24"):
        made.fit(1)


def test_a_doctor_changes_no_bit_of_cuda_epochs(device):
    doctor = Doctor()
    alone, watched = (fitted(device, dropout=0.3, observers=observers) for observers in ([], [doctor]))
    assert [found.step for found in doctor.diagnoses] == [0, 3, 6]
    assert without_times(watched.log) == without_times(alone.log)


def test_cuda_epochs_check_labels_before_the_gpu_gets_them(device):
    net = network().to(device)
    labels = np.full(24, 10)
    with pytest.raises(ValueError, match="label 10 is not one of the 10 classes"):
        DeviceEpochs(net, SGD(net.parameters(), 0.1), SoftmaxCrossEntropy(), loaders(labels=labels)[0])


def test_cuda_epochs_are_for_plans_on_a_gpu(stand_in):
    assert trainer("cupy").device_epochs is not None
    assert trainer("cupy", engine="layers").device_epochs is None
    assert trainer("numpy").device_epochs is None


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_cuda_epochs_in_lower_precision(device, precision):
    exact, rough = fitted(device, epochs=1), fitted(device, epochs=1, precision=precision)
    if device.xp is cupy_stand_in.cupy:  # a GPU may compute such small products better than it was asked to
        assert rough.log[0]["train_loss"] != exact.log[0]["train_loss"]
    assert rough.log[0]["train_loss"] == pytest.approx(exact.log[0]["train_loss"], rel=0.05)
