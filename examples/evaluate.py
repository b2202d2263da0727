"""Say what is in an image, or how good a model is.

python examples/evaluate.py MODEL IMAGE... names images; MODEL --data cifar10 measures accuracy.
"""

from scratchnet.cli import run
from scratchnet.cli.evaluate import main

if __name__ == "__main__":
    run(main)
