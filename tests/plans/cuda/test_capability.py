"""Which GPUs run plans, and in which precision."""

import pytest

from scratchnet import backend, plans
from scratchnet.plans.cuda import capability
from tests.fakes import cuda_runtime
from tests.fakes.cuda_networks import assert_plan_equals_layers, plain

SHAPE = (3, 8, 9, 3)


@pytest.fixture
def gpu(stand_in, monkeypatch):
    """A function that gives the stand-in another compute capability."""
    return lambda found: monkeypatch.setattr(cuda_runtime.Device, "compute_capability", found)


@pytest.mark.parametrize("found, best", [("61", "fp32"), ("75", "fp32"), ("80", "tf32"), ("120", "tf32")])
def test_the_default_is_tf32_where_there_is_one(gpu, stand_in, found, best):
    gpu(found)
    assert capability.default_precision(stand_in) == best


def test_turing_runs_plans_in_fp32(gpu, stand_in):
    gpu("75")
    assert_plan_equals_layers(backend.get("cupy"), plain, SHAPE)
    for precision in ("tf32", "bf16"):
        with pytest.raises(backend.BackendError) as caught:
            plans.compile(plain().to("cupy"), SHAPE, training=True, precision=precision)
        assert str(caught.value) == (
            f"this GPU has compute capability 7.5, and {precision} needs 8.0 (Ampere) or newer: use "
            "--precision fp32"
        )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_older_gpus_are_refused(gpu, stand_in, monkeypatch, precision):
    net = plain().to("cupy")
    gpu("61")
    with pytest.raises(backend.BackendError) as caught:
        plans.compile(net, SHAPE, training=True, precision=precision)
    assert str(caught.value) == (
        "this GPU has compute capability 6.1, and plans need 7.5 (Turing) or newer: use --engine layers"
    )


def test_a_plan_is_used_on_the_gpu_that_it_was_compiled_on(stand_in, monkeypatch):
    plan = plans.compile(plain().to("cupy").eval(), SHAPE)
    x = stand_in.zeros(SHAPE, "float32")
    plan.forward(x)
    monkeypatch.setattr(stand_in.cuda.runtime, "getDevice", lambda: 1)
    with pytest.raises(
        RuntimeError, match=r"compiled on GPU 0, and GPU 1 is current: use it within cupy.cuda.D"
    ):
        plan.forward(x)
