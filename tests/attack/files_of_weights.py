"""Mutants of weights: safetensors, PyTorch, ONNX."""

from __future__ import annotations

import contextlib
import io
import json
import random
import struct
import zipfile
from typing import Any

import numpy as np

from scratchnet import checkpoint, interop, models
from scratchnet.layers import Conv2d, Flatten, GlobalAvgPool2d, Linear, MaxPool2d, ReLU, Sequential
from scratchnet.tensorfile import FormatError
from tests.attack.files import BOUND, Target, besiege
from tests.attack.files_of_data import pickled
from tests.attack.mutating import mutant, other_json
from tests.attack.registry import NotHere, Tally, attack

# Weights


def small_network() -> Sequential:
    return Sequential(Conv2d(3, 4), ReLU(), MaxPool2d(2), Flatten(), Linear(4 * 4 * 4, 3))


def small_vgg(**settings: Any) -> models.VGG:
    return models.vgg11(3, 32, **{"width": 0.03125, "classifier_width": 8, "batch_norm": True} | settings)


def with_another_header(rng: random.Random, content: bytes) -> bytes:
    """Change the header of a safetensors file, ours within it, or its length."""
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
        ours = json.loads(header["__metadata__"]["scratchnet"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return mutant(rng, content)
    header["__metadata__"].pop("digest", None)  # which other programs do not write
    if rng.random() < 0.7:
        for _ in range(rng.choice([1, 1, 2, 3])):
            ours = other_json(rng, ours)
        header["__metadata__"]["scratchnet"] = json.dumps(ours)
    else:
        header = other_json(rng, header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def saved(tally: Tally) -> list[bytes]:
    """Whole files of weights."""
    path, contents = tally.folder / "whole.safetensors", []
    names = {"class_names": ["cat", "dog", "ant"], "mean": [0.5] * 3, "std": [0.2] * 3}
    gap = Sequential(Conv2d(3, 4), GlobalAvgPool2d(), Linear(4, 3))
    for net in (small_vgg(), small_vgg(head="gap", batch_norm=False), small_network(), gap):
        checkpoint.save(path, net, **names, image_size=32)
        contents.append(path.read_bytes())
    return contents


@attack("safetensors", BOUND, 10_000)
def safetensors(tally: Tally) -> None:
    target = Target("net.safetensors", saved(tally), checkpoint.load, (FormatError,), [with_another_header])
    besiege(tally, target)


@attack("any weights", BOUND, 10_000)
def any_weights(tally: Tally) -> None:
    """Whatever may be given as MODEL."""
    seeds = saved(tally) + torch_files() + onnx_files(tally)
    refusals = (FormatError, ImportError)  # a mutant may look like ONNX where onnx is not installed
    besiege(tally, Target("net", seeds, interop.load, refusals, [with_another_header]))


def torch_files() -> list[bytes]:
    """Files of PyTorch, in both formats; none where it is not installed."""
    try:
        import torch
    except ImportError:
        return []
    net, state = small_vgg(), {}
    for name, array in ({name: p.data for name, p in net.parameters().items()} | net.buffers()).items():
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        state[name] = torch.tensor(np.ascontiguousarray(array))
    contents = []
    for zipped in (True, False):
        torch.save({"state_dict": state}, file := io.BytesIO(), _use_new_zipfile_serialization=zipped)
        contents.append(file.getvalue())
    return contents


def with_another_member(rng: random.Random, content: bytes) -> bytes:
    """Change one member of a zip file, whose checksums stay right."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except Exception:
        return mutant(rng, content)
    if not members:
        return content
    name = rng.choice([n for n in members if n.endswith(".pkl")] * 10 or list(members))
    members[name] = rng.choice([mutant, pickled])(rng, members[name]) if rng.random() < 0.9 else b""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for each, inner in members.items():
            archive.writestr(each, inner)
    return out.getvalue()


@attack("PyTorch files", BOUND, 5_000)
def pytorch(tally: Tally) -> None:
    if not (seeds := torch_files()):
        raise NotHere("PyTorch is not installed")
    besiege(tally, Target("net.pth", seeds, interop.load, (FormatError,), [with_another_member]))


def onnx_files(tally: Tally) -> list[bytes]:
    """ONNX files; none where onnx is not installed."""
    try:
        import onnx  # noqa: F401
    except ImportError:
        return []
    path, contents = tally.folder / "whole.onnx", []
    for net, shape in ((small_network(), (1, 8, 8, 3)), (small_vgg(), (1, 32, 32, 3))):
        with contextlib.suppress(TypeError):
            interop.save_onnx(path, net.eval(), shape[1:])
        contents.append(path.read_bytes())
    return contents


def with_another_node(rng: random.Random, content: bytes) -> bytes:
    """Change nodes, attributes, shapes and tensors of an ONNX graph."""
    import onnx

    try:
        model = onnx.load_from_string(content)
    except Exception:
        return mutant(rng, content)
    graph = model.graph
    numbers = [-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 5, 10**5, 2**31, 2**62]
    for _ in range(rng.choice([1, 1, 2, 4])):
        node = rng.choice(graph.node) if graph.node else None
        tensor = rng.choice(graph.initializer) if graph.initializer else None
        match rng.randrange(9):
            case 0 if node and node.attribute:
                chosen = rng.choice(node.attribute)
                if chosen.ints:
                    chosen.ints[rng.randrange(len(chosen.ints))] = rng.choice(numbers)
                else:
                    chosen.i = rng.choice(numbers)
            case 1 if node:
                node.op_type = rng.choice(
                    ["Conv", "Gemm", "Relu", "MaxPool", "Flatten", "Reshape", "Add", "Identity"]
                )
            case 2 if node and node.input:
                node.input[rng.randrange(len(node.input))] = rng.choice(
                    ["", "x", *(t.name for t in graph.initializer)]
                )
            case 3 if node:
                graph.node.remove(node)
            case 4 if node:
                graph.node.insert(rng.randrange(len(graph.node)), node)
            case 5 if tensor and tensor.dims:
                tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(numbers)
            case 6 if tensor:
                tensor.data_type = rng.randrange(30)
            case 7 if tensor:
                tensor.raw_data = mutant(rng, tensor.raw_data)
            case _ if graph.input:
                dims = graph.input[0].type.tensor_type.shape.dim
                if dims:
                    rng.choice(dims).dim_value = rng.choice(numbers)
    return model.SerializeToString()


@attack("ONNX", BOUND, 5_000)
def onnx_graphs(tally: Tally) -> None:
    if not (seeds := onnx_files(tally)):
        raise NotHere("onnx is not installed")
    besiege(tally, Target("net.onnx", seeds, interop.load_onnx, (FormatError,), [with_another_node]))
