"""Release a gallery under a budget, from saved features or a model: python tools/release_gallery.py --help."""

import sys

from ppreid_plugin import cli, releasing

if __name__ == "__main__":
    sys.exit(cli.run(releasing.release))
