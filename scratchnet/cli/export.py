"""``scratchnet export``: a network as an ONNX file, which other runtimes read."""

from __future__ import annotations

from os.path import expanduser
from typing import Any

from scratchnet import header, interop
from scratchnet.cli.program import Parser
from scratchnet.training.console import say
from scratchnet.untrusted import printable


def main() -> None:
    """Write the file, and say what it takes and gives."""
    parser = Parser(description="Write a network as an ONNX file, for any number of images.")
    add, model = parser.add_argument, "a .safetensors file, or any that scratchnet reads"
    add("model", metavar="MODEL", type=expanduser, help=model)
    add("out", metavar="OUT.onnx", type=expanduser, help="the file to write")
    inside = "take pixels from 0 to 255: mean and deviation become part of the network"
    add("--with-normalisation", action="store_true", help=inside)
    add("--softmax", action="store_true", help="put out probabilities in place of logits")
    options = parser.parse_args()
    if not options.out.endswith(".onnx"):
        parser.error(f"the file to write must be called *.onnx, not {options.out}")
    net = interop.load(options.model)
    shape = header.input_shape(net)
    if shape is None:
        raise ValueError(f"{options.model} does not say which images its network takes")
    mean, std = (net.info.get(key) for key in ("mean", "std"))
    how: dict[str, Any] = {"class_names": net.info.get("class_names"), "softmax": options.softmax}
    facts: dict[str, Any] = {
        key: net.info[key] for key in ("data", "image_size", "mean", "std") if key in net.info
    }
    images = "images, normalised as their mean and std in the file's metadata say"
    if options.with_normalisation:
        if mean is None or std is None:
            raise ValueError(f"{options.model} does not say how images are normalised")
        # So that (pixel / 255 - mean) / std, for who reads the metadata, is the pixel.
        facts |= {"mean": [0.0] * len(mean), "std": [1 / 255] * len(std)}
        how |= {"mean": mean, "std": std}
        images = "pixels from 0 to 255"
    elif mean is None:
        images = "images, normalised as in training"
    interop.save_onnx(options.out, net, shape, **how, metadata=facts)
    H, W, C = shape
    given = "probabilities" if options.softmax else "logits"
    say(f"{printable(options.out)}: takes (N, {C}, {H}, {W}), {images}; gives {given}")
