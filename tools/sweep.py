"""Utility of DP mechanisms over budgets, from saved features: python tools/sweep.py --help."""

import sys

from ppreid_plugin import cli
from ppreid_plugin.report.sweep_command import sweep_command

if __name__ == "__main__":
    sys.exit(cli.run(sweep_command))
