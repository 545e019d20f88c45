"""Deleting people for good: from one index, or from all of several at once.

Everything is checked, in every index, before the first one is changed. Rows leave the disk by a new generation without
them (:mod:`.building`), or on a Milvus server in place.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ppreid_plugin.dp.stored import MANIFEST
from ppreid_plugin.dp.truth import TruthMap, load_truth_map, require_written_with, rows_of_people
from ppreid_plugin.search.building import BATCH_ROWS, write_generation
from ppreid_plugin.search.generations import clean, next_generation, writing
from ppreid_plugin.search.index import GalleryIndex, open_index
from ppreid_plugin.search.opt_outs import OptOuts, known_opt_outs, parts_of
from ppreid_plugin.search.record import ERASING, asked_options, read_record
from ppreid_plugin.search.thinning import Doomed, IndexSource, doomed_rows


def delete_rows(
    folder: str | Path,
    *,
    pids: Collection[int] = (),
    row_ids: Collection[str] = (),
    truth: Sequence[str | Path] = (),
    batch_rows: int = BATCH_ROWS,
) -> int:
    """Delete people or single rows from an index for good; return how many rows that were.

    Their rows, labels and what was derived from them leave the disk, and a later build from any release leaves them
    out. The release folder still holds them: see docs/search.md.

    Args:
        folder: of the index.
        pids: people; those of an anonymous release, which carries no pids, need ``truth``.
        row_ids: names of rows.
        truth: the maps that were written with an anonymous release, one a part of it.
        batch_rows: as in :func:`.build_index`.

    Raises:
        FileNotFoundError: no index there.
        ValueError: a person or row that the index does not hold, background, or nothing would be left; maps of
            another release, or not all of them.
        BlockingIOError: another process is writing to this index.
        NoRoomError: the disk is full; the rows are still there, and the same deletion can be asked for again.
    """
    return delete_everywhere([folder], pids=pids, row_ids=row_ids, truth=truth, batch_rows=batch_rows)[str(folder)]


def delete_everywhere(
    folders: Sequence[str | Path],
    *,
    pids: Collection[int] = (),
    row_ids: Collection[str] = (),
    truth: Sequence[str | Path] = (),
    batch_rows: int = BATCH_ROWS,
) -> dict[str, int]:
    """Delete people or single rows from every one of several indexes; return how many rows that were, by folder.

    Args:
        folders: of the indexes, each once; of an enrolled release each notes all that is named, whether it holds
            it or not, so that a later build leaves it out, too.
        pids: as in :func:`delete_rows`.
        row_ids: as there.
        truth: as there; each map of one of the indexes' releases.
        batch_rows: as there.

    Raises:
        FileNotFoundError, BlockingIOError: as :func:`delete_rows`, for any of the indexes.
        ValueError: as :func:`delete_rows`; a person or row that none of the indexes holds; a folder twice.
    """
    if not pids and not row_ids:
        raise ValueError("nothing is named to delete. Give --pid or --row.")
    places = [Path(folder) for folder in folders]
    require_different(places)
    maps = [load_truth_map(path) for path in truth]
    for place in places:
        if read_record(place) is None:
            open_index(place)  # says what is missing
    with ExitStack() as opened:
        indexes = []
        for place in places:
            opened.enter_context(writing(place))
            indexes.append(opened.enter_context(open_index(place)))
        doomed = _doomed(indexes, pids, row_ids, maps)
        return {
            str(folder): _delete(index, chosen, pids, row_ids, batch_rows)
            for folder, index, chosen in zip(folders, indexes, doomed, strict=True)
        }


def require_different(folders: Sequence[Path]) -> None:
    """Raise ValueError if a folder is named twice."""
    seen: set[Path] = set()
    for folder in folders:
        if (place := folder.resolve()) in seen:
            raise ValueError(f"--index names '{folder}' twice. Name each index once.")
        seen.add(place)


def _doomed(
    indexes: Sequence[GalleryIndex], pids: Collection[int], row_ids: Collection[str], maps: Sequence[TruthMap]
) -> list[Doomed]:
    """Return what is to be deleted from each index, after all checks."""
    parts = [parts_of(index.folder, index.record) for index in indexes]
    require_written_with(maps, [part for some in parts for part in some])
    found = [_doomed_in(index, some, pids, row_ids, maps) for index, some in zip(indexes, parts, strict=True)]
    where = "this index" if len(indexes) == 1 else f"any of these {len(indexes)} indexes"
    if missing := sorted(set(pids).difference(*(one.pids for one in found))):
        look = "the map names" if maps else "a search prints"
        raise ValueError(f"pid {missing[0]} has no row in {where}. Look at the pids that {look}.")
    if strange := sorted(set(row_ids).difference(*(one.row_ids for one in found))):
        raise ValueError(f"row '{strange[0]}' is not in {where}. Row ids are those that a search prints.")
    for index, one in zip(indexes, found, strict=True):
        if one.rows and len(one.rows) == index.count():
            raise ValueError(
                f"these are all {len(one.rows)} rows of the index '{index.folder}'. Delete its folder instead, and the "
                "release's (tools/ledger.py purge)."
            )
    return found


def _doomed_in(
    index: GalleryIndex,
    parts: Sequence[dict[str, object]],
    pids: Collection[int],
    row_ids: Collection[str],
    maps: Sequence[TruthMap],
) -> Doomed:
    """Return what is to be deleted from one index; people of an anonymous release by the names of their rows."""
    name, known = index.record.release["release"], known_opt_outs(index.folder, index.record)
    if background := sorted(set(pids) & set(index.record.background_pids)):
        raise ValueError(f"pid {background[0]} is background, which is no person. Name its rows: --row ROW_ID.")
    if not pids or "pids" in index.record.labels:
        return _with_unfinished(index, known, pids, row_ids)
    if not maps:
        raise ValueError(
            f"release {name!r} is anonymous: its rows carry no pid. Give --row, or with --pid the map that was written "
            "with the release: --truth FILE."
        )
    names = [row.decode("utf-8") for batch in index.batches(0, BATCH_ROWS) for row in batch.row_ids.tolist()]
    theirs = rows_of_people(maps, parts, names, pids, f"the index '{index.folder}' of release {name!r}")
    by_name = _with_unfinished(index, known, (), {*row_ids, *(row for rows in theirs.values() for row in rows)})
    return replace(by_name, pids=frozenset(pid for pid, rows in theirs.items() if rows))


def _with_unfinished(index: GalleryIndex, known: OptOuts, pids: Collection[int], row_ids: Collection[str]) -> Doomed:
    """Return what is named, and rows that a deletion which was cut off left in the index."""
    return doomed_rows(index, {*pids, *known.pids}, {*row_ids, *known.rows})


def _delete(
    index: GalleryIndex, doomed: Doomed, pids: Collection[int], row_ids: Collection[str], batch_rows: int
) -> int:
    folder, current = index.folder, index.record
    known = known_opt_outs(folder, current)
    out = _with_doomed(known, doomed, pids, row_ids, enrolled="pids" in current.labels)
    if not doomed.rows:
        clean(folder)
        if out != known:
            out.write(folder)
        settled = replace(current, options=_settled(current.options), rows=index.count(), opted_out=out.as_json())
        if settled != current:
            settled.write(folder)
        return 0
    out.write(folder)  # first: a deletion that is cut off can be asked for again, and a build heeds it
    if index.erases_in_place:
        clean(folder)  # what a build that was stopped has of them
        return _erase(index, doomed, out)
    source = IndexSource(index, doomed.rows)
    record = replace(
        current,
        generation=next_generation(current),
        options=type(index).thinned_options(asked_options(current.options), source),
        rows=source.rows,
        opted_out=out.as_json(),
        files={},
    )
    manifest = (index.generation / MANIFEST).read_bytes()
    write_generation(folder, current, record, source, index.public, manifest, batch_rows, before_discard=index.close)
    return len(doomed.rows)


def _with_doomed(
    known: OptOuts, doomed: Doomed, pids: Collection[int], row_ids: Collection[str], *, enrolled: bool
) -> OptOuts:
    """Return the list with all that is named where rows carry names and pids, else with the names of the rows found.

    All: an append may bring to this index who is in another one today. Pids beside the rows of an anonymous release
    would say who they were, and the release still holds them.
    """
    if enrolled:
        return known.with_more({*pids, *doomed.pids}, {*row_ids, *doomed.row_ids})
    return known.with_more((), doomed.rows | doomed.row_ids)


def _erase(index: GalleryIndex, doomed: Doomed, out: OptOuts) -> int:
    folder, current = index.folder, index.record
    gone = current.rows - index.count() + len(doomed.rows)  # a deletion that was cut off had some of them
    options = _settled(current.options)
    replace(current, opted_out=out.as_json(), options={**options, ERASING: gone}).write(folder)
    index.erase(doomed.rows)
    replace(current, opted_out=out.as_json(), options=options, rows=index.count()).write(folder)
    return len(doomed.rows)


def _settled(options: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in options.items() if key != ERASING}
