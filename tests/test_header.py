"""What stands in a header is of the kinds that its readers rely on, or refused in one sentence."""

import numpy as np
import pytest

from scratchnet.header import check_that_it_fits, checked, input_shape
from scratchnet.layers import BatchNorm2d, Conv2d, Flatten, Linear, Sequential
from scratchnet.models import vgg11

SMALL = {"num_classes": 2, "width": 0.0625, "classifier_width": 8}


@pytest.mark.parametrize(
    "info, words",
    [
        ([1], "not a JSON object"),
        ({"class_names": "cat"}, "class_names must be a list of strings, not 'cat'"),
        ({"class_names": {"cat": 1}}, "class_names must be a list"),
        ({"class_names": 5}, "class_names must be a list"),
        ({"class_names": ["cat", 1]}, "class_names must be a list"),
        ({"mean": [10**400, 0, 0]}, "mean must be finite numbers, one per channel"),
        ({"mean": [float("nan")]}, "mean must be finite"),
        ({"mean": []}, "mean must be finite"),
        ({"mean": [[0.5]]}, "mean must be finite"),
        ({"mean": [0.5, None]}, "mean must be finite"),
        ({"std": [1.0, 0.0]}, "std must be finite numbers above zero"),
        ({"std": "abc"}, "std must be finite"),
        ({"crop": 0}, "crop must be a number between 0.1 and 1"),
        ({"crop": "much"}, "crop must be a number between 0.1 and 1"),
        ({"image_size": 0}, "image_size must be a whole number"),
        ({"image_size": "32"}, "image_size must be a whole number"),
        ({"image_size": True}, "image_size must be a whole number"),
        ({"input_shape": [32, 32]}, r"input_shape must be \[H, W, C\]"),
        ({"input_shape": [32, 32, -3]}, "input_shape must be a whole number"),
        ({"data": ["shapes10"]}, "data must be the name"),
    ],
)
def test_entries_of_other_kinds_are_refused_by_name(info, words):
    with pytest.raises(ValueError, match=words) as caught:
        checked(info)
    assert len(str(caught.value)) < 250


def test_what_is_not_known_stays_and_none_is_left_out():
    info = {"class_names": np.array(["a", "b"]), "std": None, "epoch": 3, "anything": {"x": [1]}}
    assert checked(info) == {"class_names": ["a", "b"], "epoch": 3, "anything": {"x": [1]}}


def test_what_belongs_to_another_network_is_refused():
    net = Sequential(BatchNorm2d(2), Conv2d(2, 4), Flatten(), Linear(64, 3))
    check_that_it_fits({"class_names": ["a", "b", "c"], "mean": [0.0, 0.0], "std": [1.0, 1.0]}, net)
    with pytest.raises(ValueError, match="3 classes, and class_names 2"):
        check_that_it_fits({"class_names": ["a", "b"]}, net)
    with pytest.raises(ValueError, match="std is not 2 finite numbers, one per channel, but 3"):
        check_that_it_fits({"std": [1.0] * 3}, net)


def test_which_images_a_network_takes():
    assert input_shape(vgg11(**SMALL, image_size=50, in_channels=4)) == (50, 50, 4)
    net = Sequential(Conv2d(1, 4))
    assert input_shape(net) is None
    net.info = {"image_size": 28}
    assert input_shape(net) == (28, 28, 1)
    net.info = {"input_shape": [28, 20, 1]}
    assert input_shape(net) == (28, 20, 1)
