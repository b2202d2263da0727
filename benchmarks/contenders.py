"""The contenders: the same network in scratchnet and in each of the other libraries.

This file is the worker process of ``race.py``. Each ``build_...`` returns a function that makes one step and
returns its result, and the versions of what it computes with:

- a training step is forward, loss, backward without the gradient of the image, and SGD with momentum; it
  returns the loss. Dropout is off, since no two libraries would draw the same masks.
- a step of inference returns the logits. Batch normalisation uses running statistics.

All begin with scratchnet's weights; ``translations.py`` takes them to PyTorch and ONNX.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, repeat
from pathlib import Path
from typing import Any

import numpy as np
from race import work
from translations import onnx_model, torch_network

from scratchnet import __version__, layers, models

LEARNING_RATE = 1e-3
MOMENTUM = 0.9
NUM_CLASSES = 10

Contender = tuple[Callable[[], Any], str]


def build_network(task: dict[str, Any]) -> models.VGG:
    """Build scratchnet's network for the task."""
    net = models.VGG(
        task["arch"],
        num_classes=NUM_CLASSES,
        image_size=task["image_size"],
        batch_norm=task["batch_norm"],
        width=task["width"],
        classifier_width=task.get("classifier_width", 4096),
        dropout=0.0,
        seed=task.get("seed", 0),
    )
    if task["kind"] == "inference":
        net.eval()
        rng = np.random.default_rng(1)
        for name, statistics in net.buffers().items():  # as after training, not 0 and 1
            mean = name.endswith("mean")
            shape = statistics.shape
            statistics[...] = rng.normal(0.0, 0.1, shape) if mean else rng.uniform(0.5, 1.5, shape)
    return net


def make_batch(task: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Draw the batch: images (N, H, W, 3), labels (N,)."""
    rng = np.random.default_rng(task.get("seed", 0))
    size = task["image_size"]
    x = rng.standard_normal((task["batch_size"], size, size, 3), dtype=np.float32)
    return x, rng.integers(0, NUM_CLASSES, task["batch_size"])


def channels_first(x: np.ndarray) -> np.ndarray:
    """Return images (N, 3, H, W)."""
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


# scratchnet, and the libraries that it is compared with


def build_scratchnet(task: dict[str, Any]) -> Contender:
    """Prepare scratchnet, layer by layer or with a plan."""
    x, labels = make_batch(task)
    if task["kind"] == "training":
        step = training_step(task)
        return lambda: step(x, labels), versions_of_numpy()
    engine = build_engine(build_network(task), task)
    return lambda: engine.forward(x), versions_of_numpy()


def build_engine(net: models.VGG, task: dict[str, Any]) -> Any:
    """Return the engine: the layers, one by one, or a plan."""
    from scratchnet import plans

    shape = (task["batch_size"], task["image_size"], task["image_size"], 3)
    return plans.compile(net, shape, training=net.training) if task["engine"] == "plan" else net


def training_step(task: dict[str, Any]) -> Callable[[np.ndarray, np.ndarray], float]:
    """Return a function that trains scratchnet on a batch and returns the loss."""
    from scratchnet import losses, optim

    net = build_network(task)
    engine = build_engine(net, task)
    loss = losses.SoftmaxCrossEntropy()
    optimizer = optim.SGD(net.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    def step(x: np.ndarray, labels: np.ndarray) -> float:
        value = loss.forward(engine.forward(x), labels)
        engine.backward(loss.backward(), need_input_gradient=False)
        optimizer.step()
        return float(value)

    return step


def versions_of_numpy() -> str:
    """Name scratchnet, NumPy, and the BLAS and kernels that compute its matrix products."""
    from threadpoolctl import threadpool_info

    blas = [
        f"{info['internal_api']} {info['version']}, kernels for {info.get('architecture', 'unknown')}"
        for info in threadpool_info()
        if info["user_api"] == "blas"
    ]
    features = np._core._multiarray_umath.__cpu_features__  # those that are disabled are False
    avx512 = any(on and name.startswith(("AVX512", "X86_V4")) for name, on in features.items())
    own = f"its own loops {'with' if avx512 else 'without'} AVX-512"
    return f"scratchnet {__version__}, NumPy {np.__version__} ({own}; {'; '.join(blas) or 'BLAS unknown'})"


def build_torch(task: dict[str, Any]) -> Contender:
    """Prepare PyTorch: eager in either memory format, or compiled."""
    import torch

    torch.set_num_threads(task["threads"])
    training = task["kind"] == "training"
    x, labels = make_batch(task)
    x, labels = torch.from_numpy(channels_first(x)), torch.from_numpy(labels)
    net = torch_network(build_network(task)).train(training)
    if task["contender"] != "eager":  # compiled without it, PyTorch 2.13 computes wrong gradients
        net = net.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    forward = net
    if task["contender"] == "compile":
        import torch._inductor.config

        torch._inductor.config.freezing = not training  # weights become constants, packed beforehand
        forward = torch.compile(net)
    versions = f"PyTorch {torch.__version__} (kernels for {torch.backends.cpu.get_cpu_capability()})"
    if not training:
        return torch.inference_mode()(lambda: forward(x).numpy()), versions
    loss = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    def step() -> float:
        optimizer.zero_grad()
        value = loss(forward(x), labels)
        value.backward()
        optimizer.step()
        return value.item()

    return step, versions


@contextmanager
def onnx_file(task: dict[str, Any]) -> Iterator[Path]:
    """Write the network to a file as an ONNX model.

    A process of its own writes it, so that its memory is not counted as that of the library that reads it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        task = {**task, "contender": "onnx_file", "path": str(path)}
        done = subprocess.run([sys.executable, __file__, json.dumps(task)], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"its ONNX model cannot be written: {done.stderr.strip().splitlines()[-1]}")
        yield path


def build_onnxruntime(task: dict[str, Any]) -> Contender:
    """Prepare ONNX Runtime."""
    import onnxruntime

    x = channels_first(make_batch(task)[0])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task["threads"]
    with onnx_file(task) as path:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": x})[0], f"ONNX Runtime {onnxruntime.__version__}"


def build_openvino(task: dict[str, Any]) -> Contender:
    """Prepare OpenVINO, in float32: by default it takes bfloat16 where the processor has it."""
    import openvino

    x = channels_first(make_batch(task)[0])
    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": task["threads"],
        "PERFORMANCE_HINT": "LATENCY",
    }
    with onnx_file(task) as path:
        request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
    return lambda: request.infer([x])[0], f"OpenVINO {openvino.__version__.split('-')[0]}"


