"""Errors of CUDA: one sentence with what failed, which layer, and what to do."""

import re

import numpy as np
import pytest

from scratchnet import backend, cuda_errors, plans
from scratchnet.backend import BackendError
from scratchnet.plans.cuda import conv
from scratchnet.plans.cuda.launch import compiling
from tests.fakes import cuda_runtime
from tests.fakes.comparing import batch
from tests.fakes.cuda_networks import plain

ILLEGAL = "cudaErrorIllegalAddress: an illegal memory access was encountered"
LOST = "what was in its memory is lost, what is on disk is not"


@pytest.fixture
def failing(stand_in, monkeypatch):
    """A plan, its input, and a function that lets a launch of its second convolution fail."""
    net = plain().to("cupy")
    plan, x = plans.compile(net, (3, 8, 8, 3), training=True), backend.get("cupy").asarray(batch(3, 8, 8, 3))

    def fail_at(name, message=ILLEGAL, call=2):
        calls = []

        def launch(*arguments, **keywords):
            calls.append(name)
            if len(calls) >= call:
                raise cuda_runtime.CUDARuntimeError(message)
            return whole(*arguments, **keywords)

        whole = getattr(conv, name)
        monkeypatch.setattr(conv, name, launch)

    return plan, x, fail_at


def test_a_layer_is_named_where_its_launch_fails(failing, monkeypatch):
    plan, x, fail_at = failing
    fail_at("im2col")
    with pytest.raises(BackendError) as caught:
        plan.forward(x)
    assert str(caught.value) == (
        f"the GPU failed ({ILLEGAL}), noticed at 2-4 (Conv2d+ReLU+MaxPool2d), forward; {LOST}: run it again "
        "with CUDA_LAUNCH_BLOCKING=1 to learn which layer failed, or with --engine layers"
    )
    assert isinstance(caught.value.__cause__, cuda_runtime.CUDARuntimeError)


def test_with_blocking_launches_the_layer_that_failed_is_named(failing, monkeypatch):
    plan, x, fail_at = failing
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    y = plan.forward(x)
    fail_at("col2im", call=1)
    with pytest.raises(BackendError) as caught:
        plan.backward(y)
    assert str(caught.value) == (
        f"5-7 (Conv2d+ReLU+MaxPool2d), backward: the GPU failed ({ILLEGAL}); {LOST}: go on with --engine "
        "layers, and report this sentence"
    )


def test_with_blocking_launches_nothing_is_recorded(stand_in, monkeypatch):
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    net, x = plain().to("cupy").eval(), backend.get("cupy").asarray(batch(3, 8, 8, 3))
    plan = plans.compile(net, (3, 8, 8, 3))
    with cuda_runtime.counted() as traffic:
        for _ in range(3):
            plan.forward(x)
    assert traffic.replays == 0


def test_an_error_of_a_replayed_graph_is_translated_too(failing, monkeypatch):
    plan, x, _ = failing

    def fails(self, stream=None):
        raise cuda_runtime.CUDARuntimeError(ILLEGAL)

    for _ in range(2):
        plan.forward(x)
    monkeypatch.setattr(cuda_runtime.Graph, "launch", fails)
    with pytest.raises(BackendError, match=r"the GPU failed \(cudaErrorIllegalAddress: .*\); what was in"):
        plan.forward(x)


@pytest.mark.parametrize(
    "message, sentence",
    [
        ("CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure", "the GPU failed (CUDA_ERROR_LAUNCH_FAILED"),
        ("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal", "the GPU failed (CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("cudaErrorECCUncorrectable: uncorrectable ECC error", "the GPU failed (cudaErrorECCUncorrectable"),
        (
            "cudaErrorDevicesUnavailable: all busy",
            "at a: the GPU is in use by a process that shares it with no",
        ),
        (
            "cudaErrorInvalidValue: invalid argument",
            "at a: CUDA reports an error (cudaErrorInvalidValue: inval",
        ),
    ],
)
def test_errors_by_their_names(message, sentence):
    assert str(cuda_errors.explain(cuda_runtime.CUDARuntimeError(message), "at a")).startswith(sentence)


def test_other_errors_are_left_alone(stand_in):
    assert cuda_errors.explain(RuntimeError("cudaErrorIllegalAddress")) is None
    with pytest.raises(KeyError, match="own"), cuda_errors.explained("here"):
        raise KeyError("own")


def test_a_kernel_that_does_not_compile_is_named(stand_in, monkeypatch, tmp_path):
    for path in compiling.FOLDER.iterdir():
        text = path.read_text().replace("const Pack* image", "const Pock* image")
        (tmp_path / path.name).write_text(text)
    monkeypatch.setattr(compiling, "FOLDER", tmp_path)
    for cached in ("_kernel", "module"):
        monkeypatch.setattr(compiling, cached, getattr(compiling, cached).__wrapped__)
    plan = plans.compile(plain().to("cupy").eval(), (3, 8, 8, 3))
    with pytest.raises(BackendError) as caught:
        plan.forward(stand_in.asarray(np.zeros((3, 8, 8, 3), "float32")))
    assert re.fullmatch(
        r"0-1 \(Conv2d\+ReLU\), forward: kernels/conv.cu does not compile for this GPU \(sm_90, CUDA 13.0\): "
        r"conv.cu:\d+.* error: .Pock. .*: use --engine layers, and report this sentence",
        str(caught.value),
    )
