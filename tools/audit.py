"""What DP mechanisms really give away, beside what they claim: python tools/audit.py --help."""

import sys

from ppreid_plugin import cli
from ppreid_plugin.dp.audit_command import audit_command

if __name__ == "__main__":
    sys.exit(cli.run(audit_command))
