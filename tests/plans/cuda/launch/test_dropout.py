"""Dropout, with Philox's random numbers."""

from itertools import pairwise

import numpy as np
import pytest

from scratchnet import functional as F
from scratchnet.plans.cuda.launch.dropout import dropout


def philox(counter, key):
    """Philox4x32-10 in whole numbers, as the paper's figure says it."""
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        low = 2**32 - 1
        counter = (b >> 32) ^ counter[1] ^ key[0], b & low, (a >> 32) ^ counter[3] ^ key[1], a & low
        key = (key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low
    return counter


def test_philox_gives_the_known_answers():
    """The known answers that come with the paper's library (Random123, kat_vectors)."""
    ones, low = 2**32 - 1, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert philox((0,) * 4, (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox((ones,) * 4, (ones, ones)) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    assert philox(low, (0xA4093822, 0x299F31D0)) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def check_dropout(k, size, p, seed=(1 << 40) + 7, step=(1 << 33) + 2):
    y = np.arange(1, size + 1, dtype="float32")
    there = k.put(y)
    dropout(there, p, seed, k.put(np.array([step])))
    place = (step & (2**32 - 1), step >> 32)
    key = (seed & (2**32 - 1), seed >> 32)
    random = np.array([philox((i, 0, *place), key) for i in range(-(-size // 4))]).ravel()[:size]
    keep = random < (1 - p) * 2**32
    expected, _ = F.dropout_forward(y, keep, np.float32(p))
    np.testing.assert_allclose(k.get(there), expected, rtol=1e-6)
    return keep


@pytest.mark.parametrize("size, p", [(1, 0.5), (7, 0.25), (2050, 0.5), (3, 0.0), (3, 1.0)])
def test_dropout(k, size, p):
    keep = check_dropout(k, size, p)
    if p in (0.0, 1.0):
        assert (keep == (p == 0.0)).all()


def test_dropout_keeps_its_share_and_draws_other_numbers_for_each_step_and_seed(k):
    masks = []
    for seed, step in [(1, 0), (1, 1), (2, 0)]:
        y = k.put(np.ones(4096, "float32"))
        dropout(y, 0.3, seed, k.put(np.array([step])))
        masks.append(k.get(y) > 0)
        assert abs(masks[-1].mean() - 0.7) < 4 * np.sqrt(0.21 / 4096)
    for a, b in pairwise([*masks, masks[0]]):  # independent masks agree in 0.7^2 + 0.3^2 of the places
        assert abs((a == b).mean() - 0.58) < 4 * np.sqrt(0.58 * 0.42 / 4096)


FAULTS = {
    "a round of Philox less": (
        "dropout.cu", "round < 10",
        "round < 9", lambda k: check_dropout(k, 7, 0.5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(plant, fault):
    plant(*FAULTS[fault])
