"""Fit a suppressor on the training split, or judge weights: python tools/fit_suppressor.py --help."""

import sys

from ppreid_plugin import cli
from ppreid_plugin.suppressor.command import suppressor_command

if __name__ == "__main__":
    sys.exit(cli.run(suppressor_command))
