"""Ranking figures of saved features, from any extractor: python tools/evaluate_features.py --help."""

import sys

from ppreid_plugin import cli
from ppreid_plugin.report.evaluate_command import evaluate_command

if __name__ == "__main__":
    sys.exit(cli.run(evaluate_command))
