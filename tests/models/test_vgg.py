"""VGG: the paper's Table 1 from lists, with torchvision's names and numbers of parameters."""

import io
import tracemalloc

import numpy as np
import pytest

from scratchnet import plans
from scratchnet.layers import BatchNorm2d, Conv2d, Dropout, Linear
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.models import ARCHITECTURES, VGG, vgg11, vgg13, vgg16, vgg19
from scratchnet.models.vgg import CHANNEL, POOL_POS, from_positions

BUILDERS = {"vgg11": vgg11, "vgg13": vgg13, "vgg16": vgg16, "vgg19": vgg19}
TINY = {"num_classes": 10, "image_size": 32, "width": 0.0625, "classifier_width": 16}


def size(net):
    return sum(p.size for p in net.parameters().values())


def random_images(N=2, H=32, W=32, seed=0, dtype="float32"):
    return np.random.default_rng(seed).standard_normal((N, H, W, 3)).astype(dtype)


# The paper's networks


@pytest.mark.parametrize(
    "name, batch_norm, parameters",
    [
        ("vgg11", False, 132_863_336),
        ("vgg13", False, 133_047_848),
        ("vgg16", False, 138_357_544),
        ("vgg19", False, 143_667_240),
        ("vgg11", True, 132_868_840),
        ("vgg13", True, 133_053_736),
        ("vgg16", True, 138_365_992),
        ("vgg19", True, 143_678_248),
    ],
)
def test_parameters_are_as_many_as_torchvisions(name, batch_norm, parameters):
    assert size(BUILDERS[name](batch_norm=batch_norm)) == parameters


@pytest.mark.parametrize("name, layers", [("vgg11", 11), ("vgg13", 13), ("vgg16", 16), ("vgg19", 19)])
def test_a_network_is_named_after_its_layers_with_weights(name, layers):
    net = BUILDERS[name]()
    assert sum(isinstance(layer, (Conv2d, Linear)) for _, layer in net.walk()) == layers
    assert ARCHITECTURES[name].count("M") == 5


VGG16_CONVOLUTIONS = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
VGG16_BN_CONVOLUTIONS = [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]
VGG16_CHANNELS = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]


def test_vgg16_has_torchvisions_names_in_their_order():
    expected = [f"features.{i}.{part}" for i in VGG16_CONVOLUTIONS for part in ("weight", "bias")]
    expected += [f"classifier.{i}.{part}" for i in (0, 3, 6) for part in ("weight", "bias")]
    net = vgg16()
    assert list(net.parameters()) == expected
    assert not net.buffers()


def test_vgg16_has_configuration_ds_shapes():
    inputs = [3, *VGG16_CHANNELS[:-1]]
    parameters = vgg16().parameters()
    for i, C, O in zip(VGG16_CONVOLUTIONS, inputs, VGG16_CHANNELS, strict=True):
        assert parameters[f"features.{i}.weight"].shape == (3, 3, C, O)
        assert parameters[f"features.{i}.bias"].shape == (O,)
    assert parameters["classifier.0.weight"].shape == (512 * 7 * 7, 4096)
    assert parameters["classifier.3.weight"].shape == (4096, 4096)
    assert parameters["classifier.6.weight"].shape == (4096, 1000)


def test_vgg16_with_batch_norm_has_torchvisions_names_and_running_statistics():
    names, statistics = [], []
    for i in VGG16_BN_CONVOLUTIONS:
        names += [f"features.{i}.weight", f"features.{i}.bias"]
        names += [f"features.{i + 1}.weight", f"features.{i + 1}.bias"]
        statistics += [f"features.{i + 1}.running_mean", f"features.{i + 1}.running_var"]
    names += [f"classifier.{i}.{part}" for i in (0, 3, 6) for part in ("weight", "bias")]
    net = vgg16(batch_norm=True)
    assert list(net.parameters()) == names
    assert list(net.buffers()) == statistics


