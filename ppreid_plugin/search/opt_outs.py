"""Who was deleted from an index and stays out of later builds: ``opted_out.json``, beside ``index.json``.

The list has a file of its own, so that it outlives a damaged ``index.json``. A deletion writes it before anything else,
a build after everything else: a process that is killed in between keeps people out who should stay out. ``index.json``
repeats it, which is all that indexes of earlier versions have.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ppreid_plugin.dp.journal import write_file
from ppreid_plugin.dp.stored import MANIFEST, Release
from ppreid_plugin.dp.truth import load_maps_of, rows_of_people
from ppreid_plugin.search.record import RECORD, IndexRecord
from ppreid_plugin.search.record_shape import PID, Shape, every, maybe, misfit, text, whole

OPTED_OUT = "opted_out.json"

_FORMAT, _VERSION = "ppreid_plugin search opt-outs", 1
_NAMING: Shape = {"release": text, "protocol": text, "heads": every(text)}
_SHAPE: Shape = {
    "pids": every(PID),
    "rows": every(text),
    "named_by": lambda value: value == {} or misfit(value, _NAMING) is None,
    "format": text,
    "version": whole(1),
}


@dataclass(frozen=True)
class OptOuts:
    """People and rows that stay out.

    Attributes:
        pids: people, rising.
        rows: names of rows, sorted.
        named_by: the release whose names ``rows`` are: ``release``, ``protocol``, and ``heads``, the ledger's chain
            values of its parts, which no other ledger has.
    """

    pids: tuple[int, ...] = ()
    rows: tuple[str, ...] = ()
    named_by: dict[str, Any] = field(default_factory=dict)

    def with_more(self, pids: Collection[int], rows: Collection[str]) -> OptOuts:
        """Return this list and others together, in order and without doubles."""
        more = {int(pid) for pid in pids}, set(rows)
        return replace(self, pids=tuple(sorted({*self.pids, *more[0]})), rows=tuple(sorted({*self.rows, *more[1]})))

    def as_json(self) -> dict[str, list[Any]]:
        """Return ``pids`` and ``rows`` as ``index.json`` has them."""
        return {"pids": list(self.pids), "rows": list(self.rows)}

    def write(self, folder: Path) -> None:
        """Replace the file in one step, unless it says the same already."""
        content = {"format": _FORMAT, "version": _VERSION, **self.as_json(), "named_by": self.named_by}
        data = (json.dumps(content, indent=1, allow_nan=False) + "\n").encode("utf-8")
        path = folder / OPTED_OUT
        if not path.is_file() or path.read_bytes() != data:
            write_file(path, data)


def known_opt_outs(folder: Path, record: IndexRecord | None, *, damaged: bool = False) -> OptOuts:
    """Return who stays out of an index: by its file, and by ``index.json``.

    Args:
        folder: of the index.
        record: its ``index.json``; None if that cannot be read, or was never written.
        damaged: whether ``index.json`` is there and cannot be read.

    Raises:
        ValueError: neither file can be read.
    """
    filed = _read(folder)
    if record is None:
        if filed is None and (damaged or (folder / OPTED_OUT).exists()):
            raise ValueError(
                f"neither '{folder / OPTED_OUT}' nor '{folder / RECORD}' can be read: who was deleted from this index "
                f"is not known any more. Delete the folder (rm -r '{folder}'), build again, and give every opt-out "
                "again: tools/serve_index.py delete"
            )
        return filed or OptOuts()
    told = OptOuts(
        tuple(record.opted_out["pids"]),
        tuple(record.opted_out["rows"]),
        naming(record.release, parts_of(folder, record)),
    )
    if filed is None:
        return told
    # names of another release were given up by the build that wrote index.json
    rows = filed.rows if names_hold(filed.named_by, told.named_by) else ()
    return told.with_more(filed.pids, rows)


def still_out(known: OptOuts, release: Release, *, readmit: Collection[int], readmit_rows: bool) -> OptOuts:
    """Return who stays out of a release, after those who may come back.

    Raises:
        ValueError: rows that stay out by names that mean other rows in this release.
    """
    named_by = naming(release.manifest, release.manifest["parts"])
    pids = tuple(pid for pid in known.pids if pid not in set(readmit))
    rows = () if readmit_rows else known.rows
    if rows and not names_hold(known.named_by, named_by):
        raise ValueError(
            f"{len(rows)} rows were deleted by name from the index of release {known.named_by.get('release')!r}, and "
            f"release {named_by['release']!r} ({named_by['protocol']}), drawn apart from it, calls its rows otherwise: "
            "they would come back, and others stay out. Draw it without these people (tools/release_gallery.py "
            "--opt-out PID), then say --readmit-rows."
        )
    return OptOuts(pids, rows, named_by)


def naming(release: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what decides whether names of rows mean the same rows: see :attr:`OptOuts.named_by`."""
    return {
        "release": release["release"],
        "protocol": release["protocol"],
        "heads": [part["ledger_head"] for part in parts if part.get("ledger_head")],
    }


def names_hold(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> bool:
    """Return whether names of rows of one release mean the same rows in another.

    Enrolled releases name rows as the gallery does. An anonymous one numbers them, so only what was appended to it
    goes on with its numbers: the last part known then is a part of it now.
    """
    if earlier.get("protocol") == later.get("protocol") == "enrolled":
        return True
    heads = earlier.get("heads") or [None]
    return bool(earlier.get("release") == later.get("release") and heads[-1] in later["heads"])


def parts_of(folder: Path, record: IndexRecord) -> list[dict[str, Any]]:
    """Return what the indexed release's manifest says of its draws; its last one alone where that cannot be read."""
    try:
        manifest = json.loads((folder / record.generation / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        manifest = None
    if (
        misfit(manifest, {"parts": every(lambda part: isinstance(part, dict) and maybe(text)(part.get("ledger_head")))})
        is None
    ):
        return list(manifest["parts"])
    return [dict(record.release["ledger"])]


def rows_without_pids(release: Release, pids: Collection[int], truth: Sequence[str | Path]) -> set[str]:
    """Return the names of these people's rows in a release that carries no pids; none if it carries them.

    Args:
        release: as it was loaded.
        pids: people who were deleted from the index.
        truth: the maps that were written with the release.

    Raises:
        FileNotFoundError: no such map.
        ValueError: no maps, maps of another release, or not all of them.
    """
    name, parts = release.manifest["release"], release.manifest["parts"]
    maps = load_maps_of(parts, truth)
    if release.pids is not None or not pids:
        return set()
    if not maps:
        raise ValueError(
            f"{len(pids)} people were deleted from this index by pid, and release {name!r} carries no pids: they would "
            "come back. Give the maps that were written with it (--truth FILE), or let them come back (--readmit PID)."
        )
    found = rows_of_people(maps, parts, release.row_ids, pids, f"release {name!r}")
    return {row for rows in found.values() for row in rows}


def _read(folder: Path) -> OptOuts | None:
    try:
        content = json.loads((folder / OPTED_OUT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if misfit(content, _SHAPE) is not None or (content["format"], content["version"]) != (_FORMAT, _VERSION):
        return None
    return OptOuts(tuple(content["pids"]), tuple(content["rows"]), content["named_by"])
