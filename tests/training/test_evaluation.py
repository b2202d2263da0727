"""Evaluation: restores the mode, takes the mean of views, counts confusions."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from scratchnet.data import Loader
from scratchnet.models import vgg11
from scratchnet.training import (
    confusion_matrix,
    evaluate,
    make_engine,
    predict,
)
from scratchnet.training.evaluation import confusion_table, views_of
from tests.fakes.runs import NORMALISATION, labelled_images, prepare

# Evaluation


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_restores_the_mode_also_after_an_error(training):
    trainer = prepare()
    trainer.net.train(training)
    evaluate(trainer.net, trainer.validation)
    predict(trainer.net, np.zeros((1, 32, 32, 3), "float32"))
    assert all(layer.training is training for _, layer in trainer.net.walk())
    with pytest.raises(ValueError):
        predict(trainer.net, np.zeros((1, 8, 8, 3), "float32"))
    with pytest.raises(ZeroDivisionError):
        evaluate(trainer.net, trainer.validation, engine=SimpleNamespace(forward=lambda x: 1 / 0))
    assert all(layer.training is training for _, layer in trainer.net.walk())


def test_evaluation_changes_nothing_and_does_not_depend_on_the_batch_size():
    trainer = prepare()
    before = {name: array.copy() for name, array in trainer.net.buffers().items()}
    result = evaluate(trainer.net, trainer.validation)
    again = evaluate(
        trainer.net,
        Loader(*labelled_images(20, 2), 7, shuffle=False, normalisation=NORMALISATION),
    )
    assert all((before[name] == array).all() for name, array in trainer.net.buffers().items())
    assert (result.predictions == again.predictions).all()
    assert result.loss == pytest.approx(again.loss, rel=1e-5)
    assert result.accuracy == (result.predictions == result.labels).mean()
    assert (result.labels == trainer.validation.labels).all()


def test_the_ten_views_are_the_image_and_four_shifts_of_a_32nd_each_with_its_mirror_image():
    x = np.random.default_rng(0).normal(size=(2, 64, 48, 3))
    found = list(views_of(x))
    assert len(found) == 10 and found[0] is x
    assert all(view.flags.c_contiguous and view.shape == x.shape for view in found)
    shifts = [(0, 0), (2, 2), (2, -2), (-2, 2), (-2, -2)]  # 64 / 32 pixels, down and right
    for (down, right), view, mirrored in zip(shifts, found[::2], found[1::2], strict=True):
        assert (mirrored == view[:, :, ::-1]).all()
        for h, w in np.ndindex(64, 48):
            inside = 0 <= h - down < 64 and 0 <= w - right < 48
            assert (view[:, h, w] == (x[:, h - down, w - right] if inside else 0)).all()


@pytest.mark.parametrize("views", [1, 2, 10])
def test_the_mean_of_the_logits_of_all_views_counts(views):
    trainer = prepare()
    net = trainer.net
    x = next(iter(trainer.validation.epoch(0)))[0]
    net.eval()
    logits = np.mean([net.forward(view) for view in list(views_of(x))[:views]], axis=0)
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = exp / exp.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(predict(net, x, views=views), expected, rtol=1e-4)
    assert views == 1 or np.abs(predict(net, x) - expected).max() > 1e-4
    result = evaluate(net, trainer.validation, views=views)
    assert (result.predictions[: len(x)] == expected.argmax(axis=1)).all()


def test_another_number_of_views_is_refused():
    net = prepare().net
    with pytest.raises(ValueError, match="views must be one of 1, 2, 10, not 3"):
        predict(net, np.zeros((1, 32, 32, 3), "float32"), views=3)
    with pytest.raises(ValueError, match="views must be one of 1, 2, 10, not 0"):
        evaluate(net, Loader(*labelled_images(20, 2), 16, shuffle=False), views=0)


def test_evaluation_of_no_images_is_refused():
    with pytest.raises(ValueError, match="there are no images to evaluate on"):
        evaluate(prepare().net, Loader(*labelled_images(20, 2), 16, shuffle=False, indices=[]))


def test_probabilities_add_up_to_one():
    probabilities = predict(prepare().net, np.zeros((3, 32, 32, 3), "float32"))
    assert probabilities.shape == (3, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_confusion_matrix_of_lists_and_of_small_types():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 17, (2, 500))
    expected = np.zeros((17, 17), int)
    np.add.at(expected, (labels, predictions), 1)
    for kind in (np.asarray, list, np.uint8, np.int16):
        assert np.array_equal(confusion_matrix(kind(labels), kind(predictions), 17), expected)
    assert confusion_matrix([], [], 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    "labels, predictions, sentence",
    [
        ([0, 2], [0, 1], "labels must be classes 0 to 1, not 0 to 2"),
        ([0, 1], [-1, 1], "predictions must be classes 0 to 1, not -1 to 1"),
        ([0.0, 1.0], [0, 1], "labels must be whole numbers"),
        ([0, 1], [[0, 1]], "predictions must be whole numbers"),
        ([0, 1], [0], "2 labels and 1 predictions"),
    ],
)
def test_confusion_matrix_refuses_what_would_be_counted_wrong(labels, predictions, sentence):
    with pytest.raises(ValueError, match=sentence):
        confusion_matrix(labels, predictions, 2)


def test_confusion_matrix_counts_every_pair_also_of_classes_that_do_not_occur():
    matrix = confusion_matrix(np.array([0, 2, 2, 2]), np.array([0, 2, 2, 0]), 4)
    assert matrix.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    lines = confusion_table(matrix, ["a", "b", "c", "d"]).splitlines()
    assert lines[2].endswith("-")  # no b among the images
    assert lines[3].endswith("66.7 %")
    assert len({len(line) for line in lines}) == 1


def test_predictions_from_four_threads_on_a_network_in_training_mode():
    net = vgg11(10, 32, width=0.0625, classifier_width=16, dropout=0.5, batch_norm=True)
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype("float32")
    net.classifier.eval()  # a part in another mode
    modes = [layer.training for _, layer in net.walk()]
    for engine in (None, make_engine(net)):
        right, wrong = predict(net, x, engine), []

        def repeatedly(engine=engine, right=right, wrong=wrong):
            wrong.extend(n for n in range(10) if not np.array_equal(predict(net, x, engine), right))

        threads = [threading.Thread(target=repeatedly) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == [] and [layer.training for _, layer in net.walk()] == modes