def test_the_articles_printed_list_has_twelve_convolutions_and_fifteen_layers_with_weights():
    assert from_positions(CHANNEL, POOL_POS) == ARCHITECTURES["article"]
    net = VGG("article", **TINY)
    kinds = [type(layer) for _, layer in net.walk()]
    assert kinds.count(Conv2d) == 12
    assert kinds.count(Conv2d) + kinds.count(Linear) == 15
    without_third_256 = list(ARCHITECTURES["vgg16"])
    without_third_256.remove(256)
    assert ARCHITECTURES["article"] == without_third_256


def test_dropout_of_zero_keeps_the_indices():
    assert list(vgg11(**TINY, dropout=0.0).parameters()) == list(vgg11(**TINY, dropout=0.5).parameters())
    assert [path for path, layer in vgg11(**TINY, dropout=0.0).walk() if isinstance(layer, Dropout)] == [
        "classifier.2",
        "classifier.5",
    ]


def test_a_list_of_ones_own_is_an_architecture():
    net = VGG([8, "M", 16, 16, "M"], num_classes=3, image_size=12, classifier_width=5)
    assert net.shrink == 4
    assert net.parameters()["classifier.0.weight"].shape == (16 * 3 * 3, 5)
    assert net.forward(random_images(H=12, W=12)).shape == (2, 3)


# Width, sizes, heads, dtypes


@pytest.mark.parametrize("width", [0.25, 0.3, 1.5])
def test_width_scales_channels_rounding_down(width):
    net = vgg11(10, 32, width=width, classifier_width=16)
    channels = [layer.out_channels for layer in net.features if isinstance(layer, Conv2d)]
    assert channels == [int(c * width) for c in ARCHITECTURES["vgg11"] if c != "M"]


