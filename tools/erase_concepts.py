"""Fit concept erasure (LEACE) on the training split: python tools/erase_concepts.py --help."""

import sys

from ppreid_plugin import cli
from ppreid_plugin.leakage.erasure_command import erase_command

if __name__ == "__main__":
    sys.exit(cli.run(erase_command))
