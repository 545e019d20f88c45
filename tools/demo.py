"""The demonstration on generated pedestrians: python tools/demo.py --help."""

import sys

from ppreid_plugin import cli, demo

if __name__ == "__main__":
    sys.exit(cli.run(demo.demo))