@pytest.mark.parametrize("image_size", [32, 33, 63, 64, 75, 96])
def test_a_flat_head_takes_images_of_the_size_it_was_built_for(image_size):
    net = vgg11(**TINY | {"image_size": image_size})
    assert net.forward(random_images(H=image_size, W=image_size)).shape == (2, 10)
    assert net.parameters()["classifier.0.weight"].shape[0] == 32 * (image_size // 32) ** 2


@pytest.mark.parametrize("head", ["flatten", "gap"])
@pytest.mark.parametrize("channels, image_size", [(1, 32), (2, 45), (5, 70)])
def test_images_have_any_number_of_channels_in_layers_and_plans(channels, image_size, head):
    settings = TINY | {"image_size": image_size, "in_channels": channels, "head": head, "dropout": 0.0}
    net = vgg11(**settings)
    x = np.random.default_rng(0).standard_normal((3, image_size, image_size, channels), dtype="float32")
    plan = plans.compile(net, x.shape, training=True)
    y = plan.forward(x)
    np.testing.assert_allclose(y, net.forward(x), rtol=1e-3, atol=1e-4)
    dy = np.random.default_rng(1).standard_normal(y.shape, dtype="float32")
    plan.backward(dy)
    gradients = {name: p.grad.copy() for name, p in net.parameters().items()}
    assert net.backward(dy).shape == x.shape
    for name, p in net.parameters().items():
        scale = max(abs(p.grad).max(), 1e-3)
        np.testing.assert_allclose(gradients[name], p.grad, atol=2e-3 * scale, err_msg=name)
    assert VGG(**net.settings()).settings() == net.settings()
    out = io.StringIO()
    net.summary(file=out)
    assert f"{image_size} x {image_size} x {channels}" in out.getvalue()
    assert net.multiply_adds((1, *x.shape[1:])) > 0
    with pytest.raises(ValueError, match=rf"expected \(N, H, W, {channels}\)"):
        net.forward(np.zeros((1, image_size, image_size, channels + 1), "float32"))


def test_a_gap_head_takes_any_size_batch_by_batch_and_learns_from_each():
    net = vgg11(**TINY | {"image_size": 40}, head="gap")
    assert net.parameters()["classifier.0.weight"].shape == (32, 16)
    for H, W in [(32, 32), (45, 33), (32, 80), (100, 41)]:
        logits = net.forward(random_images(H=H, W=W))
        assert logits.shape == (2, 10)
        assert net.backward(np.ones_like(logits)).shape == (2, H, W, 3)


def test_gap_of_one_pixel_is_the_flat_head():
    x = random_images()
    flat, gap = vgg11(**TINY, dropout=0.0), vgg11(**TINY, dropout=0.0, head="gap")
    np.testing.assert_allclose(flat.forward(x), gap.forward(x), rtol=1e-5, atol=1e-6)


def test_float64_everywhere():
    net = vgg11(**TINY, batch_norm=True, dtype="float64")
    logits = net.forward(random_images(dtype="float64"))
    dx = net.backward(np.ones_like(logits))
    arrays = [p.data for p in net.parameters().values()] + [p.grad for p in net.parameters().values()]
    assert {a.dtype for a in [logits, dx, *arrays, *net.buffers().values()]} == {np.dtype("float64")}


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"architecture": "vgg12"}, "architecture must be one of vgg11, .* not 'vgg12'"),
        ({"architecture": []}, "architecture must be a list"),
        ({"architecture": ["M", "M"]}, "architecture must be a list"),
        ({"architecture": [64, "X"]}, "architecture must be a list"),
        ({"architecture": [64, -3, "M"]}, "architecture must be a list"),
        ({"architecture": 5}, "architecture must be a list"),
        ({"head": "mean"}, "head must be 'flatten' or 'gap', not 'mean'"),
        ({"image_size": 31}, "image_size must be a whole number of at least 32, not 31"),
        ({"image_size": 0}, "image_size must be a whole number of at least 32, not 0"),
        ({"image_size": 64.0}, "image_size must be a whole number of at least 32, not 64.0"),
        ({"image_size": "64"}, "image_size must be a whole number of at least 32, not '64'"),
        ({"in_channels": 0}, "in_channels must be a whole number of at least 1, not 0"),
        ({"image_size": 31, "head": "gap"}, "image_size"),
        ({"width": 0.01}, "width must leave at least one channel everywhere, and 0.01 does not"),
        ({"width": -1}, "width"),
        ({"width": float("nan")}, "width"),
        ({"width": float("inf")}, "width"),
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1, not 0"),
        ({"num_classes": 2.5}, "num_classes must be a whole number"),
        ({"classifier_width": 0}, "classifier_width must be a whole number"),
        ({"dropout": 1.5}, "between 0 and 1"),
        ({"init": "xavier"}, "init must be one of he, pytorch, normal, not 'xavier'"),
        ({"dtype": "float16"}, "dtype must be float32 or float64"),
    ],
)
def test_settings_that_build_no_network_are_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=words):
        VGG(**{"architecture": "vgg11", **TINY, **settings})


@pytest.mark.parametrize(
    "head, H, W, words",
    [
        ("flatten", 64, 64, r"expected images of 32 x 32, got 64 x 64.*image_size=64 or head='gap'"),
        ("flatten", 48, 48, r"got 48 x 48: resize them, or build the network with image_size=48 or head"),
        ("flatten", 16, 16, r"got 16 x 16: resize them, or build the network with head='gap'"),
        ("flatten", 32, 64, r"got 32 x 64: resize them, or build the network with head='gap'"),
        ("gap", 31, 64, r"images of 31 x 64 are too small: 32 x 32 at least"),
    ],
)
def test_images_of_another_size_are_refused_and_told_what_to_do(head, H, W, words):
    with pytest.raises(ValueError, match=words):
        vgg11(**TINY, head=head).forward(random_images(H=H, W=W))


def test_images_with_channels_first_are_refused():
    with pytest.raises(ValueError, match="channels last"):
        vgg11(**TINY).forward(np.zeros((2, 3, 32, 32), "float32"))


