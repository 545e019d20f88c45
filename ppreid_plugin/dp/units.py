"""Which rows of a gallery are released, and to which unit of privacy each belongs. Decided by public data alone.

Row ids, pids and camids are public; features are not, and nothing here looks at them except to average the rows of
one person (the person unit).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.dp.arrays import directions, to_rows
from ppreid_plugin.number_checks import require_whole

UNITS = ("image", "person")
JUNK_PID = -1


@dataclass(frozen=True, eq=False)
class GalleryRows:
    """Features of a gallery and the public labels of its rows.

    Args:
        features: (n, d), float16, float32 or float64, numpy or torch: as the model returns them.
        row_ids: (n,), one name a row, unique: text or whole numbers.
        pids, camids: (n,), whole numbers.

    Raises:
        ValueError: shapes that differ, no rows, a row id twice, NaN or infinity (rows are named).
    """

    features: np.ndarray | torch.Tensor
    row_ids: Sequence[str]
    pids: npt.NDArray[np.int64]
    camids: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        rows, _ = to_rows(self.features)
        object.__setattr__(self, "features", rows.double().cpu().numpy())
        object.__setattr__(self, "row_ids", tuple(_row_id(row_id) for row_id in self.row_ids))
        for name in ("pids", "camids"):
            labels = np.asarray(getattr(self, name))
            if labels.dtype.kind not in "iu":
                raise ValueError(f"{name} is of type {labels.dtype}, must be whole numbers.")
            object.__setattr__(self, name, labels.astype(np.int64))
        lengths = {name: len(getattr(self, name)) for name in ("features", "row_ids", "pids", "camids")}
        if not rows.shape[1]:
            raise ValueError(f"features has shape {tuple(rows.shape)}, must have at least one column.")
        if len(set(lengths.values())) > 1 or not len(rows) or self.pids.ndim != 1 or self.camids.ndim != 1:
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ValueError(f"the gallery's arrays have these lengths: {told}; all must be the same and at least 1.")
        if len(set(self.row_ids)) < len(self.row_ids):
            seen: set[str] = set()
            twice = next(row_id for row_id in self.row_ids if row_id in seen or seen.add(row_id))  # type: ignore[func-returns-value]
            raise ValueError(f"row_ids holds {twice!r} twice. A row id names one image for good: make them unique.")

    def __len__(self) -> int:
        return len(self.row_ids)

    def take(self, order: npt.NDArray[np.int64]) -> GalleryRows:
        """Return the rows at these positions."""
        row_ids = [self.row_ids[index] for index in order.tolist()]
        return GalleryRows(self.features[order], row_ids, self.pids[order], self.camids[order])


@dataclass(frozen=True)
class Unit:
    """One row to release: an image, or a person's prototype.

    Args:
        name: in the ledger: ``image:<row id>`` or ``person:<pid>``.
        members: positions of its rows in the gallery, in the order of their ids.
        pid: of its rows.
        camid: of its row; -1 for a prototype.
    """

    name: str
    members: tuple[int, ...]
    pid: int
    camid: int

    @property
    def row_id(self) -> str:
        """Name of the released row: the image's row id, or ``person-<pid>``."""
        return released_name(self.name)


def released_name(unit: str) -> str:
    """Return the name of the released row of a unit, by the unit's name in the ledger.

    Example:
        >>> released_name("image:0001_c1s1_000151_01.jpg"), released_name("person:7")
        ('0001_c1s1_000151_01.jpg', 'person-7')
    """
    kind, name = unit.split(":", 1)
    return name if kind == "image" else f"person-{name}"


def select_rows(
    gallery: GalleryRows,
    *,
    background_pids: Collection[int] = (0,),
    max_rows_per_person: int = 0,
    opt_out: Collection[int] = (),
    cameras: Collection[int] = (),
) -> GalleryRows:
    """Return the rows to release, sorted by row id: without junk, people who opted out, and rows above the limit.

    Args:
        gallery: all rows.
        background_pids: pids that are no person; no limit holds for them.
        max_rows_per_person: rows of one pid that are kept: the first of each of his cameras by row id, then the second
            of each, and so on; 0 keeps all.
        opt_out: pids to leave out.
        cameras: camids whose rows go in; none: all.

    Raises:
        ValueError: nothing is left, or a limit below 0.
    """
    require_whole("max_rows_per_person", max_rows_per_person, least=0, hint="0: no limit")
    people: dict[int, list[tuple[int, int]]] = {}
    kept: list[int] = []
    of_camera: Counter[tuple[int, int]] = Counter()
    by_id = sorted(range(len(gallery)), key=lambda index: gallery.row_ids[index])
    for place, index in enumerate(by_id):
        pid, camid = int(gallery.pids[index]), int(gallery.camids[index])
        if pid == JUNK_PID or pid in opt_out or (cameras and camid not in cameras):
            continue
        if pid in background_pids or not max_rows_per_person:
            kept.append(place)
        else:
            people.setdefault(pid, []).append((of_camera[pid, camid], place))
            of_camera[pid, camid] += 1
    for rows in people.values():
        kept.extend(place for _, place in sorted(rows)[:max_rows_per_person])
    if not kept:
        raise ValueError(
            f"none of {len(gallery)} rows is left to release: all are junk (pid {JUNK_PID}), opted out, or of other "
            "cameras. Check pids and camids."
        )
    return gallery.take(np.asarray([by_id[place] for place in sorted(kept)], dtype=np.int64))


def group_units(gallery: GalleryRows, unit: str, background_pids: Collection[int] = (0,)) -> list[Unit]:
    """Return the rows to release, sorted by row id; background rows are units of their own, also in the person unit.

    Raises:
        ValueError: unknown unit.
    """
    if unit not in UNITS:
        raise ValueError(f"unit is {unit!r}; allowed: {', '.join(UNITS)}.")
    units: list[Unit] = []
    people: dict[int, list[int]] = {}
    for index, row_id in enumerate(gallery.row_ids):
        pid = int(gallery.pids[index])
        if unit == "person" and pid not in background_pids:
            people.setdefault(pid, []).append(index)
        else:
            units.append(Unit(f"image:{row_id}", (index,), pid, int(gallery.camids[index])))
    units += [Unit(f"person:{pid}", tuple(members), pid, -1) for pid, members in people.items()]
    return sorted(units, key=lambda one: one.row_id)


def unit_features(features: npt.NDArray[np.float64], units: Sequence[Unit]) -> npt.NDArray[np.float64]:
    """Return one unit-length row for each unit: its row, or the normalized mean of its unit-length rows.

    Shape:
        features: (n, d), after the public transform. Output: (number of units, d); rows of zeros stay zero.
    """
    unit_rows = directions(torch.from_numpy(features))[0].numpy()
    means = np.stack([unit_rows[list(unit.members)].mean(axis=0) for unit in units])
    return directions(torch.from_numpy(means))[0].numpy()


def charged_units(unit: Unit, gallery: GalleryRows, accounting: str, background_pids: Collection[int]) -> list[str]:
    """Return the ledger's accounts that one released row is charged to, in a scope that accounts per ``accounting``.

    A prototype protects each of its images at the same cost; an image tells about its person.
    """
    if accounting == "image":
        return [f"image:{gallery.row_ids[index]}" for index in unit.members]
    return [unit.name if unit.pid in background_pids else f"person:{unit.pid}"]


def _row_id(value: object) -> str:
    text = value.decode() if isinstance(value, bytes) else str(value)
    if not text or not text.isprintable() or len(text) > 1000:
        raise ValueError(f"row_ids holds {text[:80]!r}, must be printable text of 1 to 1000 characters.")
    return text
