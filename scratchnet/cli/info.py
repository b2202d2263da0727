"""``scratchnet info``: what a file of weights holds, layer by layer, and on what this machine computes."""

from __future__ import annotations

from os.path import expanduser

from scratchnet import backend
from scratchnet.cli.model import MODEL, load_model
from scratchnet.cli.program import Parser
from scratchnet.header import input_shape
from scratchnet.training.console import say
from scratchnet.untrusted import printable


def main() -> None:
    """Print the devices, or the network and the header of a file."""
    parser = Parser(description="Show what a file of weights holds, or on what this machine computes.")
    parser.add_argument("model", metavar="MODEL", nargs="?", type=expanduser, help=MODEL)
    options = parser.parse_args()
    if options.model is None:
        for name in ("numpy", "cupy"):
            try:
                say(f"{name}: {backend.get(name).device}")
            except backend.BackendError as error:
                say(f"{name}: {error}")
        return
    net = load_model(options.model, backend.get("numpy"))
    net.summary(input_shape(net))
    for key, value in net.info.items():
        say(printable(f"{key}: {', '.join(value) if key == 'class_names' else value}"))