# Seeds and initialisations


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    x = random_images()
    a, b, c = (vgg11(**TINY, seed=seed) for seed in (1, 1, 2))
    assert all(
        (p.data == q.data).all()
        for p, q in zip(a.parameters().values(), b.parameters().values(), strict=True)
    )
    assert (a.forward(x) == b.forward(x)).all()  # dropout included
    for name in ("features.0.weight", "classifier.6.weight"):
        assert (a.parameters()[name].data != c.parameters()[name].data).any()


def test_both_dropouts_have_generators_of_their_own():
    states = [rng.bit_generator.state["state"]["state"] for rng in vgg11(**TINY).generators().values()]
    assert len(set(states)) == 2


def test_batch_norm_and_dropout_do_not_change_the_drawn_weights():
    plain, other = vgg11(**TINY), vgg11(**TINY, batch_norm=True, dropout=0.0)
    convolutions = [[f for f in net.features if isinstance(f, Conv2d)] for net in (plain, other)]
    for a, b in zip(*convolutions, strict=True):
        assert (a.weight.data == b.weight.data).all()


def first_loss_and_gradient(init):
    net = vgg16(10, 32, width=0.25, classifier_width=128, dropout=0.0, init=init, seed=3)
    x, labels = random_images(16), np.arange(16) % 10
    scales = []
    for layer in net.layers:
        x = layer.forward(x)
        if isinstance(layer, (Conv2d, Linear)):
            scales.append(float(x.std()))
    loss = SoftmaxCrossEntropy()
    value = float(loss.forward(x, labels))
    net.backward(loss.backward())
    return value, float(np.abs(net.parameters()["features.0.weight"].grad).max()), scales


def test_he_keeps_the_signals_scale_through_sixteen_layers():
    loss, gradient, scales = first_loss_and_gradient("he")
    assert len(scales) == 16
    assert 0.3 < min(scales) and max(scales) < 4.0
    assert loss < 6.0 and gradient > 1e-3


@pytest.mark.parametrize("init", ["pytorch", "normal"])
def test_the_known_failures_lose_the_signal_and_start_at_log_ten_without_a_gradient(init):
    loss, gradient, scales = first_loss_and_gradient(init)
    assert scales[12] < 0.05 * scales[0]
    assert abs(loss - np.log(10)) < 0.02
    assert gradient < 1e-4


# The table


def lines_of(net, *arguments):
    out = io.StringIO()
    net.summary(*arguments, file=out)
    return [
        [cell.strip() for cell in line.split("   ") if cell.strip()] for line in out.getvalue().splitlines()
    ]


def test_summary_prints_the_articles_table():
    rows = lines_of(vgg16())
    assert rows[0] == [
        "Layer",
        "Output size",
        "Kernel",
        "Stride",
        "Activation",
        "Parameters",
        "Multiply-adds",
        "Memory",
    ]
    assert rows[1] == ["Input", "224 x 224 x 3", "0", "0", "0.57 MB"]
    assert rows[2] == [
        "features.0 Conv2d",
        "224 x 224 x 64",
        "3 x 3",
        "1",
        "relu",
        "1,792",
        "86,704,128",
        "12.26 MB",
    ]
    assert rows[4][:4] == ["features.4 MaxPool2d", "112 x 112 x 64", "2 x 2", "2"]
    assert rows[-2][:4] == ["classifier.6 Linear", "1000", "softmax", "4,097,000"]
    assert rows[-1][:3] == ["Total", "138,357,544", "15,470,264,320"]


def test_summary_prints_to_standard_output_and_aligns_its_columns(capsys):
    vgg11(**TINY, batch_norm=True).summary()
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines}) == 1  # right-aligned memory ends every line
    assert not any(line.startswith("features.2 ReLU") for line in lines)  # a ReLU is no row but a column


