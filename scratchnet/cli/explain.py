"""``scratchnet explain conv --backward``: a walk through one operation, in the terminal."""

from __future__ import annotations

import os
import sys
from argparse import RawDescriptionHelpFormatter

from scratchnet.cli.program import Parser, at_least_zero, positive
from scratchnet.explain import LARGEST, OPERATIONS, write


def main() -> int:
    """Print a walk, or the list of walks; return 1 if a comparison in it fails."""
    listing = "\n".join(f"  {name.ljust(10)} {line}" for name, line in OPERATIONS.items())
    parser = Parser(
        prog="scratchnet.explain",
        usage="python -m scratchnet.explain OPERATION [options]",
        description=f"Walk through one operation with numbers, on a tiny input:\n\n{listing}",
        formatter_class=RawDescriptionHelpFormatter,
    )
    whole = positive(int)
    parser.add_argument("operation", nargs="?", metavar="OPERATION", help="one of the above")
    parser.add_argument("--size", type=whole, default=4, metavar="N", help=f"2 to {LARGEST} (default 4)")
    parser.add_argument("--backward", action="store_true", help="also the gradients, each with a check")
    parser.add_argument("--seed", type=at_least_zero(int), default=0, metavar="N", help="of the numbers")
    parser.add_argument("--channels", type=whole, metavar="C", help="of conv's input (default 1)")
    parser.add_argument("--stride", type=whole, metavar="S", help="of conv (default 1) and pool (default 2)")
    parser.add_argument("--padding", type=at_least_zero(int), metavar="P", help="of conv (default 0)")
    options = vars(parser.parse_args())
    if options["operation"] is None:
        print(f"{parser.description}\n\npython -m scratchnet.explain conv --backward shows the first.")
        return 0
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    try:
        page = write(**options, colour=colour)
    except ValueError as error:
        parser.error(str(error))
    print(page)
    return 0 if page.right else 1
