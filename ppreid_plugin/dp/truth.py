"""People of an anonymous release, by the maps that were written with it (``--truth-out``).

Rows of an anonymous release are numbered, so the map of another release names other people by the same numbers. A map
is taken only if it was written with one of the release's parts, and maps only if together they name every row: a row
that none names could be of anybody.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Parts = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class TruthMap:
    """Which person a released row shows: a file that ``--truth-out`` wrote, of one draw or append.

    Attributes:
        path: of the file, for messages.
        reservation: the ledger's entry that the rows were drawn under; empty where the file does not say.
        ledger_head: the chain value of that entry, which no other ledger has; empty in files of earlier versions.
        rows: pid and camid by the row's name in the release.
        sources: the row's name in the gallery that was released, by its name in the release; a row of which the file
            does not say it is left out.
    """

    path: str
    reservation: str
    ledger_head: str
    rows: dict[str, tuple[int, int]]
    sources: dict[str, str]


def load_truth_map(path: str | Path) -> TruthMap:
    """Return the map from released rows to labels in a file that ``--truth-out`` wrote.

    Raises:
        FileNotFoundError, ValueError: no such file, or another kind of file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' is not there. Name the file that --truth-out wrote.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = {row["row"]: (int(row["pid"]), int(row["camid"])) for row in content["rows"]}
        sources = {row["row"]: str(row["row_id"]) for row in content["rows"] if "row_id" in row}
        known = {key: str(content.get(key) or "") for key in ("reservation", "ledger_head")}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"'{path}' is no map from released rows to labels. Name the file of --truth-out.") from None
    return TruthMap(str(path), rows=rows, sources=sources, **known)


def load_maps_of(parts: Parts, paths: Sequence[str | Path], *, flag: str = "--truth") -> list[TruthMap]:
    """Return the maps in these files, each of which was written with one of these parts of a release.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_truth_map` and :func:`require_written_with`.
    """
    maps = [load_truth_map(path) for path in paths]
    require_written_with(maps, parts, flag=flag)
    return maps


def require_written_with(maps: Sequence[TruthMap], parts: Parts, *, flag: str = "--truth") -> None:
    """Raise ValueError unless each map was written with one of these parts of a release.

    Args:
        maps: as loaded.
        parts: what manifests say of draws and appends.
        flag: that named the maps, for messages.
    """
    for one in maps:
        if not any(_is_of(one, part) for part in parts):
            there = ", ".join(f"{part.get('reservation')} of {part.get('rows')} rows" for part in parts) or "none"
            raise ValueError(
                f"{flag} '{one.path}' is the map of {one.reservation or 'an unnamed draw'}, {len(one.rows)} rows, "
                f"which is no part of this release ({there}), or was drawn by another ledger. Give the maps that were "
                "written with this release."
            )


def labels_of_rows(
    maps: Sequence[TruthMap], parts: Parts, names: Collection[str], what: str, *, flag: str = "--truth"
) -> dict[str, tuple[int, int]]:
    """Return pid and camid by the row's name.

    Args:
        maps: those that were not written with one of ``parts`` are not looked at.
        parts: of the release.
        names: of all rows, each of which a map must name.
        what: holds the rows, for messages.
        flag: that named the maps, for messages.

    Raises:
        ValueError: rows that no map names, or two name differently.
    """
    named: dict[str, tuple[int, int]] = {}
    for one in maps:
        if any(_is_of(one, part) for part in parts):
            for row, label in one.rows.items():
                if named.setdefault(row, label) != label:
                    raise ValueError(
                        f"{flag} '{one.path}' and another map name row {row} of {what} differently: one was written "
                        "with another release. Give one map of each draw and append."
                    )
    if unnamed := [name for name in names if name not in named]:
        raise ValueError(
            f"{flag} names {len(names) - len(unnamed)} of the {len(names)} rows of {what}; {len(unnamed)}, such as "
            f"{unnamed[0]}, could be of anybody. Give the map of every append too."
        )
    return named


def rows_of_people(
    maps: Sequence[TruthMap], parts: Parts, names: Collection[str], pids: Collection[int], what: str
) -> dict[int, set[str]]:
    """Return the names of the rows of each of these people; one without a row gets an empty set.

    Arguments and errors are those of :func:`labels_of_rows`.
    """
    found: dict[int, set[str]] = {pid: set() for pid in pids}
    for row, (pid, _) in labels_of_rows(maps, parts, names, what).items():
        if pid in found:
            found[pid].add(row)
    return found


def _is_of(one: TruthMap, part: Mapping[str, Any]) -> bool:
    same_draw = not one.ledger_head or one.ledger_head == part.get("ledger_head")
    return same_draw and one.reservation == part.get("reservation") and len(one.rows) == part.get("rows")
