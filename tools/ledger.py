"""Show, verify, finish, void or purge releases in the ledger: python tools/ledger.py --help."""

import sys

from ppreid_plugin import cli
from ppreid_plugin.dp import commands

if __name__ == "__main__":
    sys.exit(cli.run(commands.ledger_command))
