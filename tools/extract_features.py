"""Save the features of a data set's splits as .npz files: python tools/extract_features.py --help."""

import sys

from ppreid_plugin import cli

if __name__ == "__main__":
    sys.exit(cli.run(cli.extract_features))
