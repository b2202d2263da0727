"""The doctor's rules: every fault has its own diagnosis, and healthy networks have none."""

from math import log

import numpy as np
import pytest

from scratchnet.doctor import diagnose
from scratchnet.layers import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential
from scratchnet.optim import SGD
from tests.fakes.faults import (
    FAULTS,
    IMAGES,
    LABELS,
    X,
    Y,
    blown_up,
    examine,
    not_a_number,
    perceptron,
    plain,
    quick,
    rate_too_high,
    scaled,
    train,
    vanished_with_biases,
)


def names(diagnosis):
    return [verdict.name for verdict in diagnosis.verdicts]


# Healthy networks


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize("architecture", ["vgg11", "vgg13", "vgg16", "vgg19"])
def test_vggs_are_healthy_at_the_start(architecture, batch_norm):
    for seed in range(2):
        net = plain(architecture, batch_norm=batch_norm, seed=seed)
        optimizer = SGD(net.parameters(), 0.01, 0.9, weight_decay=5e-4)
        diagnosis = diagnose(net, X, Y, optimizer=optimizer)
        assert diagnosis.healthy, str(diagnosis)


@pytest.mark.parametrize(
    "net",
    [
        perceptron(),
        perceptron(32),
        perceptron(64, 64, 64),
        perceptron(64, 32, dtype="float64"),
        plain(dtype="float64"),
        plain(width=0.5, dropout=0.0, head="gap"),
        plain(init="pytorch", batch_norm=True),
        Sequential(
            Conv2d(3, 8), ReLU(), MaxPool2d(4), Sequential(Conv2d(8, 8), ReLU()), Flatten(), Linear(512, 10)
        ),
    ],
    ids=[
        "linear",
        "one hidden",
        "three hidden",
        "float64",
        "VGG float64",
        "gap",
        "pytorch with norm",
        "nested",
    ],
)
def test_other_networks_are_healthy_at_the_start(net):
    diagnosis = diagnose(net, X, Y, lr=0.01)
    assert diagnosis.healthy, str(diagnosis)


@pytest.mark.parametrize("steps", [10, 150])
@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch norm"])
def test_networks_that_learn_and_have_learned_are_healthy(batch_norm, steps):
    net = quick(batch_norm)
    optimizer, losses = train(net, steps, 0.02, weight_decay=5e-4)
    diagnosis = diagnose(net, X, Y, optimizer=optimizer, step=steps, losses=losses)
    assert diagnosis.healthy, str(diagnosis)
    assert diagnosis.accuracy > (0.9 if steps == 150 else 0.1)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("scale", [1e-4, 0.01, 0.1])
def test_a_small_last_layer_is_healthy(batch_norm, scale):
    """It learns at the first step, and from then on lets the gradient through."""
    diagnosis = diagnose(plain(batch_norm=batch_norm, output_scale=scale), X, Y, lr=0.01)
    assert diagnosis.healthy, str(diagnosis)


def test_labels_that_fit_many_images_are_healthy():
    assert diagnose(plain(), IMAGES, LABELS).healthy


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_each_fault_gets_its_own_diagnosis_and_no_other(fault):
    diagnosis = examine(fault)
    assert set(names(diagnosis)) == {FAULTS[fault]}, str(diagnosis)
    assert not diagnosis.healthy
    for verdict in diagnosis.verdicts:
        for sentence in (verdict.reason, verdict.advice):
            assert not sentence[0].islower() and sentence.endswith(".") and len(sentence) > 15


def test_the_three_ways_to_sit_at_ten_per_cent_are_told_apart():
    lost, killed, spoilt = (examine(fault) for fault in (vanished_with_biases, blown_up, not_a_number))
    assert lost.loss == pytest.approx(log(10.0), abs=0.01)
    assert "ln 10" in lost.verdict and "no learning rate helps" in lost.verdict and "He" in lost.verdict
    assert "leapt to" in killed.verdict and "Lower the learning rate, or warm it up" in killed.verdict
    assert "first appeared in" in spoilt.verdict and "ower the learning rate" in spoilt.verdict


def test_what_is_frozen_on_purpose_is_healthy():
    net = plain()
    net.freeze("features")
    diagnosis = diagnose(net, X, Y, optimizer=SGD(net.parameters(), 0.01, 0.9))
    assert diagnosis.healthy, str(diagnosis)


def test_a_fault_hides_what_it_causes():
    net = scaled(plain("vgg16"), 2.0)
    assert names(diagnose(net, X * 60.0 + 120.0, Y, lr=1.0)) == ["data not normalised"]


def test_what_is_not_given_is_not_judged():
    net, told = rate_too_high()
    assert diagnose(net, X, Y).healthy


def test_neither_warm_up_nor_the_end_of_a_schedule_is_too_low():
    assert names(diagnose(plain(), X, Y, lr=1e-7)) == ["learning rate too low"]
    assert diagnose(plain(), X, Y, lr=1e-7, highest_lr=0.01).healthy
    assert diagnose(plain(), X, Y, lr=0.0, highest_lr=0.01).healthy


def test_a_step_that_triples_the_loss_is_too_large_before_it_is_made():
    net = plain(width=0.25, classifier_width=64)
    verdict = diagnose(net, X, Y, lr=0.1).verdicts[0]
    assert verdict.name == "learning rate too high" and "the very same images" in verdict.reason


def test_labels_are_not_judged_from_few_images_nor_from_noise():
    shuffled = np.random.default_rng(5).permutation(LABELS)
    assert diagnose(plain(), X, shuffled[:64]).healthy
    noise = np.random.default_rng(0).standard_normal(IMAGES.shape, "float32")
    assert diagnose(plain(), noise, LABELS).healthy
