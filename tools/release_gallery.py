"""Release a gallery of saved features under a budget: python tools/release_gallery.py --help."""

import sys

from ppreid_plugin import cli
from ppreid_plugin.dp import commands

if __name__ == "__main__":
    sys.exit(cli.run(commands.release_command))
