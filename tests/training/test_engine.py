"""The two engines: which is chosen, and that they do the same."""

import numpy as np
import pytest

from scratchnet import backend
from scratchnet.cli.program import device_line
from scratchnet.layers import Linear, ReLU, Sequential
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.models import vgg11
from scratchnet.optim import SGD
from scratchnet.plans.cuda import selfcheck
from scratchnet.training import make_engine
from scratchnet.training.engine import Layers, Plans, choose_engine
from tests.fakes import cuda_runtime


def losses(name, batch_norm):
    """Six steps in float64, of batches of two sizes, with an evaluation after each."""
    net = vgg11(10, 32, width=0.0625, classifier_width=16, batch_norm=batch_norm, dtype="float64")
    engine, loss = make_engine(net, name), SoftmaxCrossEntropy()
    optimizer = SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=1e-3)
    rng, values = np.random.default_rng(0), []
    for n in (8, 8, 3, 8, 8, 3):
        x, labels = rng.standard_normal((n, 32, 32, 3)), rng.integers(0, 10, n)
        values.append(float(loss.forward(engine.forward(x), labels)))
        engine.backward(loss.backward())
        optimizer.step()
        net.eval()
        values.append(float(loss.forward(engine.forward(x), labels)))
        net.train()
    return values


@pytest.mark.parametrize("batch_norm", [False, True])
def test_plans_and_layers_make_the_same_run_dropout_and_short_batches_included(batch_norm):
    np.testing.assert_allclose(losses("plan", batch_norm), losses("layers", batch_norm), rtol=1e-9)


def test_a_plan_is_made_once_for_each_shape_and_mode():
    net = Linear(4, 2)
    engine = make_engine(net)
    for training in (True, False, True):
        net.train(training)
        for n in (3, 2, 3):
            engine.forward(np.zeros((n, 4), "float32"))
    assert len(engine.plans) == 4


def test_what_is_frozen_between_steps_has_a_plan_of_its_own_and_the_same_gradients():
    def gradients(name):
        rng = np.random.default_rng(0)
        net = Sequential(Linear(4, 3, rng=rng), ReLU(), Linear(3, 2, rng=rng))
        engine, x = make_engine(net, name), np.ones((5, 4), "float32")
        for prefixes in ([], ["0"], [""], []):
            net.unfreeze()
            for prefix in prefixes:
                net.freeze(prefix)
            for p in net.parameters().values():
                p.grad = None
            engine.backward(engine.forward(x))
            yield [p.grad for p in net.parameters().values()]
        if name == "plan":
            assert len(engine.plans) == 3  # the last is the first

    for ours, right in zip(gradients("plan"), gradients("layers"), strict=True):
        for a, b in zip(ours, right, strict=True):
            assert (a is None) == (b is None)
            assert a is None or a == pytest.approx(b, rel=1e-5)


def test_on_a_cpu_the_default_is_a_plan():
    assert isinstance(make_engine(Linear(4, 2)), Plans)


def test_on_a_gpu_too(stand_in):
    net = Linear(4, 2).to("cupy")
    assert isinstance(make_engine(net), Plans)
    assert isinstance(make_engine(net, "layers"), Layers)
    assert make_engine(net, precision="bf16").precision == "bf16"


def test_precisions_are_refused_where_nothing_has_them(stand_in):
    net = Linear(4, 2)
    for name in ("plan", "layers", None):
        with pytest.raises(ValueError, match="only a plan on a GPU computes in bf16"):
            make_engine(net, name, "bf16")
    net.to("cupy")
    with pytest.raises(ValueError, match="only a plan on a GPU computes in tf32"):
        make_engine(net, "layers", "tf32")
    with pytest.raises(ValueError, match="must be one of fp32, tf32, bf16, not 'fp8'"):
        make_engine(net, precision="fp8")


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match="'plan' or 'layers'"):
        make_engine(Linear(4, 2), "fast")


# What a GPU does by default, and what it is asked for in vain

TOO_OLD = "this GPU has compute capability {}, and plans need 7.5 (Turing) or newer"


@pytest.fixture
def gpu(stand_in, monkeypatch):
    """A function that gives the stand-in a compute capability, and a verdict of the self-check."""

    def make(capability, verdict=(True, "", False)):
        monkeypatch.setattr(cuda_runtime.Device, "compute_capability", capability)
        monkeypatch.setattr(stand_in.cuda.runtime, "runtimeGetVersion", lambda: 12090)
        monkeypatch.setattr(selfcheck, "verdict", lambda xp, precision: selfcheck.Verdict(*verdict))
        return backend.get("cupy")

    return make


