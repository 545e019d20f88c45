"""What features give away, measured by attackers: python tools/measure_leakage.py --help."""

import sys

from ppreid_plugin import cli
from ppreid_plugin.leakage.command import leakage_command

if __name__ == "__main__":
    sys.exit(cli.run(leakage_command))
