"""Write the parts of the documentation that are made from the code: python tools/write_docs.py."""

from pathlib import Path

from ppreid_plugin.options import options_markdown

if __name__ == "__main__":
    Path("docs/configuration.md").write_text(options_markdown(), encoding="utf-8")