@pytest.mark.parametrize(
    "capability, asked, chosen",
    [
        ("61", (), ("layers", "fp32", f"layer by layer, since {TOO_OLD.format('6.1')}")),
        ("70", (), ("layers", "fp32", f"layer by layer, since {TOO_OLD.format('7.0')}")),
        ("70", ("layers",), ("layers", "fp32", "")),
        ("75", (), ("plan", "fp32", "plans in fp32")),
        ("86", (), ("plan", "tf32", "plans in tf32, --precision fp32 computes in float32")),
        ("86", (None, "fp32"), ("plan", "fp32", "plans in fp32")),
        ("90", ("plan",), ("plan", "tf32", "plans in tf32, --precision fp32 computes in float32")),
        ("90", (None, "bf16"), ("plan", "bf16", "plans in bf16")),
    ],
)
def test_what_a_gpu_does(gpu, capability, asked, chosen):
    assert choose_engine(gpu(capability), *asked) == chosen


@pytest.mark.parametrize(
    "capability, asked, sentence",
    [
        ("61", ("plan",), f"{TOO_OLD.format('6.1')}: use --engine layers"),
        ("70", (None, "fp32"), f"{TOO_OLD.format('7.0')}: use --engine layers"),
        (
            "75",
            (None, "tf32"),
            "this GPU has compute capability 7.5, and tf32 needs 8.0 (Ampere) or newer: use --precision fp32",
        ),
    ],
)
def test_what_a_gpu_cannot_do_is_refused_where_it_was_asked_for(gpu, capability, asked, sentence):
    with pytest.raises(backend.BackendError) as caught:
        choose_engine(gpu(capability), *asked)
    assert str(caught.value) == sentence


def test_a_new_verdict_is_told_once_and_one_that_is_known_is_not(gpu):
    told = choose_engine(gpu("90", (True, "self-check: plans equal the layers (in tf32)", True))).note
    assert told.endswith("computes in float32; self-check: plans equal the layers (in tf32)")


def test_plans_that_fail_the_self_check_are_not_used_unless_asked_for(gpu):
    device = gpu("90", (False, "self-check: plans do not equal the layers", False))
    assert choose_engine(device) == (
        "layers", "fp32", "layer by layer; self-check: plans do not equal the layers",
    )  # fmt: skip
    for asked in ("plan",), (None, "tf32"):
        with pytest.raises(backend.BackendError, match="do not equal the layers: use --engine layers"):
            choose_engine(device, *asked)
    with pytest.warns(UserWarning, match="layer by layer; self-check: plans do not equal"):
        assert isinstance(make_engine(Linear(4, 2).to(device)), Layers)


def test_the_first_line_of_a_program_says_so(gpu):
    line = device_line(gpu("61"))
    assert line.startswith("Device: cupy on GPU 0 (stand-in, no GPU, sm_61, CUDA ")
    assert line.endswith(f"); layer by layer, since {TOO_OLD.format('6.1')}")
    assert device_line(backend.get("numpy")) == f"Device: {backend.get('numpy')}"


@pytest.mark.parametrize("held", [False, True])
def test_all_plans_of_an_engine_follow_what_is_written_by_hand(held):
    net = vgg11(10, 32, width=0.0625, classifier_width=16).eval()
    engine, x = make_engine(net), np.ones((2, 32, 32, 3), "float32")
    sizes, arrays = [x[:1], x], [p.data for p in net.parameters().values()]
    for images in sizes:
        engine.forward(images)
    if held:  # since before the forward pass: nothing tells that they are written to
        for array in arrays:
            array *= 0.5
        engine.refresh()
    else:
        for p in net.parameters().values():
            p.data[...] *= 0.5
    for images in sizes:
        assert np.allclose(engine.forward(images), net.forward(images), rtol=1e-4, atol=1e-6)
    make_engine(net, "layers").refresh()


def test_a_part_in_evaluation_is_told_to_be_frozen_instead():
    net = vgg11(10, 32, width=0.0625, classifier_width=16, batch_norm=True)
    net.features.eval()
    x = np.ones((2, 32, 32, 3), "float32")
    y = net.forward(x)
    with pytest.raises(RuntimeError, match=r"freeze\(path\)"):
        net.backward(y)
    with pytest.raises(ValueError, match=r"freeze\(path\)"):
        make_engine(net).forward(x)
    net.train().freeze("features")
    statistics = net.features[1].running_mean.copy()
    engine = make_engine(net)
    engine.backward(engine.forward(x))
    assert np.array_equal(net.features[1].running_mean, statistics)
