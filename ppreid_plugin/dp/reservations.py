"""What the ledger knows of releases: which are stored, which were interrupted, and whether a request is one of them.

A release is known by the user's name and by public data: row ids, pids, fingerprints of model and transform, the
configuration. Features are never looked at, so extracting them again, or in another order, makes no new release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppreid_plugin.dp.charges import Charge
from ppreid_plugin.dp.journal import Record


@dataclass
class Part:
    """One reservation: a release, or what was appended to one."""

    reservation: str
    release: str
    name: str
    public: dict[str, Any]
    rows: dict[str, int]
    units: list[str]
    folder: str
    seq: int
    mac: str
    time: str
    opt_out: list[int] = field(default_factory=list)
    state: str = "reserved"
    manifest: str = ""


@dataclass(frozen=True)
class Request:
    """A release as it is known: by its name and public data, never by feature contents.

    Args:
        name: the user's name.
        public: fingerprints of model and transform, and the configuration; JSON-ready.
        rows: row id to pid, of all rows that go in.
        units: name of each unit, with the accounts it is charged to and the charge of each.
        members: name of each unit, with the ids of its rows.
        folder: where the release will lie.
        charge_at: the charge of one row at another epsilon, for the message when the budget is exceeded.
        opt_out: pids that are left out, sorted.
    """

    name: str
    public: Mapping[str, Any]
    rows: Mapping[str, int]
    units: Mapping[str, tuple[Sequence[str], Charge]]
    folder: Path
    charge_at: Callable[[float], Charge]
    members: Mapping[str, Sequence[str]]
    opt_out: Sequence[int] = ()


def read_parts(records: Iterable[Record]) -> dict[str, Part]:
    """Return every reservation by its name, oldest first."""
    parts: dict[str, Part] = {}
    for record in records:
        kind, content = record["kind"], record["content"]
        if kind == "reserve":
            parts[content["reservation"]] = Part(
                **{key: content[key] for key in ("reservation", "release", "name", "public", "units", "folder")},
                rows=dict(zip(content["row_ids"], content["pids"], strict=True)),
                seq=record["seq"],
                mac=record["mac"],
                time=record["time"],
                opt_out=list(content.get("opt_out", ())),
            )
        elif kind == "commit":
            part = parts[content["reservation"]]
            part.state, part.manifest = "committed", content["manifest"]
        elif kind == "opt-out":
            of_release = [part for part in parts.values() if part.release == content["release"]]
            of_release[-1].opt_out.extend(content["pids"])
        elif kind == "void":
            parts[content["reservation"]].state = "voided"
        elif kind == "purge":
            for part in parts.values():
                if part.release == content["release"] and part.state != "voided":
                    part.state = "purged"
    return parts


def pids_of(parts: Iterable[Part]) -> dict[str, int]:
    """Return the pid of every unit of these parts, by the unit's name: of a prototype its person's."""
    found = {}
    for part in parts:
        for unit in part.units:
            kind, name = unit.split(":", 1)
            found[unit] = int(name) if kind == "person" else part.rows[name]
    return found


def latest_release(parts: Iterable[Part], name: str) -> list[Part]:
    """Return the parts of the latest release of that name that is stored or interrupted; if none is, of the latest."""
    named = [part for part in parts if part.name == name]
    kept = [part for part in named if part.state in ("committed", "reserved")] or named
    return [part for part in named if part.release == kept[-1].release]


def find_stored(parts: Sequence[Part], request: Request) -> list[Part]:
    """Return the committed parts that make up exactly this release, oldest first; [] if the name is free.

    Raises:
        ValueError: the name belongs to another release, or to one that is reserved, voided or purged.
    """
    latest = latest_release(parts, request.name)
    if not latest:
        return []
    release = latest[0].release
    if any(part.state == "reserved" for part in latest):
        raise ValueError(
            f"release {release!r} is reserved and not committed: it was interrupted. Finish or void it "
            "(tools/ledger.py finish, tools/ledger.py void); what it reserved stays spent."
        )
    if latest[0].state != "committed":
        raise ValueError(
            f"release {release!r} was {latest[0].state}; what it spent stays spent. "
            "Say new_release (--new-release) to draw and spend again, or choose another name."
        )
    committed = [part for part in latest if part.state == "committed"]
    differs = differences(committed[0].public, request.public)
    if {row: pid for part in committed for row, pid in part.rows.items()} != dict(request.rows):
        differs.append("rows")
    if differs:
        raise ValueError(
            f"name {request.name!r} belongs to release {release!r}, which differs in: {', '.join(differs)}. Choose "
            "another name, or say new_release (--new-release); either spends. Or append the new rows (--append)."
        )
    require_opt_outs(parts, request)
    return committed


def find_appendable(parts: Sequence[Part], request: Request) -> tuple[list[Part], list[str]]:
    """Return the committed parts to append to, and the units of the request that they do not hold.

    Raises:
        ValueError: no such release, one that is unfinished, or one of another model, transform or configuration; people
            who opted out before and are not named now, or who are named now and have rows in it.
    """
    latest = latest_release(parts, request.name)
    if not latest or latest[0].state != "committed" or any(part.state == "reserved" for part in latest):
        if latest and latest[0].state in ("purged", "voided"):
            raise ValueError(
                f"append to {request.name!r}: release {latest[0].release!r} was {latest[0].state}. Draw another one "
                "(--new-release), which spends again."
            )
        state = f"release {latest[0].release!r} is not complete" if latest else "there is no release of that name"
        raise ValueError(f"append to {request.name!r}: {state}. See tools/ledger.py show; finish or void it first.")
    committed = [part for part in latest if part.state == "committed"]
    if differs := differences(committed[0].public, request.public):
        raise ValueError(
            f"append to release {committed[0].release!r}: it differs in: {', '.join(differs)}. "
            "Append with what it was made with, or make a release of another name."
        )
    release = committed[0].release
    require_opt_outs(parts, request)
    there = {pid for part in committed for pid in part.rows.values()}
    if late := sorted(there & set(request.opt_out)):
        raise ValueError(
            f"append to release {release!r}: pid {', '.join(map(str, late))} opts out, and has rows in it, which an "
            "append does not take out. Draw a release without them (--new-release) and purge this one."
        )
    held = {unit for part in committed for unit in part.units}
    return committed, [unit for unit in request.units if unit not in held]


def require_opt_outs(parts: Iterable[Part], request: Request) -> None:
    """Raise ValueError if people who opted out of a release of the request's name are not left out of the request."""
    opted = {pid: part.release for part in parts if part.name == request.name for pid in part.opt_out}
    if forgotten := sorted(set(opted) - set(request.opt_out)):
        pids = ", ".join(map(str, forgotten))
        raise ValueError(
            f"pid {pids} opted out of release {opted[forgotten[0]]!r}, and is not named now. Name them again "
            f"(--opt-out {pids.replace(',', '')}); who came back goes into a release of another name."
        )


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Return the names of what differs between two releases' public data, sorted."""
    return [key for key in sorted({*stored, *asked}) if stored.get(key) != asked.get(key)]