def test_multiply_adds_of_vgg16_are_those_of_the_papers_table():
    """Counted here from Table 1 alone: side^2 * 9 * C * O for a convolution, in * out for a linear layer."""
    side, C, total = 224, 3, 0
    for c in ARCHITECTURES["vgg16"]:
        if c == "M":
            side //= 2
        else:
            total, C = total + side * side * 9 * C * c, c
    total += 25088 * 4096 + 4096 * 4096 + 4096 * 1000
    assert total == 15_470_264_320
    assert vgg16().multiply_adds((1, 224, 224, 3)) == total
    assert vgg16().multiply_adds((5, 224, 224, 3)) == 5 * total


def test_summary_of_another_size_needs_a_gap_head():
    assert lines_of(vgg11(**TINY, head="gap"), 64)[1][1] == "64 x 64 x 3"
    with pytest.raises(ValueError, match="expected images of 32 x 32, got 64 x 64"):
        vgg11(**TINY).summary(64)


def test_repr_names_the_settings():
    assert repr(vgg11(**TINY)).startswith("VGG(architecture='vgg11', num_classes=10, image_size=32,")


def test_settings_build_the_same_network_again():
    net = VGG("article", **TINY, batch_norm=True, head="gap", dropout=0.2)
    assert VGG(**net.settings()).settings() == net.settings()
    assert list(VGG(**net.settings()).parameters()) == list(net.parameters())


# Memory


def test_a_network_is_declared_and_not_allocated_until_needed():
    tracemalloc.start()
    net = vgg16()
    net.summary(file=io.StringIO())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size(net) == 138_357_544
    assert peak < 5 << 20  # 528 MB if it were


def test_inference_holds_no_gradients_and_keeps_nothing_for_backward():
    net = vgg11(**TINY, batch_norm=True).eval()
    net.forward(random_images())
    assert all(p.grad is None for p in net.parameters().values())
    assert net.features[0].weight.buffer.grad is None
    assert all(layer._saved is None for _, layer in net.walk())


def test_all_parameters_lie_in_one_buffer():
    net = vgg11(**TINY, batch_norm=True)
    buffers = {id(p.buffer) for p in net.parameters().values()}
    assert len(buffers) == 1
    assert next(iter(net.parameters().values())).buffer.size == size(net)


def test_batch_norm_stands_between_convolution_and_relu():
    kinds = [type(layer).__name__ for layer in vgg11(**TINY, batch_norm=True).features][:4]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    assert not any(isinstance(layer, BatchNorm2d) for layer in vgg11(**TINY).features)


def test_backward_can_skip_the_gradient_of_the_image_and_sets_the_same_others():
    x = random_images()
    with_dx, without = vgg11(**TINY, dropout=0.0), vgg11(**TINY, dropout=0.0)
    dy = np.ones_like(with_dx.forward(x))
    without.forward(x)
    assert with_dx.backward(dy).shape == x.shape
    assert without.backward(dy, need_input_gradient=False) is None
    for p, q in zip(with_dx.parameters().values(), without.parameters().values(), strict=True):
        assert (p.grad == q.grad).all()


def test_output_scale_multiplies_the_last_layers_first_weights_and_nothing_else():
    settings = {"num_classes": 10, "image_size": 32, "width": 0.125, "classifier_width": 16, "seed": 3}
    usual, quiet = vgg11(**settings).parameters(), vgg11(**settings, output_scale=0.25).parameters()
    for name, parameter in usual.items():
        factor = 0.25 if name == "classifier.6.weight" else 1.0
        np.testing.assert_array_equal(quiet[name].data, np.float32(factor) * parameter.data, err_msg=name)


@pytest.mark.parametrize("scale", [-0.1, float("nan"), float("inf")])
def test_output_scale_must_be_a_number_of_at_least_zero(scale):
    with pytest.raises(ValueError, match="output_scale must be a finite number of at least 0"):
        vgg11(10, 32, output_scale=scale)
