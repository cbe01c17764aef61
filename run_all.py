"""Runs the notebooks in batch and draws the paper's tables and figures: `python run_all.py --help`."""

import sys

from panderm_utils.cli import main

if __name__ == "__main__":
    sys.exit(main())
