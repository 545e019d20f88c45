"""Building an index from a release, and building it again from a later one.

Both, and deleting people (:mod:`.deleting`), write a new *generation*, a folder of rows inside the index, batch by
batch under a journal; replacing ``index.json`` puts it in place in one step, and the earlier generation is deleted. A
process that is killed leaves the earlier index as it was, and the same command goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
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
from ppreid_plugin.search.generations import (
    LOCK,
    clean,
    leftovers,
    next_generation,
    remove_temporary,
    require_ours,
    writing,
)
from ppreid_plugin.search.index import INDEXES, PUBLIC, IndexWriter
from ppreid_plugin.search.opt_outs import OptOuts, known_opt_outs, naming, rows_without_pids, still_out
from ppreid_plugin.search.record import (
    RECORD,
    DamagedRecordError,
    IndexRecord,
    asked_options,
    carried_metadata,
    content_of,
    read_record,
    sealed,
)
from ppreid_plugin.search.room import room_for
from ppreid_plugin.search.source import ReleaseSource, RowSource

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
    readmit_rows: bool = False,
    truth: Sequence[str | Path] = (),
) -> IndexRecord:
    """Build the index of a release in ``folder``, or bring the index there up to date with it.

    Afterwards the index holds the rows of this release and no others: rows of the same id are replaced, rows that the
    release does not have are gone, budget and ledger are those of this release. People and rows that were deleted from
    the index (:func:`.delete_rows`) stay out. If nothing would change, nothing is done. An index that is damaged is
    built anew.

    Args:
        release: folder of a release, or one that was loaded; features that no manifest vouches for are not taken.
        folder: of the index; made if it is not there.
        backend: registered name.
        options: of the backend.
        batch_rows: rows a batch, after each of which a build that was killed can go on.
        readmit: pids that were deleted once and may be indexed again.
        readmit_rows: whether rows that were deleted by name may be indexed again.
        truth: maps from the rows of an anonymous release to people, one a part of it; needed where people were deleted
            by pid.

    Raises:
        FileNotFoundError: no release there.
        ValueError: a release that was changed or cut off, an option that is out of range; people who opted out cannot
            be told in this release; the list of them is damaged with ``index.json``.
        BlockingIOError: another process is writing to this index.
        NoRoomError: the disk is full; the index is as it was.
        ImportError, ConnectionError: the backend's library or server is not there.
    """
    kind = INDEXES.get(backend, key="--backend")
    batch_rows = require_whole("batch_rows", batch_rows)
    loaded = release if isinstance(release, Release) else _loaded(Path(release))
    folder = Path(folder)
    require_ours(folder)

    def planned(current: IndexRecord | None, damaged: bool) -> tuple[OptOuts, ReleaseSource, IndexRecord]:
        known = known_opt_outs(folder, current, damaged=damaged)
        out = still_out(known, loaded, readmit=readmit, readmit_rows=readmit_rows)
        theirs = rows_without_pids(loaded, out.pids, truth)
        source = ReleaseSource(loaded, left_out_pids=out.pids, left_out_rows={*out.rows, *theirs})
        metadata = carried_metadata(loaded)
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
            opted_out=out.as_json(),
        )
        return out, source, record

    if not (folder / LOCK).exists():  # the first build here: one that is refused leaves no lock, and no folder
        current, damaged = _standing(folder)
        _, source, record = planned(current, damaged)
        if not folder.is_dir() or not leftovers(folder):  # else the place may belong to those
            with closing(_writer(folder, record, source, current)) as writer:
                writer.look()
    with writing(folder):
        current, damaged = _standing(folder)
        out, source, record = planned(current, damaged)
        if source.left_out:
            _log.warning("%d rows of people who were deleted from this index are left out.", source.left_out)
        if current is not None and content_of(current) == content_of(record) and _opens(folder, current):
            clean(folder)
            out.write(folder)
            return _mended(folder, current, record)
        if damaged:
            clean(folder)  # what it named is not known to be whole
            (folder / RECORD).unlink()
        public = {name: a for name, a in loaded.arrays.items() if name.startswith(("transform.", "code"))}
        manifest = (loaded.folder / MANIFEST).read_bytes()
        return write_generation(folder, current, record, source, public, manifest, batch_rows)


def reached(step: str) -> None:
    """Do nothing: tests end the process here."""


def write_generation(
    folder: Path,
    current: IndexRecord | None,
    record: IndexRecord,
    source: RowSource,
    public: Mapping[str, np.ndarray],
    manifest: bytes,
    batch_rows: int,
    before_discard: Callable[[], None] = lambda: None,
) -> IndexRecord:
    """Write the rows of ``source`` as a new generation and put it in place; return its record.

    Args:
        folder: of the index, whose lock is held.
        current: what is in place; None: nothing.
        record: what is to be, without files.
        source: its rows.
        public: arrays of the release's transform and codebook.
        manifest: the release's, byte for byte.
        batch_rows: as in :func:`build_index`.
        before_discard: lets go of the earlier generation, before it is deleted.
    """
    kind = INDEXES.get(record.backend)
    generation = folder / record.generation
    journal = BuildJournal(generation)
    fits = (
        journal.plan is not None
        and content_of(record) == {**journal.plan, "options": asked_options(journal.plan["options"])}
        and kind.sound_options(journal.plan["options"])
        and journal.rows <= source.rows
    )
    if fits and journal.plan is not None:
        record = replace(record, options=journal.plan["options"])  # names that were drawn by the first try
    clean(folder, keep=record.generation if fits else "")
    with closing(_writer(folder, record, source, current)) as writer, room_for(generation):
        if not fits or not journal.rows or not writer.resume(journal.rows):
            writer.look()
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
    opted_out = record.opted_out
    named_by = naming(record.release, json.loads(manifest)["parts"])
    OptOuts(tuple(opted_out["pids"]), tuple(opted_out["rows"]), named_by).write(folder)
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


def _standing(folder: Path) -> tuple[IndexRecord | None, bool]:
    """Return the record of the index that is there, and whether there is one that cannot be read."""
    try:
        return read_record(folder), False
    except DamagedRecordError as error:
        _log.warning("%s It is built anew.", error)
        return None, True


def _opens(folder: Path, record: IndexRecord) -> bool:
    """Return whether the files of an index are whole, as far as opening it tells."""
    try:
        INDEXES.get(record.backend)(folder, record).close()
    except ValueError as error:
        _log.warning("%s It is built anew.", error)
        return False
    return True


def _mended(folder: Path, current: IndexRecord, record: IndexRecord) -> IndexRecord:
    """Return the record that is in place, written again if it says of the release what the release does not."""
    whole = replace(
        record, generation=current.generation, options=current.options, files=current.files, created=current.created
    )
    if whole != current:
        _log.warning("'%s' was edited: what it says of the release is written again.", folder / RECORD)
        whole.write(folder)
    return whole


def _writer(folder: Path, record: IndexRecord, source: RowSource, current: IndexRecord | None) -> IndexWriter:
    metadata = {"metric": record.metric, **record.release}
    replaces = current.options if current is not None and current.backend == record.backend else None
    return INDEXES.get(record.backend).writer(folder / record.generation, record.options, source, metadata, replaces)


def _labels(source: RowSource) -> tuple[str, ...]:
    return tuple(name for name, there in (("pids", source.has_pids), ("camids", source.has_camids)) if there)
