"""After a crash, and at the end of a release's life: finish, void, purge, verify. None of them refunds anything."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ppreid_plugin.dp.journal import LedgerError
from ppreid_plugin.dp.ledger import Ledger
from ppreid_plugin.dp.manifest import sha256
from ppreid_plugin.dp.release import commit_in_place, old_folder, rest_folder, set_in_place, temporary_folder
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
        temporary = temporary_folder(out, part)
        if not _holds(out, part):
            if not _holds(temporary, part):
                raise ValueError(
                    f"reservation {reservation!r} was not written completely, so there is nothing to finish: it may "
                    "not be drawn again, as nobody knows who saw the first draw. Void it (tools/ledger.py void)."
                )
            set_in_place(temporary, out, part)
        commit_in_place(ledger, part, out)
        return load_release(out)


def void_release(ledger: Ledger, reservation: str) -> None:
    """Delete what an interrupted release left, and record that it is given up; what it reserved stays spent.

    Raises:
        ValueError: no such open reservation; an append that is complete in its place, where what it was appended to is
            not there any more to be put back.
        FileExistsError: something else lies where that belongs.
    """
    with ledger.locked():
        part = _open_part(ledger, reservation)
        out = Path(part.folder)
        old = old_folder(out, part)
        _remove_rest(out, part)
        if _holds(out, part):
            if reservation != part.release and not _is_whole(old):
                raise ValueError(
                    f"{reservation} is complete in '{out}', and what it was appended to is not there any more, so to "
                    f"void it would delete both. Finish it: tools/ledger.py finish {reservation}"
                )
            _remove(out, part)
        if old.exists():
            if os.path.lexists(out):
                raise FileExistsError(
                    f"'{out}' holds something else than what {reservation} was to be appended to, which waits in "
                    f"'{old}'. Move the former away; then: tools/ledger.py void {reservation}"
                )
            old.rename(out)  # the release that was to be appended to
        shutil.rmtree(temporary_folder(out, part), ignore_errors=True)
        ledger.void(reservation)


def purge_release(ledger: Ledger, release: str, folder: str | Path | None = None) -> list[Path] | None:
    """Delete a release's folder and record it; what it spent stays spent.

    What is on record is not recorded again; a copy of a purged release that lies in the folder is deleted.

    Args:
        ledger: of the scope.
        release: its name with number, ``market1501-0001``.
        folder: where it lies; None: where it was written. What an append left elsewhere of it is deleted too.

    Returns:
        The folders that were deleted; None: it is on record, and nothing was there to delete.

    Raises:
        FileNotFoundError: a ``folder`` that is not there, or is not a whole release.
        ValueError: no such release, one that is open, or a folder that holds another one.
    """
    with ledger.locked():
        parts = [part for part in ledger.parts().values() if part.release == release]
        if not parts or any(part.state == "reserved" for part in parts):
            state = "was interrupted; finish or void it first" if parts else "is not in the ledger"
            raise ValueError(f"release {release!r} {state}. See tools/ledger.py show.")
        written = [Path(part.folder) for part in reversed(parts)]  # the last, and what an append left elsewhere
        place = (Path(folder) if folder else written[0]).resolve()
        if folder and not place.exists() and not any(rest_folder(place, part).exists() for part in parts):
            raise FileNotFoundError(f"'{folder}' is not there, so nothing was purged. Name the folder of {release!r}.")
        recorded = all(part.state != "committed" for part in parts)
        keys = {(part.reservation, part.mac) for part in parts}  # a name alone may be another scope's
        found = []
        for one in dict.fromkeys([place, *(path.resolve() for path in written)]):
            if not one.exists():
                continue
            if folder and one == place:
                _require_whole(one)
            last = _last_part(one)
            if last in keys:
                found.append(one)
            elif one == place and (folder or not recorded):  # else a later release was written to its place
                if last is None:
                    raise ValueError(
                        f"'{one}' holds no whole release. If it is what is left of {release!r}, delete it by hand "
                        "first."
                    )
                raise ValueError(f"'{one}' holds another release than {release!r}. Name its folder.")
        for part in parts:
            for path in dict.fromkeys([place, Path(part.folder), *found]):
                _remove_rest(path, part)
                shutil.rmtree(old_folder(path, part), ignore_errors=True)
        for one in found:
            _remove(one, parts[-1])
        if not recorded:
            ledger.purge(release)
        return found if found or not recorded else None


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
    findings = [f"{part.reservation}: {part.state}" for part in parts.values() if part.state != "committed"]
    last = {part.release: part for part in parts.values() if part.state == "committed"}
    given = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    written = dict.fromkeys(Path(part.folder).resolve() for part in last.values())
    checked: set[str] = set()
    for place in [*given, *(place for place in written if place.exists() and place not in given)]:
        manifest = load_release(place).manifest
        if (scope := manifest["scope"].get("name")) != ledger.scope:
            if place not in given:
                continue  # another scope's release by now
            raise LedgerError(
                f"'{place.name}' is of scope {scope!r}, this is {ledger.scope!r}. Name its scope: --scope {scope}"
            )
        part = _recorded(place, manifest, parts)
        if part is last.get(part.release):
            checked.add(part.release)
        elif part.state == "committed":
            findings.append(f"{part.release}: as it was before an append it lies in '{place}'")
        else:
            findings.append(f"{part.reservation}: {part.state}, and lies in '{place}'")
    for part in parts.values():
        place = Path(part.folder).resolve() / MANIFEST
        elsewhere = part.state == "committed" and place.parent not in (*given, *written)
        if elsewhere and place.is_file() and sha256(place.read_bytes()) == part.manifest:
            findings.append(f"{part.release}: as it was before an append it still lies in '{part.folder}'")
        if part.state == "committed" and (old := old_folder(Path(part.folder), part)).exists():
            findings.append(f"{part.release}: as it was before an append it still lies in '{old}'")
    for part in last.values():
        if part.release not in checked:
            there = Path(part.folder).exists()
            findings.append(f"{part.release}: its folder {'holds another release' if there else 'is gone'}")
    return findings


def _recorded(place: Path, manifest: Mapping[str, Any], parts: Mapping[str, Part]) -> Part:
    """Return the reservation whose release lies in ``place``.

    Raises:
        LedgerError: the release is not what any of them committed.
    """
    told = manifest["parts"]
    for one in told:
        part = parts.get(one.get("reservation"))
        if part is None or (part.seq, part.mac) != (one.get("ledger_seq"), one.get("ledger_head")):
            raise LedgerError(
                f"'{place.name}' names record {one.get('ledger_seq')} of scope {manifest['scope'].get('name')!r}, "
                "which is not in this ledger: it was rolled back or exchanged, or the release is not of this scope."
            )
    part = parts[told[-1]["reservation"]] if told else None
    if part is None or part.release != manifest["release"]:
        raise LedgerError(f"'{place.name}' is no release of this scope: its parts are not those of its name.")
    if part.manifest and part.manifest != sha256((place / MANIFEST).read_bytes()):
        raise LedgerError(f"'{place.name}' is not as release {part.release!r} was committed: its manifest differs.")
    return part


def _open_part(ledger: Ledger, reservation: str) -> Part:
    part = ledger.parts().get(reservation)
    if part is None or part.state != "reserved":
        state = part.state if part else "not in the ledger"
        raise ValueError(f"reservation {reservation!r} is {state}; only an interrupted one is finished or voided.")
    return part


def _last_part(folder: Path) -> tuple[str, str] | None:
    """Return the key of the last part of the release in a folder; None: there is none that can be read."""
    try:
        last = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["parts"][-1]
        return str(last["reservation"]), str(last["ledger_head"])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _require_whole(folder: Path) -> None:
    try:
        load_release(folder)
    except (OSError, ValueError) as error:
        raise type(error)(f"{error} To purge what is left of a release, delete '{folder}' by hand first.") from None


def _is_whole(folder: Path) -> bool:
    try:
        load_release(folder)
    except (OSError, ValueError):
        return False
    return True


def _holds(folder: Path, part: Part) -> bool:
    return _is_whole(folder) and _last_part(folder) == (part.reservation, part.mac)


def _remove(folder: Path, part: Part) -> None:
    """Delete a release's folder; under another name first, so that what an end of the process leaves is no release."""
    rest = rest_folder(folder, part)
    folder.rename(rest)
    shutil.rmtree(rest)


def _remove_rest(folder: Path, part: Part) -> None:
    """Delete what :func:`_remove` was stopped in."""
    shutil.rmtree(rest_folder(folder, part), ignore_errors=True)
