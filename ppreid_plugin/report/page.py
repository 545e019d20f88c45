"""From blocks to files: one self-contained HTML page, and the same as Markdown with its figures in a folder beside it.

The HTML page needs no network and runs no script: its content security policy forbids both. Both templates draw the
same blocks.
"""

from __future__ import annotations

import base64
import dataclasses
import re
from collections import Counter
from pathlib import Path
from typing import Any

from ..dp.journal import write_file
from .blocks import Page, Picture

_TEMPLATES = Path(__file__).parent / "templates"
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~$!])")
_STARTS = re.compile(r"^(\d+)([.)])(?=\s|$)|^([-+])(?=\s|$)")
_SHORT = 22  # characters of a cell that is not broken into lines
_NUMBER = re.compile(r"^(-|n/a|[-+]?[\d.,]+( \([^)]*\))?)$")


def html(page: Page) -> str:
    """Return the page as HTML."""
    return str(_environment(autoescape=True).get_template("report.html.j2").render(page=page))


def markdown(page: Page, folder: str) -> str:
    """Return the page as Markdown; its figures are files in ``folder``."""
    text = _environment(autoescape=False).get_template("report.md.j2").render(page=page, folder=folder)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def write_page(page: Page, out: Path, name: str) -> list[Path]:
    """Write ``name.html``, ``name.md`` and ``name_files/`` into ``out``; return the two pages.

    Figures that an earlier report left in ``name_files/`` are removed.
    """
    page = _with_names_apart(page)
    files = out / f"{name}_files"
    kept = {picture.name for picture in page.pictures}
    if kept:
        files.mkdir(parents=True, exist_ok=True)
    for old in files.glob("*"):
        if old.suffix in (".svg", ".png") and old.name not in kept:
            old.unlink()
    for picture in page.pictures:
        write_file(files / picture.name, picture.data)
    written = [out / f"{name}.html", out / f"{name}.md"]
    write_file(written[0], html(page).encode("utf-8"))
    write_file(written[1], markdown(page, files.name).encode("utf-8"))
    return written


def escape_markdown(text: Any) -> str:
    r"""Return text that Markdown shows as it is, on one line.

    Example:
        >>> print(escape_markdown("a|b <i> 1_2"))
        a\|b \<i\> 1\_2
    """
    line = _MARKS.sub(r"\\\1", " ".join(str(text).split())).replace("&", "&amp;")
    return _STARTS.sub(lambda found: f"{found[1] or ''}\\{found[2] or found[3]}", line)


def code_markdown(text: str) -> str:
    """Return text as a code span, fenced by more backticks than it holds."""
    line = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"


def _environment(*, autoescape: bool) -> Any:
    try:
        import jinja2
    except ImportError:
        raise ImportError("the report needs jinja2. Install it with: pip install 'jinja2>=3.1'") from None
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=autoescape,  # noqa: S701  (the Markdown template escapes by its own filter)
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {"md": escape_markdown, "code": code_markdown, "data_uri": _data_uri}
    made.filters.update(filters)
    made.tests["short"] = lambda text: len(text) <= _SHORT or bool(_NUMBER.match(text))
    return made


def _data_uri(picture: Picture) -> str:
    return f"data:{picture.mime};base64,{base64.b64encode(picture.data).decode('ascii')}"


def _with_names_apart(page: Page) -> Page:
    """Return the page with a file name of its own for each picture."""
    seen: Counter[str] = Counter()
    sections = []
    for section in page.sections:
        blocks = []
        for block in section.blocks:
            if isinstance(block, Picture):
                seen[block.name] += 1
                if seen[block.name] > 1:
                    stem, dot, suffix = block.name.rpartition(".")
                    block = dataclasses.replace(block, name=f"{stem}-{seen[block.name]}{dot}{suffix}")
            blocks.append(block)
        sections.append(dataclasses.replace(section, blocks=blocks))
    return dataclasses.replace(page, sections=sections)
