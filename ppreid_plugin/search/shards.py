"""Several indexes as shards of one gallery: which of them may be merged by score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppreid_plugin.search.deleting import require_different
from ppreid_plugin.search.opt_outs import parts_of
from ppreid_plugin.search.record import IndexRecord, read_record

ALIKE = ("model", "transform", "mechanism", "epsilon", "delta", "unit")


def require_shards(folders: Sequence[str]) -> None:
    """Raise ValueError unless scores of these indexes mean the same, and no row is in two of them.

    Scores mean the same if they are cosines by one model and transform of rows that are noisy alike.
    """
    places = [Path(folder) for folder in folders]
    require_different(places)
    there = [(place, record) for place in places if (record := read_record(place)) is not None]
    seen: dict[str, Path] = {}
    for place, record in there:
        _require_alike(*there[0], place, record)
        for head in [str(part.get("ledger_head")) for part in parts_of(place, record)] if len(there) > 1 else []:
            if (other := seen.setdefault(head, place)) != place:
                raise ValueError(
                    f"'{other}' and '{place}' are indexes of one release, {record.release['release']!r}: each row "
                    "would be found twice. Name one of them."
                )


def _require_alike(first: Path, of_first: IndexRecord, place: Path, record: IndexRecord) -> None:
    kinds: dict[str, tuple[Any, Any]] = {"metric": (of_first.metric, record.metric)}
    kinds |= {name: (of_first.release.get(name), record.release.get(name)) for name in ALIKE}
    for name, (one, other) in kinds.items():
        if one != other:
            raise ValueError(
                f"'{first}' has {name} {one}, '{place}' has {other}: their scores mean different things. Shards of one "
                "gallery are releases of one model, mechanism and budget; search others one by one."
            )
