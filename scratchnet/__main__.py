"""``python -m scratchnet``: the programs, see ``cli/``."""

from scratchnet.cli.__main__ import main

if __name__ == "__main__":
    main()
