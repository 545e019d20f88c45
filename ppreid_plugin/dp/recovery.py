"""After a crash, and at the end of a release's life: finish, void, purge, verify. None of them refunds anything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from ppreid_plugin.dp.journal import LedgerError
from ppreid_plugin.dp.ledger import Ledger
from ppreid_plugin.dp.manifest import sha256
from ppreid_plugin.dp.release import old_folder, set_in_place, temporary_folder
from ppreid_plugin.dp.reservations import Part
from ppreid_plugin.dp.stored import MANIFEST, Release, load_release


def finish_release(ledger: Ledger, reservation: str) -> Release:
    """Commit an interrupted release that was written completely; draws nothing.

    Raises:
        ValueError: no such open reservation, or its files are not complete (then :func:`void_release` it).
    """
    with ledger.locked():
        part = _open_part(ledger, reservation)
        out = Path(part.folder)
        temporary = temporary_folder(out, reservation)
        if not _holds(out, reservation):
            if not _holds(temporary, reservation):
                raise ValueError(
                    f"reservation {reservation!r} was not written completely, so there is nothing to finish: it may "
                    "not be drawn again, as nobody knows who saw the first draw. Void it (tools/ledger.py void)."
                )
            set_in_place(temporary, out, reservation)
        shutil.rmtree(old_folder(out, reservation), ignore_errors=True)
        ledger.commit(reservation, sha256((out / MANIFEST).read_bytes()))
        return load_release(out)


def void_release(ledger: Ledger, reservation: str) -> None:
    """Delete what an interrupted release left, and record that it is given up; what it reserved stays spent.

    Raises:
        ValueError: no such open reservation.
    """
    with ledger.locked():
        part = _open_part(ledger, reservation)
        out = Path(part.folder)
        if _holds(out, reservation):
            shutil.rmtree(out)
        old = old_folder(out, reservation)
        if old.exists() and out.exists():
            raise FileExistsError(
                f"'{out}' holds something else than what {reservation} was to be appended to, which waits in '{old}'. "
                f"Move the former away; then: tools/ledger.py void {reservation}"
            )
        if old.exists():
            old.rename(out)  # the release that was to be appended to
        shutil.rmtree(temporary_folder(out, reservation), ignore_errors=True)
        ledger.void(reservation)


def purge_release(ledger: Ledger, release: str, folder: str | Path | None = None) -> bool:
    """Delete a release's folder and record it; what it spent stays spent.

    What is on record is not recorded again; a copy of a purged release that lies in the folder is deleted.

    Args:
        ledger: of the scope.
        release: its name with number, ``market1501-0001``.
        folder: where it lies; None: where it was written. What an append left elsewhere of it is deleted too.

    Returns:
        Whether there was anything to do.

    Raises:
        ValueError: no such release, one that is open, or a folder that holds another one.
    """
    with ledger.locked():
        parts = [part for part in ledger.parts().values() if part.release == release]
        if not parts or any(part.state == "reserved" for part in parts):
            state = "was interrupted; finish or void it first" if parts else "is not in the ledger"
            raise ValueError(f"release {release!r} {state}. See tools/ledger.py show.")
        written = [Path(part.folder) for part in reversed(parts)]  # the last, and what an append left elsewhere
        place = Path(folder) if folder else written[0]
        recorded = all(part.state != "committed" for part in parts)
        found = []
        for one in dict.fromkeys([place, *written]):
            if not one.exists():
                continue
            if (load_release(one).manifest["release"] if one == place else _name_in(one)) == release:
                found.append(one)
            elif one == place and (folder or not recorded):  # else a later release was written to its place
                raise ValueError(f"'{one}' holds another release than {release!r}. Name its folder.")
        for one in found:
            shutil.rmtree(one)
        if not recorded:
            ledger.purge(release)
        return bool(found) or not recorded


def verify_releases(ledger: Ledger, folders: Iterable[str | Path] = ()) -> list[str]:
    """Check the chain, and that every release is what was committed; return one line a finding that is no error.

    Args:
        ledger: of the scope.
        folders: releases to check, beside those that the ledger knows the place of.

    Raises:
        LedgerError: the chain is broken, a manifest's head is not in it (the ledger was rolled back), or a release is
            not the one that was committed.
    """
    parts = ledger.parts()
    macs = {part.reservation: (part.seq, part.mac) for part in parts.values()}
    findings = [f"{part.reservation}: {part.state}" for part in parts.values() if part.state != "committed"]
    last = {part.release: part for part in parts.values() if part.state == "committed"}
    given, written = (Path(folder).absolute() for folder in folders), (Path(part.folder) for part in last.values())
    checked: set[str] = set()
    for place in dict.fromkeys([*given, *(place for place in written if place.exists())]):
        manifest = load_release(place).manifest
        if (scope := manifest["scope"].get("name")) != ledger.scope:
            raise LedgerError(
                f"'{place.name}' is of scope {scope!r}, this is {ledger.scope!r}. Name its scope: --scope {scope}"
            )
        checked.add(manifest["release"])
        for told in manifest["parts"]:
            if macs.get(told.get("reservation")) != (told.get("ledger_seq"), told.get("ledger_head")):
                raise LedgerError(
                    f"'{place.name}' names record {told.get('ledger_seq')} of scope "
                    f"{manifest['scope'].get('name')!r}, which is not in this ledger: it was rolled back or exchanged, "
                    "or the release is not of this scope."
                )
        part = last.get(manifest["release"])
        if part is not None and part.manifest != sha256((place / MANIFEST).read_bytes()):
            raise LedgerError(f"'{place.name}' is not as release {part.release!r} was committed: its manifest differs.")
    for part in parts.values():
        if part.state == "committed" and part is not last[part.release]:
            place = Path(part.folder) / MANIFEST
            if place.is_file() and sha256(place.read_bytes()) == part.manifest:
                findings.append(f"{part.release}: as it was before an append it still lies in '{part.folder}'")
    for part in last.values():
        if part.release not in checked:
            there = Path(part.folder).exists()
            findings.append(f"{part.release}: its folder {'holds another release' if there else 'is gone'}")
    return findings


def _open_part(ledger: Ledger, reservation: str) -> Part:
    part = ledger.parts().get(reservation)
    if part is None or part.state != "reserved":
        state = part.state if part else "not in the ledger"
        raise ValueError(f"reservation {reservation!r} is {state}; only an interrupted one is finished or voided.")
    return part


def _name_in(folder: Path) -> str | None:
    """Return the name of the release in a folder; None: there is none that can be read."""
    try:
        return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["release"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _holds(folder: Path, reservation: str) -> bool:
    try:
        return bool(load_release(folder).manifest["parts"][-1]["reservation"] == reservation)
    except (OSError, ValueError, KeyError, IndexError):
        return False
