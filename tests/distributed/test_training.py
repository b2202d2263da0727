"""Training on 1, 2 and 4 ranks: the same losses, the same weights on all, and the same bits again."""

import json

import numpy as np
import pytest

from tests.fakes.mpi import mpirun, needs_mpi

pytestmark = needs_mpi


@pytest.fixture(scope="module")
def results():
    found = {}
    for ranks in (1, 2, 4):
        done = mpirun(ranks, "-m", "tests.fakes.rank_program", "losses")
        assert done.returncode == 0, done.stderr
        found[ranks] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("network", ["plain plan", "plain layers", "norm plan", "norm layers"])
def test_losses_are_those_of_one_process_also_where_a_rank_has_no_images(results, network, ranks):
    alone, together = results[1][network], results[ranks][network]
    assert len(alone["losses"]) == 24
    np.testing.assert_allclose(together["losses"], alone["losses"], rtol=1e-5)
    for name, value in alone["row"].items():
        np.testing.assert_allclose(together["row"][name], value, rtol=1e-5)


@pytest.mark.parametrize("ranks", [2, 4])
def test_all_ranks_end_with_the_same_weights_statistics_and_generators(results, ranks):
    for network, result in results[ranks].items():
        assert len(result["on_ranks"]) == ranks
        assert all(theirs == result["on_ranks"][0] for theirs in result["on_ranks"]), network


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_run_repeats_to_the_bit(results, ranks):
    assert results[ranks]["local"] == results[ranks]["local again"]


def test_local_statistics_are_those_of_each_rank(results):
    assert results[2]["local"]["losses"][0] != pytest.approx(results[1]["local"]["losses"][0], rel=1e-6)


def test_small_things_are_told_and_failures_of_rank_0_too():
    done = mpirun(2, "-m", "tests.fakes.rank_program", "messages")
    assert done.returncode == 0, done.stderr


def test_ranks_on_one_host_divide_its_cores_unless_the_user_says_how_many():
    for given, expected in (("3", "3"), ("", "1")):
        done = mpirun(2, "-m", "tests.fakes.rank_program", "messages", SCRATCHNET_THREADS=given)
        threads = json.loads(done.stdout)["threads"]
        assert threads == expected or (not given and int(threads) >= 1), done.stderr
