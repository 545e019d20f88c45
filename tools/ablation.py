"""Run the ablation: train, protect and judge rows side by side: python tools/ablation.py --help."""

import sys

from ppreid_plugin import cli
from ppreid_plugin.ablation.command import ablation_command

if __name__ == "__main__":
    sys.exit(cli.run(ablation_command))
