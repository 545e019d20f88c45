"""How far a build has come: one JSON record a line, on the disk before the next batch begins.

The first line says what is built; a build that asks for the same goes on from it, any other starts anew. A last line
that was cut off was never acknowledged and is dropped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ppreid_plugin.dp.journal import canonical, fsync_folder, write_all, write_file
from ppreid_plugin.search.record_shape import Shape, misfit, text, whole

JOURNAL = "journal.jsonl"

_PLAN: Shape = {"plan": {"backend": text, "options": lambda value: isinstance(value, dict)}}
_ROWS: Shape = {"rows": whole(0)}


class BuildJournal:
    """The journal of one generation.

    Args:
        folder: the generation's.

    Attributes:
        plan: what is built, JSON-ready; None before :meth:`start`.
        rows: how many rows are safely written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL
        self.plan: dict[str, Any] | None = None
        self.rows = 0
        lines = self._path.read_bytes().split(b"\n")[:-1] if self._path.is_file() else []
        for number, line in enumerate(lines):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                break
            if misfit(record, _ROWS if number else _PLAN) is not None:
                break  # what stands from here on cannot be trusted: it is written again
            if number:
                self.rows = record["rows"]
            else:
                self.plan = record["plan"]

    def start(self, plan: dict[str, Any]) -> None:
        """Begin with a new plan and no rows."""
        write_file(self._path, canonical({"plan": plan}) + b"\n")
        fsync_folder(self._path.parent.parent)
        self.plan, self.rows = plan, 0

    def add(self, rows: int) -> None:
        """Record that the first ``rows`` rows are on the disk."""
        self._drop_torn_line()
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        try:
            write_all(descriptor, canonical({"rows": rows}) + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.rows = rows

    def _drop_torn_line(self) -> None:
        data = self._path.read_bytes()
        if not data.endswith(b"\n"):
            with self._path.open("r+b") as stream:
                stream.truncate(data.rfind(b"\n") + 1)
                os.fsync(stream.fileno())
