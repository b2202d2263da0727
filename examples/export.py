"""Write a network as an ONNX file, which other runtimes read.

python examples/export.py MODEL OUT.onnx; --with-normalisation takes pixels from 0 to 255.
"""

from scratchnet.cli import run
from scratchnet.cli.export import main

if __name__ == "__main__":
    run(main)
