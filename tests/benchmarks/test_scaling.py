"""The model of a step in many processes: its limits, and what it prints."""

import json
from dataclasses import replace

import pytest

LINK = ("wire", 0.0, 1e9)


@pytest.fixture
def scaling(load):
    return load("scaling")


@pytest.fixture
def job(scaling):
    return scaling.Job("a job", batch=256, gradients=1e8, images_per_second=100.0)


def test_one_rank_sends_nothing(scaling, job):
    link = scaling.Link(*LINK)
    assert scaling.step_seconds(job, link, 1) == 2.56 and scaling.efficiency(job, link, 1) == 1.0


def test_without_overlap_sums_come_on_top_and_with_it_only_what_is_left(scaling, job):
    link = scaling.Link(*LINK)
    compute, whole = 2.56 / 2, scaling.sum_seconds(link, 2, 1e8)
    assert scaling.step_seconds(replace(job, overlap=0.0), link, 2) == pytest.approx(compute + whole)
    tail = scaling.sum_seconds(link, 2, scaling.SLICE)
    assert scaling.step_seconds(job, link, 2) == pytest.approx(compute + tail)
    slow = replace(link, bandwidth=1e7)
    left = scaling.sum_seconds(slow, 2, 1e8) - 2 / 3 * compute
    assert scaling.step_seconds(job, slow, 2) == pytest.approx(compute + left)


def test_a_ring_sends_at_most_twice_the_gradients_and_a_tree_as_often_as_it_is_deep(scaling):
    link = scaling.Link(*LINK)
    assert scaling.sum_seconds(link, 1024, 1e8) == pytest.approx(0.2, rel=2e-3)
    assert scaling.sum_seconds(link, 1024, 1e8, "tree") == pytest.approx(2.0)
    slow = replace(link, latency=1e-3)  # where latency counts, a tree is better
    assert scaling.sum_seconds(slow, 1024, 1e6, "tree") < scaling.sum_seconds(slow, 1024, 1e6)


def test_within_a_node_its_own_link_counts(scaling):
    link = scaling.Link(*LINK, within=scaling.Link("fast", 0.0, 1e12), node=8)
    assert scaling.sum_seconds(link, 8, 1e8) < 1e-3 < scaling.sum_seconds(link, 16, 1e8)


def test_what_moves_the_point_where_it_stops_moves_it_outward(scaling):
    for link in scaling.LINKS:
        for pixels, speed in ((32, 390), (224, 8.8)):
            plain, *moved = (scaling.reach(job, link) for job in scaling.jobs(speed, pixels))
            assert all(reach >= plain for reach in moved) and moved[-1] > plain


def test_the_tables(scaling, job):
    text = scaling.model(390, 32)
    assert "25 Gbit/s Ethernet" in text and "head='gap'" in text and text.count("ranks |") == 10
    seconds = {"alone": [1.0], "together": [1.1], "sums": [0.2], "small": [1e-4], "large": [0.02]}
    row = scaling.judge("here", {"ranks": 2, "gradients": 1e8, "batch": 256, "seconds": seconds}, False)
    assert "| 50 % |" in row and json.dumps(row)  # of 0.2 s half is hidden
