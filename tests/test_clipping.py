"""Clipping by the global norm: PyTorch's numbers, and the same bits on any number of workers."""

import numpy as np
import pytest

from scratchnet.clipping import clip_norm
from scratchnet.layers import Conv2d, Flatten, Linear, Parameter, Sequential


def network(scale, seed=0, backend="numpy"):
    net = Sequential(Conv2d(3, 32), Flatten(), Linear(32 * 64, 50)).to(backend)
    rng = np.random.default_rng(seed)
    for p in net.parameters().values():
        p.grad = net.backend.asarray((scale * rng.standard_normal(p.shape)).astype("float32"))
    return net.parameters()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3, 1e-30])
@pytest.mark.parametrize("max_norm", [0.5, 5.0])
def test_it_is_pytorchs(scale, max_norm):
    torch = pytest.importorskip("torch")
    parameters, theirs = network(scale), []
    for p in parameters.values():
        theirs.append(torch.nn.Parameter(torch.zeros(p.shape)))
        theirs[-1].grad = torch.from_numpy(p.grad.copy())
    norm = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    assert clip_norm(parameters, max_norm) == pytest.approx(float(norm), rel=1e-5)
    for p, other in zip(parameters.values(), theirs, strict=True):
        np.testing.assert_allclose(p.grad, other.grad.numpy(), rtol=2e-5)


def test_gradients_within_the_norm_keep_every_bit():
    parameters = network(1e-6)
    before = [p.grad.copy() for p in parameters.values()]
    assert clip_norm(parameters, 1.0) < 1.0
    assert all((p.grad == g).all() for p, g in zip(parameters.values(), before, strict=True))


def test_any_number_of_workers_gives_the_same_bits(monkeypatch):
    found = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("SCRATCHNET_THREADS", threads)
        parameters = network(1.0)
        found.append((clip_norm(parameters, 1.0), [p.grad.tobytes() for p in parameters.values()]))
    assert found[0] == found[1] == found[2]


def test_it_works_on_another_array_library(device):
    parameters, expected = network(1.0, backend=device), network(1.0)
    assert clip_norm(parameters, 1.0) == pytest.approx(clip_norm(expected, 1.0), rel=1e-6)
    for p, other in zip(parameters.values(), expected.values(), strict=True):
        np.testing.assert_allclose(device.to_numpy(p.grad), other.grad, rtol=1e-6)


def test_parameters_without_a_gradient_are_left_out_and_a_nan_spreads():
    weights = {"a": Parameter([1.0]), "b": Parameter([1.0])}
    assert clip_norm(weights, 1.0) == 0.0
    weights["a"].grad = np.array([3.0])
    assert clip_norm(weights, 1.0) == 3.0 and weights["b"].grad is None
    weights["b"].grad = np.array([np.nan])
    assert np.isnan(clip_norm(weights, 1.0)) and np.isnan(weights["a"].grad[0])


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf"), "1"])
def test_a_norm_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="max_norm must be"):
        clip_norm({}, wrong)
