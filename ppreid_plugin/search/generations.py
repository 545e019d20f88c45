"""The generations of an index: folders of rows, of which ``index.json`` names the one in use; and who may write."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ppreid_plugin.dp.journal import fsync_folder
from ppreid_plugin.search.build_journal import BuildJournal
from ppreid_plugin.search.index import INDEXES
from ppreid_plugin.search.opt_outs import OPTED_OUT
from ppreid_plugin.search.record import RECORD, DamagedRecordError, IndexRecord, read_record

LOCK = "lock"
_GENERATION = re.compile(r"rows-\d{4,}")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the index's lock: one writer at a time, and the second is told at once.

    Raises:
        BlockingIOError: another process holds it.
    """
    _make(folder)
    lock = FileLock(str(folder / LOCK), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(
            f"another process is building or deleting in '{folder}'. Wait for it, then run this again."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _make(folder: Path) -> None:
    """Make a folder that outlives a power cut: what is synced inside it does not bring its own name to the disk."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in new:
        fsync_folder(place.parent)


def require_ours(folder: Path) -> None:
    """Raise ValueError if ``folder`` holds anything but an index, or the beginning of one, or is no folder."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is a file. Name the folder of an index, or one to be made.")
    if folder.is_dir():
        strange = sorted(
            path.name
            for path in folder.iterdir()
            if path.name not in (RECORD, OPTED_OUT, LOCK)
            and not _GENERATION.fullmatch(path.name)
            and not path.name.startswith((f".{RECORD}.", f".{OPTED_OUT}."))
        )
        if strange:
            raise ValueError(f"'{folder}' holds {strange[0]}, which is no part of an index. Name another folder.")


def next_generation(current: IndexRecord | None) -> str:
    """Return the name after the one in use: ``rows-0001`` first."""
    return f"rows-{int(current.generation.split('-')[1]) + 1 if current else 1:04d}"


def leftovers(folder: Path) -> list[str]:
    """Return generations that ``index.json`` does not name: of a build that was stopped, or is going on.

    A damaged ``index.json`` names none.
    """
    try:
        record = read_record(folder)
    except DamagedRecordError:
        record = None
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and _GENERATION.fullmatch(path.name) and (record is None or path.name != record.generation)
    )


def remove_temporary(folder: Path) -> None:
    """Delete what a process left that was killed between writing a file and renaming it."""
    for path in folder.glob(".*.tmp"):
        path.unlink()


def clean(folder: Path, *, keep: str = "") -> None:
    """Delete all generations but the one in use and ``keep``, with what they hold outside their folders.

    Raises:
        ConnectionError: a server that holds rows of one of them does not answer.
    """
    remove_temporary(folder)
    for name in leftovers(folder):
        if name == keep:
            continue
        generation = folder / name
        if (plan := BuildJournal(generation).plan) is not None:
            kind = INDEXES.get(plan["backend"])
            if kind.sound_options(plan["options"]):  # else the journal was edited, and does not say what else there is
                kind.discard(generation, plan["options"])
        shutil.rmtree(generation)
        fsync_folder(folder)  # people who were deleted are not back after a power cut
