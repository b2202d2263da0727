"""The programs: options, messages and exit codes of ``scratchnet train``, ``evaluate`` and the others."""

from scratchnet.cli.datasets import load_data
from scratchnet.cli.options import parse_training
from scratchnet.cli.program import Parser, at_least_zero, positive, run

__all__ = ["Parser", "at_least_zero", "load_data", "parse_training", "positive", "run"]
