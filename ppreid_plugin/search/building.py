"""Building an index from a release, building it again from a later one, and deleting people from it.

All three write a new *generation*, a folder of rows inside the index, batch by batch under a journal; replacing
``index.json`` puts it in place in one step, and the earlier generation is deleted. A process that is killed leaves the
earlier index as it was, and the same command goes on where it stopped.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as save_safetensors

from ppreid_plugin.dp.journal import fsync_folder, write_file
from ppreid_plugin.dp.stored import MANIFEST, Release, load_release
from ppreid_plugin.number_checks import require_whole
from ppreid_plugin.search.build_journal import BuildJournal
from ppreid_plugin.search.generations import clean, next_generation, remove_temporary, require_ours, writing
from ppreid_plugin.search.index import INDEXES, PUBLIC, open_index
from ppreid_plugin.search.record import IndexRecord, asked_options, carried_metadata, content_of, read_record, sealed
from ppreid_plugin.search.source import ReleaseSource, RowSource
from ppreid_plugin.search.thinning import IndexSource, doomed_rows

BATCH_ROWS = 16_384

_log = logging.getLogger(__name__)


def build_index(
    release: str | Path | Release,
    folder: str | Path,
    *,
    backend: str = "exact",
    options: Mapping[str, Any] | None = None,
    batch_rows: int = BATCH_ROWS,
    readmit: Collection[int] = (),
) -> IndexRecord:
    """Build the index of a release in ``folder``, or bring the index there up to date with it.

    Afterwards the index holds the rows of this release and no others: rows of the same id are replaced, rows that the
    release does not have are gone, budget and ledger are those of this release. People and rows that were deleted from
    the index (:func:`delete_rows`) stay out. If nothing would change, nothing is done.

    Args:
        release: folder of a release, or one that was loaded; features that no manifest vouches for are not taken.
        folder: of the index; made if it is not there.
        backend: registered name.
        options: of the backend.
        batch_rows: rows a batch, after each of which a build that was killed can go on.
        readmit: pids that were deleted once and may be indexed again.

    Raises:
        FileNotFoundError: no release there.
        ValueError: a release that was changed or cut off, an option that is out of range.
        BlockingIOError: another process is writing to this index.
        ImportError, ConnectionError: the backend's library or server is not there.
    """
    kind = INDEXES.get(backend, key="--backend")
    require_whole("batch_rows", batch_rows)
    loaded = release if isinstance(release, Release) else _loaded(Path(release))
    metadata = carried_metadata(loaded)
    folder = Path(folder)
    require_ours(folder)
    with writing(folder):
        current = read_record(folder)
        out = _opted_out(current, metadata, readmit)
        source = ReleaseSource(loaded, left_out_pids=out["pids"], left_out_rows=out["rows"])
        if source.left_out:
            _log.warning("%d rows of people who were deleted from this index are left out.", source.left_out)
        record = IndexRecord(
            generation=next_generation(current),
            backend=backend,
            options=kind.checked_options(options or {}, source),
            rows=source.rows,
            columns=source.columns,
            labels=_labels(source),
            id_bytes=source.id_bytes,
            metric=metadata.pop("metric"),
            release=metadata,
            opted_out=out,
        )
        if current is not None and content_of(current) == content_of(record):
            clean(folder)
            return current
        public = {name: a for name, a in loaded.arrays.items() if name.startswith(("transform.", "code"))}
        manifest = (loaded.folder / MANIFEST).read_bytes()
        return _write(folder, current, record, source, public, manifest, batch_rows)


def delete_rows(
    folder: str | Path, *, pids: Collection[int] = (), row_ids: Collection[str] = (), batch_rows: int = BATCH_ROWS
) -> int:
    """Delete people or single rows from an index for good; return how many rows that were.

    Their rows, labels and what was derived from them leave the disk, and a later build from any release leaves them
    out. The release folder still holds them: see docs/search.md.

    Args:
        folder: of the index.
        pids: people; of an anonymous release, which carries none, give their ``row_ids``.
        row_ids: names of rows.
        batch_rows: as in :func:`build_index`.

    Raises:
        FileNotFoundError: no index there.
        ValueError: a person or row that the index does not hold, background, or nothing would be left.
        BlockingIOError: another process is writing to this index.
    """
    folder = Path(folder)
    if read_record(folder) is None:
        open_index(folder)  # says what is missing
    with writing(folder), open_index(folder) as index:
        current = index.record
        doomed = doomed_rows(index, pids, row_ids)
        if not doomed:
            clean(folder)
            replace(current, rows=index.count()).write(folder)
            return 0
        if len(doomed) == index.count():
            raise ValueError(
                f"these are all {len(doomed)} rows of the index. Delete its folder instead, and the release's "
                "(tools/ledger.py purge)."
            )
        out = {
            "pids": sorted({*current.opted_out["pids"], *(int(pid) for pid in pids)}),
            "rows": sorted({*current.opted_out["rows"], *row_ids}),
        }
        if index.erases_in_place:
            replace(current, opted_out=out).write(folder)  # first: a deletion that is cut off can be asked for again
            index.erase(doomed)
            replace(current, opted_out=out, rows=index.count()).write(folder)
            return len(doomed)
        source = IndexSource(index, doomed)
        record = replace(
            current,
            generation=next_generation(current),
            options=type(index).checked_options(asked_options(current.options), source),
            rows=source.rows,
            opted_out=out,
            files={},
        )
        manifest = (index.generation / MANIFEST).read_bytes()
        _write(folder, current, record, source, index.public, manifest, batch_rows, before_discard=index.close)
        return len(doomed)


def reached(step: str) -> None:
    """Do nothing: tests end the process here."""


def _write(
    folder: Path,
    current: IndexRecord | None,
    record: IndexRecord,
    source: RowSource,
    public: Mapping[str, np.ndarray],
    manifest: bytes,
    batch_rows: int,
    before_discard: Callable[[], None] = lambda: None,
) -> IndexRecord:
    kind = INDEXES.get(record.backend)
    generation = folder / record.generation
    journal = BuildJournal(generation)
    fits = journal.plan is not None and content_of(record) == {
        **journal.plan,
        "options": asked_options(journal.plan["options"]),
    }
    if fits and journal.plan is not None:
        record = replace(record, options=journal.plan["options"])  # names that were drawn by the first try
    clean(folder, keep=record.generation if fits else "")
    writer = kind.writer(generation, record.options, source, _public_metadata(record), _replaced(current, record))
    with closing(writer):
        if not fits or not journal.rows or not writer.resume(journal.rows):
            shutil.rmtree(generation, ignore_errors=True)
            generation.mkdir()
            journal.start({**content_of(record), "options": record.options})
            reached("planned")
            writer.begin()
        reached("begun")
        for batch in source.batches(journal.rows, batch_rows):
            writer.write(journal.rows, batch)
            reached("written")
            journal.add(journal.rows + len(batch))
            reached("journaled")
        write_file(generation / PUBLIC, save_safetensors({name: np.array(a, order="C") for name, a in public.items()}))
        write_file(generation / MANIFEST, manifest)
        remove_temporary(generation)
        names = {**writer.finish(), PUBLIC: True, MANIFEST: True}
        record = replace(record, files=sealed(generation, names))
        reached("finished")
        fsync_folder(generation)
        writer.publish()
        reached("published")
        record.write(folder)
        reached("replaced")
    before_discard()
    clean(folder)
    return record


def _loaded(folder: Path) -> Release:
    if folder.is_file():
        raise ValueError(
            f"'{folder}' is a file. An index is built from the folder of a release (tools/release_gallery.py), never "
            "from features: those are the unprotected gallery."
        )
    return load_release(folder)


def _opted_out(
    current: IndexRecord | None, metadata: Mapping[str, Any], readmit: Collection[int]
) -> dict[str, list[Any]]:
    """Return who stays out. Rows of an anonymous release mean others in the next one: their names are numbers."""
    if current is None:
        return {"pids": [], "rows": []}
    pids = [pid for pid in current.opted_out["pids"] if pid not in set(readmit)]
    rows = list(current.opted_out["rows"])
    if rows and metadata["protocol"] == "anonymous" and current.release["release"] != metadata["release"]:
        _log.warning(
            "%d rows were deleted from the index of release %s; release %s is anonymous and calls its rows otherwise. "
            "Was it drawn without these people (tools/release_gallery.py --opt-out)?",
            len(rows),
            current.release["release"],
            metadata["release"],
        )
        rows = []
    return {"pids": pids, "rows": rows}


def _public_metadata(record: IndexRecord) -> dict[str, Any]:
    return {"metric": record.metric, **record.release}


def _replaced(current: IndexRecord | None, record: IndexRecord) -> dict[str, Any] | None:
    return current.options if current is not None and current.backend == record.backend else None


def _labels(source: RowSource) -> tuple[str, ...]:
    return tuple(name for name, there in (("pids", source.has_pids), ("camids", source.has_camids)) if there)
