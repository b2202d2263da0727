"""Dropout: what it draws, drops and scales."""

import numpy as np
import pytest

from scratchnet.layers import Dropout


def normal(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def test_dropout_draws_anew_in_every_forward_and_again_the_same_from_the_same_state():
    layer, x = Dropout(0.5, rng=np.random.default_rng(3)), np.ones((50, 20), "float32")
    state = layer.rng.bit_generator.state
    first, second = layer.forward(x), layer.forward(x)
    assert (first != second).any()
    layer.rng.bit_generator.state = state
    assert (layer.forward(x) == first).all()
    assert set(np.unique(first)) == {0.0, 2.0}


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_dropout_drops_its_share_and_scales_the_rest(p):
    y = Dropout(p).forward(np.ones((200, 200), "float32"))
    assert (y == 0).mean() == pytest.approx(p, abs=0.01)
    assert p == 1 or y.max() == pytest.approx(1 / (1 - p), rel=1e-6)


def test_dropout_in_evaluation_is_the_identity_and_draws_nothing():
    layer, x = Dropout(0.5).eval(), normal(3, 4)
    state = layer.rng.bit_generator.state
    assert (layer.forward(x) == x).all() and layer.rng.bit_generator.state == state


def test_dropout_masks_do_not_depend_on_the_dtype():
    masks = [Dropout(0.5).forward(np.ones((20, 20), dtype)) > 0 for dtype in ("float32", "float64")]
    assert (masks[0] == masks[1]).all()


def test_of_a_part_of_a_batch_it_drops_what_it_would_of_the_whole():
    x = np.ones((7, 5), "float32")
    whole = Dropout(0.5, rng=np.random.default_rng(3))
    expected = [whole.forward(x), whole.forward(x)]
    part = Dropout(0.5, rng=np.random.default_rng(3))
    for y in expected:
        part.rows = (2, 7)
        np.testing.assert_array_equal(part.forward(x[2:5]), y[2:5])
