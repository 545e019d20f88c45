"""Train or test a Re-ID model with torchreid's flags and privacy options: python tools/train.py --help."""

import sys

from ppreid_plugin import cli

if __name__ == "__main__":
    sys.exit(cli.run(cli.train))
