"""Build, search, describe an index of a protected gallery, or delete people from it: python tools/serve_index.py."""

import sys

from ppreid_plugin import cli
from ppreid_plugin.search.command import serve_command

if __name__ == "__main__":
    sys.exit(cli.run(serve_command))
