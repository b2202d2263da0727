"""Kernels from outside the package: which of them compute what, and how those that cannot are refused."""

from __future__ import annotations

import numpy as np
import pytest

from scratchnet import plans
from scratchnet.layers import (
    BatchNorm2d,
    Chain,
    Conv2d,
    Dropout,
    Flatten,
    Layer,
    Linear,
    MaxPool2d,
    Parameter,
    ReLU,
    Sequential,
)
from scratchnet.plans.cpu import elementwise, misc_kernels, norm, windows
from scratchnet.plans.kernel import Registrable
from tests.fakes.comparing import assert_plan_equals_layers, batch
from tests.plans.avg_pool import AvgPool2d, AvgPoolKernel
from tests.plans.leaky_relu import LeakyReLU


class Softsign(Layer):
    """y = x / (1 + |x|), with the derivative (1 - |y|)^2."""

    def forward(self, x):
        return self.save_for_backward(x / (1 + abs(x)), x)

    def backward(self, dy):
        return dy / (1 + abs(self.saved(dy))) ** 2


class SoftsignKernel(plans.Elementwise):
    algorithm = "softsign"
    increasing = True
    scratch_dtype = None

    def record_forward(self, calls, x):
        calls.call(softsign_, x)

    def record_backward(self, calls, dy, y, scratch):
        assert scratch.dtype == y.dtype
        calls(np.abs, y, out=scratch)
        calls(np.subtract, 1, scratch, out=scratch)
        calls(np.multiply, dy, scratch, out=dy)
        calls(np.multiply, dy, scratch, out=dy)


def softsign_(x):
    x /= 1 + abs(x)


class Sevens(SoftsignKernel):
    """Wrong, and so noticed where it is used."""

    algorithm = "sevens"

    def record_forward(self, calls, x):
        calls.copy(7, out=x)


def registered(*kernels, base=Softsign):
    """Return a new class of layers, for which these kernels are registered."""
    kind = type("Mine", (base,), {})
    for kernel in kernels:
        plans.register(kind, cpu=kernel)
    return kind


def after_nothing_and_after_a_convolution(kind, dtype="float32"):
    common = {"dtype": dtype}
    yield lambda: Sequential(Flatten(**common), kind(**common), Linear(48, 3, **common), **common)
    yield lambda: Sequential(Conv2d(3, 4, **common), kind(**common), Conv2d(4, 2, **common), **common)


def algorithms(plan):
    return [kernel.algorithm for kernel in plan.kernels]


# Which kernel computes an elementwise layer


def test_an_elementwise_kernel_that_does_not_support_a_layer_leaves_it_to_its_own_passes():
    class InFloat32(SoftsignKernel):
        algorithm = "in float32"

        @classmethod
        def supports(cls, groups, i, context):
            return context.dtype == np.float32

    kind = registered(InFloat32)
    for make in after_nothing_and_after_a_convolution(kind, "float64"):
        with pytest.warns(UserWarning, match=r"1 \(Mine\)"):
            plan = assert_plan_equals_layers(make, (2, 4, 4, 3), dtype="float64", tolerance=1e-10)
        assert "fallback" in algorithms(plan)
    for make in after_nothing_and_after_a_convolution(kind):
        assert "fallback" not in algorithms(assert_plan_equals_layers(make, (2, 4, 4, 3)))


def test_the_last_registered_elementwise_kernel_that_suits_is_used():
    class Never(Sevens):
        algorithm = "never"

        @classmethod
        def supports(cls, groups, i, context):
            return False

    for make in after_nothing_and_after_a_convolution(registered(SoftsignKernel, Never)):
        assert_plan_equals_layers(make, (2, 4, 4, 3))
    plan = plans.compile(registered(SoftsignKernel, Sevens)(), (2, 3), training=True)
    assert plan.forward(batch(2, 3)).max() == 7


@pytest.mark.parametrize("algorithm", ["softsign", "auto"])
def test_an_elementwise_kernel_can_be_forced_by_its_name(algorithm):
    kernels = (SoftsignKernel, Sevens) if algorithm == "softsign" else (Sevens, SoftsignKernel)
    for make in after_nothing_and_after_a_convolution(registered(*kernels)):
        assert_plan_equals_layers(make, (2, 4, 4, 3), algorithm=algorithm)


