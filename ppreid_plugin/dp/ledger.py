"""The ledger: every release of a scope, and what each unit has spent over all of them.

A release is *reserved* (from then on it counts as spent), drawn, and *committed*. What is reserved and neither
committed nor voided was interrupted; it stays spent either way. Nothing is ever refunded: not a void, not a deleted
release, not a unit that is gone. Records are chained and sealed, see :mod:`.journal`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ppreid_plugin.dp.budget import check_budget
from ppreid_plugin.dp.charges import Charge, compose
from ppreid_plugin.dp.journal import Journal, LedgerError, Record, require_name
from ppreid_plugin.dp.reservations import Part, Request, read_parts
from ppreid_plugin.dp.units import UNITS
from ppreid_plugin.number_checks import require_positive

FORMAT = 1

_log = logging.getLogger(__name__)


class Ledger:
    """Accounts of one scope.

    A scope is opened, which is for good, by its first reservation: what is refused before that declares nothing.

    Args:
        folder: of the ledger, made if it is not there. Keep it private: it names rows and pids.
        scope: what the budget is declared for, for example a data set.
        unit: what an account is: ``image`` (row id) or ``person`` (pid). A release of either unit is charged to it.
        epsilon: budget of each account over all releases in the scope.
        delta: failure probability of the whole, in [0, 1); 0 admits pure releases only.
        background_pids: pids that are no person; fixed with the scope, as they decide who pays in a scope of people.
        default_unit: of a scope that is opened now, where ``unit`` is None: that of the first release.

    Raises:
        ValueError: a value out of range, or another one than the scope was opened with.
        LedgerError: the ledger's files were changed or cut off.
    """

    def __init__(
        self,
        folder: str | Path,
        scope: str,
        *,
        unit: str | None = None,
        epsilon: float | None = None,
        delta: float | None = None,
        background_pids: Iterable[int] = (0,),
        default_unit: str = "image",
    ) -> None:
        if epsilon is not None:
            require_positive("budget epsilon", epsilon)
        if delta is not None and not 0 <= delta < 1:
            raise ValueError(f"budget delta is {delta!r}, must be in [0, 1). 1e-5 is usual, 0 for pure releases only.")
        if unit is not None and unit not in UNITS:
            raise ValueError(f"unit of the scope is {unit!r}; allowed: {', '.join(UNITS)}.")
        require_name("scope", scope)
        if epsilon is None and not (Path(folder) / f"{scope}.jsonl").exists():
            raise ValueError(
                f"scope {scope!r} is not in the ledger. To open it, give its budget: epsilon "
                "(tools/release_gallery.py --budget)."
            )
        self.scope, self.folder = scope, Path(folder)
        self._journal = Journal(folder, scope)
        self._unopened: dict[str, Any] | None = None
        records = self._journal.read()
        if records:
            terms = records[0]["content"]
            self._check_opened(records[0], {"unit": unit, "epsilon": epsilon, "delta": delta})
        elif epsilon is None:
            raise ValueError(f"scope {scope!r} has no budget yet. Give its epsilon (and delta).")
        else:
            self._unopened = terms = {
                "format": FORMAT,
                "scope": scope,
                "unit": unit or default_unit,
                "epsilon": float(epsilon),
                "delta": 1e-5 if delta is None else float(delta),
                "background_pids": sorted({int(pid) for pid in background_pids}),
            }
        self.unit, self.epsilon, self.delta = str(terms["unit"]), float(terms["epsilon"]), float(terms["delta"])
        self.background_pids: list[int] = terms["background_pids"]

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes out of this scope; may be nested."""
        return self._journal.locked()

    def open(self) -> None:
        """Declare the scope with its terms, for good; the first reservation does so, and nothing that is refused.

        Raises:
            ValueError: another process has declared it with other terms meanwhile.
        """
        with self.locked():
            if self._unopened is None:
                return
            if records := self._journal.read():
                self._check_opened(records[0], self._unopened)
            else:
                self._journal.append("open", self._unopened)
            self._unopened = None

    def records(self) -> list[Record]:
        """Return all records, checked; see :meth:`.journal.Journal.read`."""
        return self._journal.read()

    def parts(self) -> dict[str, Part]:
        """Return every reservation and its state: ``reserved``, ``committed``, ``voided`` or ``purged``."""
        return read_parts(self.records())

    def spent(self) -> dict[str, tuple[Charge, ...]]:
        """Return the charges of each account, reserved ones included; accounts that spent nothing are not there."""
        charges: dict[str, tuple[Charge, ...]] = {}
        for record in self.records():
            if record["kind"] == "reserve":
                for group in record["content"]["charges"]:
                    charge = Charge(**group["charge"])
                    for account in group["accounts"]:
                        charges[account] = (*charges.get(account, ()), charge)
        return charges

    def total(self, account: str) -> float:
        """Return the epsilon that ``image:<row id>`` or ``person:<pid>`` has spent, at the scope's delta."""
        return self.total_of(self.spent().get(account, ()))

    def total_of(self, charges: Iterable[Charge]) -> float:
        """Return the epsilon of these charges of one account, at the scope's delta."""
        return compose(charges, self.delta)

    def reserve(self, request: Request, units: Collection[str], *, append_to: Sequence[Part] = ()) -> Part:
        """Spend for ``units`` and return the reservation. Call it under :meth:`locked`, after the checks.

        Raises:
            BudgetExceeded: an account would go over its budget; nothing is written.
            ValueError: in a scope of people, other background pids, or another pid of a known row: others would pay.
        """
        charges = self.charges(request, units)
        taken = list(self.parts().values())
        self._check_labels(request, taken)
        check_budget(
            self.scope,
            self.unit,
            (self.epsilon, self.delta),
            self.spent(),
            charges,
            charge_at=request.charge_at,
            reusable=[part.release for part in taken if part.state == "committed"],
        )
        grouped: dict[Charge, list[str]] = {}
        for account, charge in [(account, charge) for account, many in charges.items() for charge in many]:
            grouped.setdefault(charge, []).append(account)
        if append_to:
            release = append_to[0].release
            reservation = f"{release}+{sum(part.release == release for part in taken)}"
        else:
            release = f"{request.name}-{len({part.release for part in taken if part.name == request.name}) + 1:04d}"
            reservation = release
        self.open()
        rows = sorted({row for unit in units for row in request.members[unit]})
        content = {
            "reservation": reservation,
            "release": release,
            "name": request.name,
            "public": dict(request.public),
            "row_ids": rows,
            "pids": [request.rows[row] for row in rows],
            "units": sorted(units),
            "charges": [{"charge": charge.to_json(), "accounts": sorted(names)} for charge, names in grouped.items()],
            "folder": str(request.folder),
            "opt_out": list(request.opt_out),
        }
        self._journal.append("reserve", content)
        return self.parts()[reservation]

    def commit(self, reservation: str, manifest: str) -> None:
        """Record that the release lies in its folder; ``manifest`` is the SHA-256 of its manifest file."""
        self._close(reservation, "commit", {"manifest": manifest})

    def void(self, reservation: str) -> None:
        """Give an interrupted release up. What it reserved stays spent."""
        self._close(reservation, "void", {})

    def opt_out(self, parts: Sequence[Part], pids: Iterable[int]) -> None:
        """Record that people opted out of a release who are not on record for it; spends nothing."""
        with self.locked():
            if new := sorted(set(pids) - {pid for part in parts for pid in part.opt_out}):
                self._journal.append("opt-out", {"release": parts[-1].release, "pids": new})

    def purge(self, release: str) -> None:
        """Record that a release's folder was deleted. What it spent stays spent."""
        with self.locked():
            if not any(part.release == release for part in self.parts().values()):
                raise ValueError(f"release {release!r} is not in scope {self.scope!r}. See tools/ledger.py show.")
            self._journal.append("purge", {"release": release})

    def charges(self, request: Request, units: Collection[str]) -> dict[str, tuple[Charge, ...]]:
        """Return what each account would pay for ``units``; equal charges of one account as one of several rows."""
        counts: dict[str, dict[Charge, int]] = {}
        for unit in units:
            accounts, charge = request.units[unit]
            for account in accounts:
                paid = counts.setdefault(account, {})
                paid[charge] = paid.get(charge, 0) + 1
        return {account: tuple(one.times(rows) for one, rows in paid.items()) for account, paid in counts.items()}

    def _check_opened(self, record: Record, asked: Mapping[str, Any]) -> None:
        """Raise ValueError if the scope was opened with other terms than are asked for; None: none are."""
        terms = record["content"]
        if record["kind"] != "open" or terms.get("format") != FORMAT:
            raise LedgerError(
                f"scope {self.scope!r} was written in another format than {FORMAT}, which this version reads."
            )
        for name, value in asked.items():
            if value is not None and value != terms[name]:
                raise ValueError(
                    f"scope {self.scope!r} was opened with {name} {terms[name]!r}, now it is {value!r}. A budget is "
                    "declared once; leave it out, or declare another scope for other images."
                )

    def _check_labels(self, request: Request, taken: Sequence[Part]) -> None:
        """Raise ValueError if others would pay than before; warn where pids of the same images moved."""
        background = request.public.get("background_pids")
        if self.unit == "person" and background != self.background_pids:
            raise ValueError(
                f"background_pids is {background}; scope {self.scope!r} accounts per person and was opened with "
                f"{self.background_pids}. Keep to these."
            )
        known = {row: pid for part in taken for row, pid in part.rows.items()}
        moved = sorted(row for row, pid in request.rows.items() if known.get(row, pid) != pid)
        if not moved:
            return
        what = (
            f"row {moved[0]!r} (and {len(moved) - 1} more) had pid {known[moved[0]]} in an earlier release, now "
            f"{request.rows[moved[0]]}"
        )
        if self.unit == "person":
            raise ValueError(
                f"{what}; scope {self.scope!r} accounts per person, so others would pay. Restore the former pids."
            )
        _log.warning(
            "%s: opt-outs, budgets and deletions are by pid, and earlier ones may now mean other people. Restore the "
            "pids unless they were wrong.",
            what,
        )

    def _close(self, reservation: str, kind: str, content: dict[str, Any]) -> None:
        with self.locked():
            part = self.parts().get(reservation)
            if part is None or part.state != "reserved":
                raise ValueError(
                    f"reservation {reservation!r} is {part.state if part else 'not in the ledger'}; only one that is "
                    "reserved can be committed or voided. See tools/ledger.py show."
                )
            self._journal.append(kind, {"reservation": reservation, **content})