def build_dezero(task: dict[str, Any]) -> Contender:
    """Prepare DeZero, which was written for a NumPy that had an ``np.int``."""
    np.int = int
    import dezero
    from dezero import functions as F
    from dezero import layers as L

    def translate(layer: layers.Layer) -> Callable:
        match layer:
            case layers.Conv2d():
                module = L.Conv2d(layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
                weight = layer.weight.data.transpose(3, 2, 0, 1)
            case layers.Linear():
                module, weight = L.Linear(layer.out_features), layer.weight.data
            case layers.ReLU():
                return F.relu
            case layers.MaxPool2d():
                return lambda x: F.pooling(x, layer.kernel_size, layer.stride)
            case layers.Flatten():
                return lambda x: F.reshape(F.transpose(x, (0, 2, 3, 1)), (len(x), -1))
            case layers.Dropout(p=0.0):
                return lambda x: x
            case _:
                raise TypeError(f"no translation for {layer}")
        module.W.data, module.b.data = np.array(weight, order="C"), layer.bias.data.copy()
        return module

    x, labels = make_batch(task)
    x = channels_first(x)
    rows, scale = np.arange(len(x)), np.float32(-1 / len(x))
    model = dezero.models.Sequential(*(translate(layer) for _, layer in layers.leaves(build_network(task))))
    versions = f"DeZero {dezero.__version__}"

    def infer() -> np.ndarray:
        with dezero.no_grad(), dezero.test_mode():
            return model(x).data

    optimizer = dezero.optimizers.MomentumSGD(LEARNING_RATE, MOMENTUM).setup(model)

    def train() -> float:
        model.cleargrads()
        # With F.softmax_cross_entropy gradients would be float64, twice the work.
        loss = F.sum(F.log_softmax(model(x))[rows, labels]) * scale
        loss.backward()
        optimizer.update()
        return float(loss.data)

    return (train if task["kind"] == "training" else infer), versions


def build_jax(task: dict[str, Any]) -> Contender:
    """Prepare JAX, compiled by XLA for the CPU."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if hasattr(os, "sched_setaffinity"):  # XLA starts one thread per core that it may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["threads"]])
    import jax
    from jax import lax
    from jax import numpy as jnp

    net = build_network(task)
    chain = [layer for _, layer in layers.leaves(net)]
    weights = [[jnp.array(p.data) for p in layer.parameters().values()] for layer in chain]
    structure = [(type(layer), layer.settings().get("kernel_size")) for layer in chain]
    del net, chain

    def forward(weights: list, x: Any) -> Any:
        for (layer_class, size), parameters in zip(structure, weights, strict=True):
            if layer_class is layers.Conv2d:
                x = lax.conv_general_dilated(
                    x, parameters[0], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
                x += parameters[1]
            elif layer_class is layers.Linear:
                x = x @ parameters[0] + parameters[1]
            elif layer_class is layers.ReLU:
                x = jax.nn.relu(x)
            elif layer_class is layers.MaxPool2d:
                N, H, W, C = x.shape  # its gradient is faster than that of lax.reduce_window
                x = x.reshape(N, H // size, size, W // size, size, C).max(axis=(2, 4))
            elif layer_class is layers.Flatten:
                x = x.reshape(len(x), -1)
            elif layer_class is not layers.Dropout:
                raise TypeError(f"no translation for {layer_class.__name__}")
        return x

    def loss(weights: list, x: Any, labels: Any) -> Any:
        return -jax.nn.log_softmax(forward(weights, x))[jnp.arange(len(x)), labels].mean()

    def update(weights: list, velocity: list, x: Any, labels: Any) -> tuple:
        value, gradients = jax.value_and_grad(loss)(weights, x, labels)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradients)
        return value, jax.tree.map(lambda w, v: w - LEARNING_RATE * v, weights, velocity), velocity

    x, labels = map(jnp.array, make_batch(task))
    versions = f"JAX {jax.__version__}"
    if task["kind"] == "inference":
        compiled = jax.jit(forward)
        return lambda: np.asarray(compiled(weights, x)), versions
    compiled = jax.jit(update, donate_argnums=(0, 1))
    velocity = jax.tree.map(jnp.zeros_like, weights)

    def train() -> float:
        nonlocal weights, velocity
        value, weights, velocity = jax.block_until_ready(compiled(weights, velocity, x, labels))
        return float(value)

    return train, versions


# The cost of preparing data: scratchnet's training steps, with and without a loader


def build_from_loader(task: dict[str, Any]) -> Contender:
    """Prepare training on images of CIFAR-10's shape: new batches, or one fixed batch.

    A step of the race is a short epoch of ``task["batches"]`` training steps.
    """
    from scratchnet import data

    rng = np.random.default_rng(0)
    loader = data.Loader(
        rng.integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8),
        rng.integers(0, NUM_CLASSES, 50_000),
        task["batch_size"],
        shuffle=True,
        augmentation=data.Augmentation.named("crop-flip"),
        normalisation=data.Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        image_size=task["image_size"],
        indices=rng.integers(0, 50_000, task["batches"] * task["batch_size"]),
    )
    step = training_step(task)
    fixed = next(loader.epoch(0))
    new = task["contender"] == "loader"
    epochs = map(loader.epoch, count()) if new else repeat([fixed] * task["batches"])

    def short_epoch() -> float:
        for x, labels in next(epochs):
            value = step(x, labels)
        return value

    return short_epoch, versions_of_numpy()


BUILDERS = {
    "scratchnet": build_scratchnet,
    "eager": build_torch,
    "channels_last": build_torch,
    "compile": build_torch,
    "onnxruntime": build_onnxruntime,
    "openvino": build_openvino,
    "dezero": build_dezero,
    "jax": build_jax,
    "fixed_batch": build_from_loader,
    "loader": build_from_loader,
}

if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    if task["contender"] == "onnx_file":
        Path(task["path"]).write_bytes(onnx_model(build_network(task), task["batch_size"]))
        sys.exit()
    work(BUILDERS[task["contender"]], task)
