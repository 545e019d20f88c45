"""What a report is made of: plain data that the HTML and the Markdown template both draw, so they cannot differ."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Provenance:
    """Where figures come from, as the file itself says.

    Attributes:
        file: name of the file, as it is shown.
        kind: what wrote it, in words.
        command: command line; empty: not recorded.
        commit, seed, machine, versions: likewise.
    """

    file: str
    kind: str
    command: str = ""
    commit: str = UNKNOWN
    seed: str = UNKNOWN
    machine: str = UNKNOWN
    versions: str = UNKNOWN

    @property
    def line(self) -> str:
        """All but the command in one line."""
        return f"{self.file}; commit {self.commit}; seed {self.seed}; {self.machine}"


def provenance(file: str, kind: str, record: Mapping[str, Any], seed: str) -> Provenance:
    """Return the provenance that a record's ``command`` and ``environment`` tell."""
    found = record.get("environment")
    environment: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    command = record.get("command")
    names = ("ppreid_plugin", "torch", "torchreid", "numpy", "python")
    versions = ", ".join(f"{name} {environment[name]}" for name in names if name in environment)
    return Provenance(
        file,
        kind,
        shlex.join(["python", *map(str, command)]) if isinstance(command, (list, tuple)) and command else "",
        str(environment.get("commit", UNKNOWN)),
        seed,
        str(environment.get("device", UNKNOWN)),
        versions or UNKNOWN,
    )


@dataclass(frozen=True)
class Text:
    """A paragraph; ``strong`` marks what must not be overlooked."""

    text: str
    strong: bool = False
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[str]
    kind: str = field(default="bullets", init=False)


@dataclass(frozen=True)
class Table:
    """A table of text; numbers are formatted already.

    Raises:
        ValueError: a row that is shorter or longer than the header.
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    sources: Sequence[Provenance] = ()
    kind: str = field(default="table", init=False)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.headers):
                raise ValueError(f"table {self.title!r}: a row has {len(row)} cells, the header {len(self.headers)}.")


@dataclass(frozen=True)
class Picture:
    """A figure; ``data`` is a whole SVG or PNG file, ``name`` its file name without folder in the Markdown report."""

    title: str
    name: str
    data: bytes
    text: str
    sources: Sequence[Provenance] = ()
    kind: str = field(default="picture", init=False)

    @property
    def mime(self) -> str:
        """Media type, by the name."""
        return "image/png" if self.name.endswith(".png") else "image/svg+xml"


@dataclass(frozen=True)
class Missing:
    """Something that is not there: what, and the command or flag that gives it."""

    text: str
    command: str = ""
    kind: str = field(default="missing", init=False)


Block: TypeAlias = Text | Bullets | Table | Picture | Missing


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it; ``anchor`` is its address in the page."""

    title: str
    anchor: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole report."""

    title: str
    subtitle: str
    sections: Sequence[Section]

    @property
    def pictures(self) -> list[Picture]:
        """All figures, in order."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Picture)]
