"""People of an anonymous release, by the maps that were written with it (``--truth-out``).

Rows of an anonymous release are numbered, so the map of another release names other people by the same numbers. A map
is taken only if it was written with one of the release's parts, and maps only if together they name every row: a row
that none names could be of anybody.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ppreid_plugin.dp.feature_files import TruthMap, load_truth_map
from ppreid_plugin.dp.stored import Release

Parts = Sequence[Mapping[str, Any]]


def require_written_with(maps: Sequence[TruthMap], parts: Parts) -> None:
    """Raise ValueError unless each map was written with one of these parts of a release.

    Args:
        maps: as loaded.
        parts: what manifests say of draws and appends.
    """
    for one in maps:
        if not any(_is_of(one, part) for part in parts):
            there = ", ".join(f"{part.get('reservation')} of {part.get('rows')} rows" for part in parts) or "none"
            raise ValueError(
                f"--truth '{one.path}' is the map of {one.reservation or 'an unnamed draw'}, {len(one.rows)} rows, "
                f"which is no part of this release ({there}), or was drawn by another ledger. Give the maps that were "
                "written with this release."
            )


def rows_of_people(
    maps: Sequence[TruthMap], parts: Parts, names: Collection[str], pids: Collection[int], what: str
) -> dict[int, set[str]]:
    """Return the names of the rows of each of these people.

    Args:
        maps: those that were not written with one of ``parts`` are not looked at.
        parts: of the release.
        names: of all rows, each of which a map must name.
        pids: people who are looked for; one without a row gets an empty set.
        what: holds the rows, for messages.

    Raises:
        ValueError: rows that no map names, or two name differently.
    """
    named: dict[str, int] = {}
    for one in maps:
        if any(_is_of(one, part) for part in parts):
            for row, (pid, _) in one.rows.items():
                if named.setdefault(row, pid) != pid:
                    raise ValueError(
                        f"--truth '{one.path}' and another map name row {row} of {what} differently: one was written "
                        "with another release. Give one map of each draw and append."
                    )
    if unnamed := [name for name in names if name not in named]:
        raise ValueError(
            f"--truth names {len(names) - len(unnamed)} of the {len(names)} rows of {what}; {len(unnamed)}, such as "
            f"{unnamed[0]}, could be of anybody. Give the map of every append too."
        )
    found: dict[int, set[str]] = {pid: set() for pid in pids}
    for row, pid in named.items():
        if pid in found:
            found[pid].add(row)
    return found


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
    maps = [load_truth_map(path) for path in truth]
    require_written_with(maps, parts)
    if release.pids is not None or not pids:
        return set()
    if not maps:
        raise ValueError(
            f"{len(pids)} people were deleted from this index by pid, and release {name!r} carries no pids: they would "
            "come back. Give the maps that were written with it (--truth FILE), or let them come back (--readmit PID)."
        )
    found = rows_of_people(maps, parts, release.row_ids, pids, f"release {name!r}")
    return {row for rows in found.values() for row in rows}


def _is_of(one: TruthMap, part: Mapping[str, Any]) -> bool:
    same_draw = not one.ledger_head or one.ledger_head == part.get("ledger_head")
    return same_draw and one.reservation == part.get("reservation") and len(one.rows) == part.get("rows")