def test_a_kernel_of_another_kind_may_compute_a_layer_that_has_an_elementwise_one_too():
    class Whole(plans.Kernel):
        algorithm, output_layout, keeps_output = "whole", "plain", True

        def record_forward(self):
            phase = self.phase("y")
            phase.workers[0].call(lambda: np.copyto(self.output.data, self.input.data))
            phase.workers[0].call(softsign_, self.output.data)
            return [phase]

        def record_backward(self):
            phase = self.phase("dx")
            phase.workers[0].call(self.backward)
            return [phase]

        def backward(self):
            self.input.grad[...] = self.output.grad * (1 - abs(self.output.data)) ** 2

    for make in after_nothing_and_after_a_convolution(registered(SoftsignKernel, Whole)):
        assert "whole" in algorithms(assert_plan_equals_layers(make, (2, 4, 4, 3)))


def test_scratch_may_have_the_dtype_of_the_map():
    for dtype, tolerance in (("float32", 5e-5), ("float64", 1e-12)):
        for make in after_nothing_and_after_a_convolution(registered(SoftsignKernel), dtype):
            assert_plan_equals_layers(make, (2, 4, 4, 3), dtype=dtype, tolerance=tolerance)


class PReLU(Layer):
    """A leaky ReLU that learns its slope."""

    def __init__(self):
        super().__init__()
        self.slope = Parameter(np.full(1, 0.25, "float32"))

    def forward(self, x):
        return self.save_for_backward(np.where(x > 0, x, self.slope.data * x), x)

    def backward(self, dy):
        x = self.saved(dy)
        self.slope.grad = np.where(x > 0, 0, dy * x).sum().reshape(1)
        return np.where(x > 0, dy, self.slope.data * dy)


class LearningPool(AvgPool2d):
    def __init__(self):
        super().__init__()
        self.scale = Parameter(np.full(1, 2.0, "float32"))

    def forward(self, x):
        self.y = super().forward(x)
        return self.y * self.scale.data

    def backward(self, dy):
        self.scale.grad = (dy * self.y).sum().reshape(1)
        return super().backward(dy * self.scale.data)


@pytest.mark.parametrize("base, kernel", [(PReLU, SoftsignKernel), (LearningPool, AvgPoolKernel)])
def test_what_learns_is_not_computed_by_a_kernel_that_knows_no_gradient_of_parameters(base, kernel):
    kind = registered(kernel, base=base)
    with pytest.warns(UserWarning, match=r"1 \(Mine\) with an unknown share"):
        assert_plan_equals_layers(lambda: Sequential(Conv2d(3, 4), kind(), Conv2d(4, 2)), (2, 8, 8, 3))


# Masks


class Double(Layer):
    def forward(self, x):
        return self.save_for_backward(2 * x, None)

    def backward(self, dy):
        self.saved(dy)
        return 2 * dy


class DoubleKernel(plans.Kernel):
    """It does not know that there are masks."""

    algorithm = "double"
    output_layout = "plain"

    def record_forward(self):
        phase = self.phase("y")
        phase.workers[0](np.multiply, self.input.data, np.float32(2), out=self.output.data)
        return [phase]

    def record_backward(self):
        phase = self.phase("dx")
        phase.workers[0](np.multiply, self.output.grad, np.float32(2), out=self.input.grad)
        return [phase]


@pytest.mark.parametrize("before", [[ReLU], [ReLU, MaxPool2d], [LeakyReLU], [ReLU, Flatten]])
def test_the_plan_masks_what_a_kernel_from_outside_hands_back(before):
    kind = registered(DoubleKernel, base=Double)

    def make():
        return Sequential(Conv2d(3, 4), *(layer() for layer in before), kind(), ReLU(), kind())

    assert algorithms(assert_plan_equals_layers(make, (2, 8, 8, 3)))[-2:] == ["relu", "double"]


def test_a_leaky_relu_whose_output_does_not_tell_its_derivative_is_refused():
    with pytest.raises(ValueError, match="slope must not be negative, not -0.5"):
        LeakyReLU(-0.5)


# Shapes


def test_an_elementwise_kernel_is_not_used_where_the_shape_changes():
    class Half(Softsign):
        def forward(self, x):
            return super().forward(x)[:, ::2, ::2]

        def output_shape(self, shape):
            return shape[0], shape[1] // 2, shape[2] // 2, shape[3]

    net = Sequential(Conv2d(3, 4), registered(SoftsignKernel, base=Half)()).eval()
    with pytest.warns(UserWarning, match=r"1 \(Mine\)"):
        plan = plans.compile(net, (2, 8, 8, 3))
    assert plan.forward(batch(2, 8, 8, 3)).shape == (2, 4, 4, 4)


