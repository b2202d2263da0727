"""The file that a program is given as MODEL, of any kind or an address, and what options say about it."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Any

from scratchnet import interop, plans
from scratchnet.backend import Backend
from scratchnet.cli.program import Parser, complain, positive
from scratchnet.data import Normalisation, local_file
from scratchnet.header import check_that_it_fits, checked, input_shape
from scratchnet.interop import imagenet
from scratchnet.layers import Chain
from scratchnet.system import available_bytes

MODEL = "a file of weights (safetensors, PyTorch's, ONNX), or its address with #sha256=..."


def load_model(name: str, device: Backend) -> Chain:
    """Return the network of a file or address, and print what of it was left out."""
    try:
        net = interop.load(local_file(name), device)
    except ImportError as error:
        command = "python -m pip install onnx"
        raise ValueError(
            f"reading {name} needs the package onnx, which is not installed: {command}"
        ) from error
    if left_out := net.info.get("left_out"):
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        complain(f"note: not loaded from {name}: {', '.join(left_out[:5])}{more}")
    return net


def add_corrections(parser: Parser) -> None:
    """Add the options that say what a file does not."""
    add = parser.add_argument
    add("--classes", metavar="NAMES", help="the classes, joined by commas, or a file with one per line")
    colours: dict[str, Any] = {"nargs": 3, "type": float, "metavar": ("R", "G", "B")}
    add("--mean", help="subtract this from pixels of 0 to 1 (default the file's)", **colours)
    add("--std", help="and divide by this", **colours)
    add("--image-size", type=positive(int), metavar="S", help="of a network that takes any size")


def correct(net: Chain, options: Namespace) -> None:
    """Put into the network's header what options say."""
    given = {name: getattr(options, name) for name in ("mean", "std", "image_size")}
    if options.classes is not None:
        given["class_names"] = _names(options.classes)
    if (given["mean"] is None) != (given["std"] is None):
        raise ValueError("--mean and --std go together: give both")
    only = net.settings().get("image_size") if net.settings().get("head") == "flatten" else None
    if given["image_size"] not in (None, only) and only is not None:
        raise ValueError(f"{options.model} takes images of {only} pixels only")
    known = checked(given)
    check_that_it_fits(known, net)
    net.info |= known


def _names(text: str) -> list[str]:
    path = os.path.expanduser(text)
    if not os.path.isfile(path):
        return [name.strip() for name in text.split(",")]
    with open(path, encoding="utf-8", errors="replace") as file:
        return [line.strip() for line in file.read(1 << 24).splitlines() if line.strip()]


def normalisation_of(net: Chain, model: str) -> Normalisation:
    """Return how a network's images are normalised; what its file does not say is taken to be ImageNet's."""
    known = {"mean": imagenet.MEAN, "std": imagenet.STD}
    if not known.keys() <= net.info.keys():
        complain(
            f"note: {model} does not say how images are normalised, so they are as for ImageNet: --mean and "
            "--std correct that"
        )
    return Normalisation(**{name: net.info.get(name, default) for name, default in known.items()})


def sizes_of(net: Chain, model: str) -> tuple[int, int]:
    """Return the side of the images that a network takes, and how many classes it has."""
    shape = input_shape(net)
    if shape is None:
        raise ValueError(f"{model} does not say which images its network takes: give --image-size")
    H, W, C = shape
    if H != W or C != 3:
        raise ValueError(f"{model} takes images of {H} x {W} x {C}: here they are square, of three colours")
    classes = net.output_shape((1, *shape))
    if len(classes) != 2:
        raise ValueError(f"{model} has no classes, only maps of features: train --init-from adds them")
    return H, classes[1]


def check_memory(net: Chain, model: str, size: int, number: int) -> None:
    """Refuse what would not fit into memory, before it is taken: a file may say anything."""
    available = available_bytes(net.backend)
    needed = sum(plans.memory(net, (number, size, size, 3)))
    if available is not None and needed > available:
        raise ValueError(
            f"{model} takes images of {size} x {size} pixels: {number} of them need {needed / 1e6:,.0f} MB "
            f"of memory, and {available / 1e6:,.0f} MB are available"
        )
