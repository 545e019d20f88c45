"""A planned release: the rows that go in, their units, what it costs and what is told about it. Spends nothing."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.dp.arrays import directions, to_rows
from ppreid_plugin.dp.disclosure import bounds, person_level
from ppreid_plugin.dp.journal import canonical, require_name
from ppreid_plugin.dp.mechanisms import Mechanism
from ppreid_plugin.dp.reservations import Request
from ppreid_plugin.dp.sampling import release_sampler
from ppreid_plugin.dp.transform_files import require_not_fitted_on
from ppreid_plugin.dp.transforms import PublicTransform
from ppreid_plugin.dp.units import GalleryRows, charged_units, group_units, released_name, select_rows, unit_features
from ppreid_plugin.number_checks import require_positive

PROTOCOLS = ("anonymous", "enrolled")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReleaseTerms:
    """What a release is, beside its features and mechanism.

    Args:
        name: the user's name of it; releases are numbered ``<name>-0001``, ...
        model: fingerprint of the encoder's weights, such as the SHA-256 of the checkpoint.
        unit: unit of privacy, ``image`` or ``person`` (one prototype row a person).
        protocol: ``anonymous`` (no pids or camids, rows shuffled) or ``enrolled``.
        background_pids: pids that are no person; their rows are units of their own.
        max_rows_per_person: rows of one pid that go in, spread over his cameras, then by row id; 0: all.
        cameras: camids whose rows go in; none: all.
        budgets: pid to an epsilon of its own, for each of its rows.
        opt_out: pids that are left out.
        prior: provenance of the codebook, where the mechanism has one: source, smallest cell in people.
        controller, purpose: who answers for the release, and what for.
        expires: ISO date after which it is to be deleted; empty: none.

    Raises:
        ValueError: an argument out of range.
    """

    name: str
    model: str
    unit: str = "image"
    protocol: str = "anonymous"
    background_pids: Collection[int] = (0,)
    max_rows_per_person: int = 0
    cameras: Collection[int] = ()
    budgets: Mapping[int, float] = field(default_factory=dict)
    opt_out: Collection[int] = ()
    prior: Mapping[str, Any] = field(default_factory=dict)
    controller: str = ""
    purpose: str = ""
    expires: str = ""

    def __post_init__(self) -> None:
        require_name("name", self.name)
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol is {self.protocol!r}; allowed: {', '.join(PROTOCOLS)}.")
        if not self.model or not isinstance(self.model, str):
            raise ValueError(f"model is {self.model!r}, must be a fingerprint, such as the checkpoint's SHA-256.")
        for pid, epsilon in self.budgets.items():
            require_positive(f"budgets[{pid}]", epsilon)
        if self.expires:
            try:
                day = date.fromisoformat(self.expires)
            except ValueError:
                raise ValueError(f"expires is {self.expires!r}, must be a date such as 2027-12-31.") from None
            object.__setattr__(self, "expires", day.isoformat())

    def require_current(self) -> None:
        """Raise ValueError if what is drawn now would have expired."""
        if self.expires and date.fromisoformat(self.expires) < date.today():
            raise ValueError(f"expires is {self.expires!r}, which is over: it would be expired when it is drawn.")


class ReleasePlan:
    """Rows, units, costs and public parameters of a release before it is drawn.

    Args:
        gallery: all rows with their public labels.
        mechanism: what protects them.
        transform: public transform, fitted on other people.
        terms: the rest.

    Raises:
        ValueError: nothing to release, a mechanism that has research noise only, a transform that was fitted on these
            rows, or a value out of range.
        RuntimeError: the transform is not fitted.
    """

    def __init__(
        self, gallery: GalleryRows, mechanism: Mechanism, transform: PublicTransform, terms: ReleaseTerms
    ) -> None:
        self.terms, self.mechanism, self.transform = terms, mechanism, transform
        require_not_fitted_on(transform, gallery.features)  # other rows of the same people are as bad
        self.gallery = select_rows(
            gallery,
            background_pids=terms.background_pids,
            max_rows_per_person=terms.max_rows_per_person,
            opt_out=terms.opt_out,
            cameras=terms.cameras,
        )
        self.units = group_units(self.gallery, terms.unit, terms.background_pids)
        if len({unit.row_id for unit in self.units}) < len(self.units):
            raise ValueError("row_ids holds a name of the form person-<pid> that a prototype has too. Rename it.")
        self._prepare()
        self._warn()

    def _prepare(self) -> None:
        self._features = unit_features(transformed(self.transform, self.gallery.features), self.units)
        self.sampler = release_sampler(self.mechanism, self._features.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the released rows, where they are rows."""
        return int(4 * self._features.size)

    @cached_property
    def epsilons(self) -> npt.NDArray[np.float64]:
        """Budget of each unit."""
        budgets, common = self.terms.budgets, self.mechanism.epsilon
        return np.array([budgets.get(unit.pid, common) for unit in self.units], dtype=np.float64)

    def rows_of(self, units: Collection[str]) -> dict[str, np.ndarray]:
        """Draw the released rows of these units, in the order of :attr:`units`; the only place where noise is drawn."""
        names = set(units)
        chosen = np.array([unit.name in names for unit in self.units])
        arrays: dict[str, np.ndarray] = {}
        epsilons = self.epsilons[chosen]
        for epsilon in np.unique(epsilons):
            here = epsilons == epsilon
            for name, drawn in self.sampler.draw(self._features[chosen][here], float(epsilon)).items():
                arrays.setdefault(name, np.empty((len(epsilons), *drawn.shape[1:]), drawn.dtype))[here] = drawn
        return arrays

    def request(self, accounting: str, folder: Path) -> Request:
        """Return the release as the ledger knows it, in a scope that accounts per ``accounting``."""
        charges = {epsilon: self.sampler.charge(epsilon) for epsilon in set(self.epsilons.tolist())}
        background = self.terms.background_pids
        return Request(
            name=self.terms.name,
            public=self.public(),
            rows=dict(zip(self.gallery.row_ids, self.gallery.pids.tolist(), strict=True)),
            units={
                unit.name: (charged_units(unit, self.gallery, accounting, background), charges[epsilon])
                for unit, epsilon in zip(self.units, self.epsilons.tolist(), strict=True)
            },
            members={unit.name: [self.gallery.row_ids[index] for index in unit.members] for unit in self.units},
            folder=folder,
            charge_at=self.sampler.charge,
            opt_out=sorted({int(pid) for pid in self.terms.opt_out}),
        )

    def addable(self, units: Collection[str], held: Mapping[str, int]) -> list[str]:
        """Return those of new units that may be added to a release: no more of a person than `max_rows_per_person`.

        Args:
            units: names of units that the release does not hold.
            held: pid of each unit that it holds, by the unit's name.

        Raises:
            ValueError: a row whose name in the release is that of one which it holds.
        """
        limit, background = self.terms.max_rows_per_person, self.terms.background_pids
        counts, names = Counter(held.values()), {released_name(unit) for unit in held}
        new, added = set(units), []
        for unit in self.units:
            if unit.name not in new:
                continue
            if unit.row_id in names:
                raise ValueError(f"row_ids holds {unit.row_id!r}, which is a row of the stored release. Rename it.")
            if limit and self.terms.unit == "image" and unit.pid not in background:
                if counts[unit.pid] >= limit:
                    continue
                counts[unit.pid] += 1
            added.append(unit.name)
        return added

    def public(self) -> dict[str, Any]:
        """Return what a release is known by, beside its name and rows: JSON-ready, no feature contents."""
        terms = self.terms
        return {
            "model": terms.model,
            "transform": fingerprint(self.transform.describe(), transform_state(self.transform)),
            "prior": fingerprint({}, self.sampler.arrays) if self.sampler.arrays else None,
            "mechanism": self.sampler.describe(self.mechanism.epsilon),
            "unit": terms.unit,
            "protocol": terms.protocol,
            "background_pids": sorted(set(terms.background_pids)),
            "max_rows_per_person": terms.max_rows_per_person,
            **({"cameras": sorted(set(terms.cameras))} if terms.cameras else {}),
            "budgets": {str(pid): float(epsilon) for pid, epsilon in sorted(terms.budgets.items())},
        }

    def with_terms_of(self, manifest: Mapping[str, Any]) -> ReleasePlan:
        """Return the plan with what an earlier part's manifest says of controller, purpose, expiry and prior.

        What the plan says itself goes before it; so an append drops nothing by leaving it out.

        Raises:
            ValueError: a later expiry than that of the rows which are there, or they have expired.
        """
        said = {name: value for name, value in self.terms.prior.items() if value not in ("", "not stated")}
        name, told, asked = manifest["release"], manifest.get("expires") or "", self.terms.expires
        if told and asked > told:
            raise ValueError(
                f"expires is {asked!r}; release {name!r} has rows that were promised to be deleted after {told!r}. An "
                "append may bring the date forward only: leave it out, or make a release of another name."
            )
        if told and not asked and date.fromisoformat(told) < date.today():
            raise ValueError(
                f"append to release {name!r}: it expired on {told}. Purge it (tools/ledger.py purge); draw a new one."
            )
        made = copy.copy(self)
        made.terms = dataclasses.replace(
            self.terms,
            controller=self.terms.controller or manifest.get("controller") or "",
            purpose=self.terms.purpose or manifest.get("purpose") or "",
            expires=self.terms.expires or manifest.get("expires") or "",
            prior={**(manifest.get("prior") or {}), **said},
        )
        return made

    def with_fits(self, *, transform: PublicTransform, mechanism: Mechanism | None = None) -> ReleasePlan:
        """Return the plan with a fitted transform, and a mechanism with its codebook, in place of its own."""
        made = copy.copy(self)
        made.transform, made.mechanism = transform, mechanism or self.mechanism
        made._prepare()
        return made

    def summary(self, pids: Sequence[int] | None = None) -> dict[str, Any]:
        """Return budget, noise and person-level figures, JSON-ready: what ``--dry-run`` prints.

        Args:
            pids: pid of each row of the release, rows that were released before included; None: those of this plan.
        """
        pids = [unit.pid for unit in self.units] if pids is None else pids
        budgets, common = self.terms.budgets, self.mechanism.epsilon
        described = self.sampler.describe(common)
        levels, counts = np.unique([budgets.get(pid, common) for pid in pids], return_counts=True)
        *_, charge = (self.sampler.charge(float(level)) for level in levels)  # of the largest; all are checked
        rows_of_people = Counter(pid for pid in pids if pid not in self.terms.background_pids).values()
        return {
            "mechanism": described,
            "epsilon": self.mechanism.epsilon,
            "delta": self.mechanism.delta,
            "pure": charge.delta == 0,
            "sensitivity": described.get("sensitivity"),
            "sigma": described.get("sigma"),
            "mu": self.sampler.charge(self.mechanism.epsilon).mu,
            "unit": self.terms.unit,
            "adjacency": "replace",
            "protocol": self.terms.protocol,
            "rows": len(pids),
            "individual_budgets": None
            if levels.tolist() == [self.mechanism.epsilon]
            else [{"epsilon": float(e), "rows": int(n)} for e, n in zip(levels, counts, strict=True)],
            "max_rows_per_person": self.terms.max_rows_per_person,
            "cameras": sorted(self.terms.cameras) or None,
            "opted_out": len(set(self.terms.opt_out)),
            "background_rows": sum(pid in self.terms.background_pids for pid in pids),
            **person_level(sorted(rows_of_people), charge),
            "bounds": bounds(len(rows_of_people), charge, self.terms.unit),
        }

    def _warn(self) -> None:
        rows = len(self.units)
        if self.mechanism.delta > 1 / (10 * rows):
            _log.warning(
                "delta is %g, above 1 / (10 n) = %g for %d rows: a row may be given away. Use a smaller one.",
                self.mechanism.delta,
                1 / (10 * rows),
                rows,
            )
        if zero := int((~np.any(self.gallery.features, axis=1)).sum()):
            _log.warning(
                "%d of %d rows are zero: the encoder says nothing of them, and they pay all the same. Look at them.",
                zero,
                len(self.gallery),
            )
        if self.terms.budgets:
            _log.warning(
                "%d people have a budget of their own: the noise level of a row is visible in the release, and so is "
                "who asked for more protection.",
                len(self.terms.budgets),
            )


def transform_state(transform: PublicTransform) -> dict[str, np.ndarray]:
    """Return the arrays of a fitted public transform: fitted on other people, and needed to transform queries."""
    return {name: np.asarray(array) for name, array in transform.state().items()}


def fingerprint(described: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """Return a SHA-256 of *public* parameters, which the release holds anyway."""
    digest = hashlib.sha256(canonical(dict(described)))
    for name, array in sorted(arrays.items()):
        digest.update(canonical([name, str(array.dtype), list(array.shape)]) + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def transformed(transform: PublicTransform, features: np.ndarray | torch.Tensor) -> npt.NDArray[np.float64]:
    """Return the rows normalized and put through the public transform: (n, d) -> (n, any), float64."""
    rows, _ = to_rows(features)
    return np.asarray(transform.transform(directions(rows.double().cpu())[0].numpy()), dtype=np.float64)