@pytest.mark.parametrize("shape", [lambda s, shape: (2, 3, 3, 4), Layer.output_shape])
def test_windows_that_make_another_shape_than_output_shape_says_are_refused(shape):
    kind = type("Mine", (AvgPool2d,), {"output_shape": shape})
    plans.register(kind, cpu=AvgPoolKernel)
    with pytest.raises(ValueError, match=r"1 \(Mine\): windows of 2 in steps of 2 make \(2, 4, 4, 4\) of"):
        plans.compile(Sequential(Conv2d(3, 4), kind()), (2, 8, 8, 3), training=True)


def test_windows_that_are_not_square_are_refused():
    kind = type("Mine", (AvgPool2d,), {"output_shape": lambda self, shape: (2, 4, 4, 3)})
    plans.register(kind, cpu=AvgPoolKernel)
    with pytest.raises(ValueError, match=r"0 \(Mine\): kernel_size and stride must be whole .* \(2, 2\)"):
        plans.compile(Sequential(kind((2, 2))), (2, 8, 8, 3), training=True)


def test_a_layer_with_a_kernel_but_without_output_shape_is_blamed_too():
    kind = type("Mine", (AvgPool2d,), {"output_shape": Layer.output_shape})
    plans.register(kind, cpu=AvgPoolKernel)
    with pytest.raises(ValueError, match=r"^1 \(Mine\) has no output_shape.*expected \(N, 64\)"):
        plans.compile(Sequential(Conv2d(3, 4), kind(), Flatten(), Linear(64, 5)), (2, 8, 8, 3), training=True)


@pytest.mark.parametrize("last", [ReLU(), Dropout(), BatchNorm2d(4), LeakyReLU()])
def test_layers_that_keep_the_shape_are_not_blamed(last):
    with pytest.raises(ValueError, match=r"^2 \(Conv2d\): expected \(N, H, W, 8\)"):
        plans.compile(Sequential(Conv2d(3, 4), last, Conv2d(8, 4)), (2, 8, 8, 3), training=True)


@pytest.mark.parametrize("shape, reason", [(lambda s, shape: None, "NoneType"), (None, "expected 4, got 2")])
def test_an_output_shape_that_fails_is_named(shape, reason):
    kind = type("Mine", (AvgPool2d,), {"output_shape": shape} if shape else {})
    with pytest.raises(ValueError, match=rf"1 \(Mine\): output_shape\(\(2, 192\)\) fails: .*{reason}"):
        plans.compile(Sequential(Flatten(), kind()), (2, 8, 8, 3), training=True)


@pytest.mark.filterwarnings("ignore:no kernel is registered:UserWarning")
@pytest.mark.parametrize("dx, named", [(lambda dy: None, "NoneType"), (lambda dy: dy[:1], r"\(1, 3\)")])
def test_a_wrong_gradient_of_a_layer_without_a_kernel_is_named(dx, named):
    kind = type("Mine", (Softsign,), {"backward": lambda self, dy: dx(dy)})
    plan = plans.compile(Sequential(kind()), (2, 3), training=True)
    y = plan.forward(batch(2, 3))
    with pytest.raises(ValueError, match=rf"0 \(Mine\): backward returned {named}, its input was \(2, 3\)"):
        plan.backward(y, need_input_gradient=True)


# Settings


class Slopes(Layer):
    def __init__(self, slopes):
        super().__init__()
        self.slopes = slopes

    def forward(self, x):
        return self.save_for_backward(x, None)

    def settings(self):
        return {"slopes": self.slopes}


@pytest.mark.filterwarnings("ignore:no kernel is registered:UserWarning")
@pytest.mark.parametrize("slopes", [[0.5, 1], np.ones(4), {0: 1.0}, ([1, 2], np.ones(2))])
def test_a_setting_that_is_changed_in_place_makes_a_plan_stale(slopes):
    net, x = Sequential(Slopes(slopes)), batch(2, 3)
    plan = plans.compile(net, x.shape, training=True)
    plan.forward(x)
    (slopes[0] if isinstance(slopes, tuple) else slopes)[0] = 3.0
    with pytest.raises(RuntimeError, match=r"0 \(Slopes\) has other settings"):
        plan.forward(x)


@pytest.mark.filterwarnings("ignore:no kernel is registered:UserWarning")
def test_settings_may_be_arrays_and_lists_and_equal_ones_are_equal():
    net, x = Sequential(Slopes(np.ones(4)), Slopes([[1]])), batch(2, 3)
    plan = plans.compile(net, x.shape, training=True)
    net[0].slopes, net[1].slopes = np.ones(4), [[1]]
    plan.forward(x)
    net[0].slopes = np.ones(3)
    with pytest.raises(RuntimeError, match=r"0 \(Slopes\) has other settings"):
        plan.forward(x)


