"""Write the parts of the documentation that are made from the code: python tools/write_docs.py [--pictures]."""

import argparse
from pathlib import Path

from ppreid_plugin.options import options_markdown
from ppreid_plugin.report.deid_pictures import write_deid_targets

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", action="store_true", help="the picture of the De-ID targets too")
    args = parser.parse_args()
    Path("docs/configuration.md").write_text(options_markdown(), encoding="utf-8")
    if args.pictures:
        write_deid_targets("docs/images/deid_targets.png")
