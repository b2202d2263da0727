"""Plans stay usable: after exceptions, on many threads, in forked processes."""

from __future__ import annotations

import os
import threading
import warnings

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from scratchnet import layers, plans, workers
from scratchnet.layers import Conv2d, ReLU, Sequential
from tests.fakes.comparing import (
    batch,
    small_vgg,
)


def blas_threads():
    return [info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"]


@pytest.mark.parametrize("failure", [RuntimeError("broken"), KeyboardInterrupt()])
def test_an_exception_in_the_middle_leaves_everything_usable(failure):
    class Fails(layers.Layer):
        fail = False

        def forward(self, x):
            if self.fail:
                raise failure
            return self.save_for_backward(x, None)

        def backward(self, dy):
            return dy

    net = Sequential(Conv2d(3, 8), ReLU(), Fails(), Conv2d(8, 8))
    plan = plans.compile(net, (4, 8, 8, 3), training=True)
    x, threads = batch(4, 8, 8, 3), blas_threads()
    expected = plan.forward(x)
    net[2].fail = True
    with pytest.raises(type(failure)):
        plan.forward(x)
    assert blas_threads() == threads
    with pytest.raises(RuntimeError, match="without a forward"):
        plan.backward(expected)
    net[2].fail = False
    np.testing.assert_array_equal(plan.forward(x), expected)
    assert blas_threads() == threads


def test_blas_is_limited_only_while_plans_run():
    seen = []

    class Looks(layers.Layer):
        def forward(self, x):
            seen.append(blas_threads())
            return self.save_for_backward(x, None)

    net = Sequential(Conv2d(3, 4), Looks()).eval()
    before = blas_threads()
    plans.compile(net, (1, 8, 8, 3)).forward(batch(1, 8, 8, 3))
    assert set(seen[0]) == {1} and blas_threads() == before


def test_plans_of_two_networks_may_run_at_the_same_time():
    nets = [small_vgg(seed=seed, dropout=0.0) for seed in range(2)]
    compiled = [plans.compile(net, (4, 32, 32, 3), training=True) for net in nets]
    x = batch(4, 32, 32, 3)
    expected = [plan.forward(x) for plan in compiled]
    got = [[], []]

    def work(k):
        for _ in range(5):
            got[k].append(compiled[k].forward(x))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all((y == expected[k]).all() for k in range(2) for y in got[k]) and len(got[0]) == 5


@pytest.mark.parametrize("images", [4, 5])
def test_plans_of_one_network_take_turns(images):
    """The same plan twice, or two plans, on two threads: they share their memory."""
    net = small_vgg().eval()
    x, y = batch(4, 32, 32, 3), batch(images, 32, 32, 3)[::-1].copy()
    one = plans.compile(net, x.shape)
    calls = [(one, x), (one if images == 4 else plans.compile(net, y.shape), y)]
    expected = [plan.forward(inputs) for plan, inputs in calls]
    got = [[], []]

    def work(k):
        for _ in range(40):
            got[k].append(calls[k][0].forward(calls[k][1]))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all((y == expected[k]).all() for k in range(2) for y in got[k])


def test_a_layer_that_is_not_known_may_keep_what_it_gets():
    class Keeps(layers.Layer):
        def forward(self, x):
            self.seen = x
            return self.save_for_backward(2 * x, None)

    net = Sequential(Conv2d(3, 8), ReLU(), Keeps(), Conv2d(8, 8), ReLU(), Conv2d(8, 8), ReLU()).eval()
    x = batch(2, 8, 8, 3)
    net.forward(x)
    expected = net[2].seen.copy()
    plans.compile(net, x.shape).forward(x)
    np.testing.assert_allclose(net[2].seen, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("image", [0, 3])  # on the caller's thread, and on a helper's
def test_errstate_holds_on_all_threads(image):
    net = Sequential(Conv2d(3, 4)).eval()
    plan, x = plans.compile(net, (4, 8, 8, 3)), batch(4, 8, 8, 3)
    x[image] = 3e38
    with np.errstate(all="raise"), pytest.raises(FloatingPointError):
        plan.forward(x)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("error")
        plan.forward(x)


def test_a_busy_pool_delays_nobody():
    release = threading.Event()
    busy = [workers.submit(release.wait, 20) for _ in range(workers.size())]
    try:
        plan = plans.compile(small_vgg(dropout=0.0), (4, 32, 32, 3), training=True)
        plan.backward(plan.forward(batch(4, 32, 32, 3)))  # would wait for the pool forever
    finally:
        release.set()
    assert all(future.result() for future in busy)
    assert workers.submit(lambda: plan.forward(batch(4, 32, 32, 3)).shape).result(20) == (4, 10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_plan_runs_in_a_forked_process():
    plan = plans.compile(small_vgg(dropout=0.0), (4, 32, 32, 3), training=True)
    x = batch(4, 32, 32, 3)
    expected = plan.forward(x)
    child = os.fork()
    if child == 0:
        os._exit(0 if (plan.forward(x) == expected).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_plans_of_one_network_share_their_memory():
    net = small_vgg(width=0.5)
    large = plans.compile(net, (16, 32, 32, 3), training=True)
    small = plans.compile(net, (4, 32, 32, 3), training=True)
    assert small.workspace.block is large.workspace.block
    x, y = batch(16, 32, 32, 3), batch(4, 32, 32, 3)
    first = [plan.forward(z) for plan, z in ((small, y), (large, x), (small, y))]
    largest = plans.compile(net, (32, 32, 32, 3), training=True)  # takes a new block; the others move to it
    largest.forward(batch(32, 32, 32, 3))
    small.forward(y)
    assert small._block is largest._block and len(first) == 3