# What may be registered


@pytest.mark.parametrize(
    "kernel",
    [
        type("Mine", (AvgPoolKernel,), {"role": "pool"}),
        type("Mine", (windows.MaxPool,), {}),
        type("Mine", (norm.Norm,), {}),
        type("Mine", (misc_kernels.Dropout,), {}),
        type("Mine", (DoubleKernel,), {"role": "activation"}),
        type("Mine", (SoftsignKernel,), {"role": "pool"}),
    ],
)
def test_a_role_in_which_a_group_would_compute_something_else_is_refused(kernel):
    with pytest.raises(ValueError, match=f"Mine has the role '{kernel.role}': groups that take its layer"):
        plans.register(type("Mine", (AvgPool2d,), {}), cpu=kernel)


def test_the_kernels_of_the_package_may_be_registered_for_other_layers():
    for kernel in (elementwise.ReLU, windows.MaxPool, norm.Norm, misc_kernels.Dropout):
        registered(kernel)


@pytest.mark.parametrize("layer", [Softsign(), int, "Softsign", None])
def test_only_a_class_of_layers_can_have_kernels(layer):
    with pytest.raises(ValueError, match="registered for a subclass of Layer, not for"):
        plans.register(layer, cpu=SoftsignKernel)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("kernel", [SoftsignKernel(Softsign()), Softsign, 3, "im2col", Registrable])
def test_only_a_class_of_kernels_can_be_registered(kernel, device):
    with pytest.raises(ValueError, match=f"{device}=.* is no class of kernels for that device"):
        plans.register(Softsign, **{device: kernel})


@pytest.mark.parametrize("kernel", [SoftsignKernel, AvgPoolKernel, DoubleKernel])
def test_a_kernel_for_a_cpu_is_none_for_a_gpu(kernel):
    with pytest.raises(ValueError, match="cuda=.* is no class of kernels for that device"):
        plans.register(Softsign, cuda=kernel)


def test_auto_is_no_name_of_a_kernel():
    with pytest.raises(ValueError, match="Mine needs an `algorithm`, a name of its own, not 'auto'"):
        plans.register(Softsign, cpu=type("Mine", (SoftsignKernel,), {"algorithm": "auto"}))


@pytest.mark.parametrize("method", ["record_forward", "record_backward"])
@pytest.mark.parametrize(
    "base, own, kernel",
    [
        (plans.Elementwise, Softsign, SoftsignKernel),
        (plans.Windows, AvgPool2d, AvgPoolKernel),
        (plans.Kernel, Double, DoubleKernel),
    ],
)
def test_a_kernel_without_a_method_is_named_with_it_when_a_plan_is_compiled(base, own, kernel, method):
    other = {"record_forward": "record_backward", "record_backward": "record_forward"}[method]
    half = type("HalfAKernel", (base,), {"algorithm": "half", other: getattr(kernel, other)})
    with pytest.raises(TypeError, match=f"HalfAKernel .*{method}"):
        plans.compile(Sequential(registered(half, base=own)()), (2, 4, 4, 3), training=True)


# Networks


def test_a_network_of_no_layers_is_refused():
    with pytest.raises(ValueError, match="Sequential has no layers: there is nothing to compile"):
        plans.compile(Sequential(), (2, 3), training=True)


class Mine(Chain):
    def __init__(self, order):
        super().__init__()
        self.a, self.b, self.part = Conv2d(3, 3), ReLU(), Sequential(Conv2d(3, 3))
        self.order = order

    def chain(self):
        return self.order(self)


@pytest.mark.parametrize(
    "order",
    [
        lambda net: [net.a, net.a],
        lambda net: [net.a, net.b, net.a],
        lambda net: [net.part, net.part],
        lambda net: [net.part, net.a, net.part[0]],
        lambda net: [net.part[0], net.part],
    ],
)
def test_a_layer_that_a_chain_lists_twice_is_refused(order):
    with pytest.raises(ValueError, match=r"Mine: chain\(\) lists .* twice, or itself: make two"):
        plans.compile(Mine(order), (2, 8, 8, 3), training=True)


@pytest.mark.parametrize("order", [lambda net: [net], lambda net: [net.a, net]])
def test_a_chain_that_lists_itself_is_refused(order):
    with pytest.raises(ValueError, match=r"Mine: chain\(\) lists Mine twice, or itself"):
        plans.compile(Mine(order), (2, 8, 8, 3), training=True)
