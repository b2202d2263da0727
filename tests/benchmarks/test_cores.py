"""Simulated cores: shares, the global lock, barriers; and a plan's calls are all recorded."""

import numpy as np
import pytest

from scratchnet import models, plans


@pytest.fixture
def cores(load):
    return load("cores")


def test_even_shares_without_a_lock_take_their_time_over_the_workers(cores):
    for workers in (1, 2, 8):
        result = cores.simulate([[[1.0] * (64 // workers)] * workers] * 3, lock=0.0, wake=0.0)
        assert result["total"] == pytest.approx(3 * 64 / workers)
        assert result["idle"] == result["waiting"] == 0


def test_who_is_early_waits_for_the_last(cores):
    result = cores.simulate([[[3.0], [1.0]], [[1.0], [2.0]]], lock=0.0, wake=0.0)
    assert result["total"] == 5.0 and result["idle"] == 1.5  # 2 and 1, of two workers


def test_calls_that_only_hold_the_lock_do_not_get_faster(cores):
    result = cores.simulate([[[1.0] * 10] * 4], lock=1.0, wake=0.0)
    assert result["total"] - result["waking"] == pytest.approx(40.0)


def test_waking_up_costs_each_phase_and_each_wait_for_the_lock(cores):
    alone = cores.simulate([[[1.0]]] * 5, lock=0.1, wake=0.5)
    assert alone["total"] == pytest.approx(5.0) and alone["waking"] == 0
    two = cores.simulate([[[1.0], []]] * 5, lock=0.1, wake=0.5)
    assert two["total"] == pytest.approx(5 * (1.0 + 0.5 + 0.1))
    both = cores.simulate([[[1.0], [1.0]]], lock=0.1, wake=0.5)
    assert both["total"] == pytest.approx(0.1 + 0.5 + 1.0 + 0.5 + 0.1)


def test_every_call_of_a_plan_is_recorded_once_and_the_result_is_the_plans(cores, monkeypatch):
    monkeypatch.setenv("SCRATCHNET_THREADS", "3")
    net = models.vgg11(num_classes=3, image_size=32, width=0.125, classifier_width=16).eval()
    x = np.random.default_rng(0).standard_normal((5, 32, 32, 3)).astype(np.float32)
    plan = plans.compile(net, x.shape)
    wanted, results = plan.forward(x), []
    phases, outside = cores.record(lambda: results.append(plan.forward(x)), rounds=2)
    assert all(np.array_equal(result, wanted) for result in results)
    groups = [phase for group in plan._forward for phase in group if any(phase.workers)]
    assert [[len(w) for w in phase] for phase in phases] == [[len(w) for w in p.workers] for p in groups]
    assert outside >= 0 and min(t for phase in phases for worker in phase for t in worker) > 0
    assert np.array_equal(plan.forward(x), wanted)
