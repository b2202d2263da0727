"""``scratchnet COMMAND``, which ``python -m scratchnet COMMAND`` runs, too."""

from __future__ import annotations

import sys
from importlib import import_module

from scratchnet.cli.program import run

COMMANDS = {
    "train": "train a VGG on CIFAR, on a folder of your images, or on built-in ones",
    "evaluate": "name what is in images, or measure a model",
    "report": "show how a run went, as one page",
    "export": "write a network as an ONNX file",
    "explain": "walk through one operation with numbers",
    "info": "show what a file of weights holds, or on what this machine computes",
}
USAGE = "\n".join(
    ["usage: scratchnet COMMAND [options]", ""]
    + [f"  {name.ljust(9)} {text}" for name, text in COMMANDS.items()]
    + ["", "scratchnet COMMAND --help says how it is used, --help-all lists its options."]
)


def main() -> None:
    """Run the command that is named first, as a program of its own."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(USAGE)
        return
    if name not in COMMANDS:
        sys.stderr.write(f"scratchnet: there is no command {name!r}: say {', '.join(COMMANDS)}\n")
        sys.exit(2)
    sys.argv = [f"scratchnet {name}", *arguments]
    program = import_module(f"scratchnet.cli.{name}")
    run(program.main, getattr(program, "MEMORY_ADVICE", ""))


if __name__ == "__main__":
    main()
