"""A report of what runs have written, as HTML and Markdown: python tools/report.py --help."""

import sys

from ppreid_plugin import cli
from ppreid_plugin.report.report_command import report_command

if __name__ == "__main__":
    sys.exit(cli.run(report_command))
