"""Write De-ID images as features, for attackers: python tools/deid_features.py --help."""

import sys

from ppreid_plugin import cli
from ppreid_plugin.leakage.deid_features_command import deid_features_command

if __name__ == "__main__":
    sys.exit(cli.run(deid_features_command))
