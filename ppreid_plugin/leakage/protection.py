"""Protecting rows of one's own as a gallery was protected: what an attacker does who knows the mechanism.

The mechanism is public: its parameters stand in the manifest of a release, codebook and transform among its arrays.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from ..dp.audit_release import release_mechanisms
from ..dp.gallery import DPGallery
from ..dp.protected import unit_rows
from ..dp.stored import Release
from ..dp.units import GalleryRows, group_units, select_rows, unit_features
from .data import LeakageSet


def protect(rows: LeakageSet, protection: Release | DPGallery, seed: int) -> LeakageSet:
    """Return the rows protected with fresh research noise, one row a unit; ``clean`` holds them without the noise.

    ``redraw`` protects them once more with another seed.

    In the person unit a person becomes one row (or his enrolled rows at a share of the budget each, where the
    component says so); attributes are those of his first row, which is all the same for what is true of a person. A
    prototype has no image.

    Args:
        rows: clean rows.
        protection: a stored release, or a fitted gallery component.
        seed: of the noise.

    Raises:
        ValueError: rows of another model, or a manifest that cannot be read.
    """
    drawn = (
        _by_component(rows, protection, seed)
        if isinstance(protection, DPGallery)
        else _by_release(rows, protection, seed)
    )
    bare = dataclasses.replace(rows, images=None)
    return dataclasses.replace(drawn, redraw=lambda other: protect(bare, protection, other).features)


def released(
    release: Release, truth: Mapping[str, tuple[int, int]], *, background_pids: tuple[int, ...] = (0,)
) -> LeakageSet:
    """Return the rows of a stored release with the labels that ``truth`` has by the row's name.

    Args:
        release: the stored release.
        truth: pid and camid by row name; an enrolled release carries pids itself, and may need none.
        background_pids: pids that are no person.

    Raises:
        ValueError: a row that neither ``truth`` nor the release names, or that they name differently.
    """
    missing = [name for name in release.row_ids if name not in truth]
    if missing and release.pids is None:
        raise ValueError(
            f"the truth lacks {len(missing)} of the release's {len(release.row_ids)} rows, such as {missing[0]!r}. "
            "Give the map of --truth-out, of every append too, or an .npz of row_ids, pids, camids."
        )
    carried = () if release.pids is None else zip(release.row_ids, release.pids.tolist(), strict=True)
    if strange := [(name, pid) for name, pid in carried if name in truth and truth[name][0] != pid]:
        name, pid = strange[0]
        raise ValueError(
            f"the truth says that row {name!r} shows pid {truth[name][0]}; the release, which carries pids itself, "
            f"says {pid}. Give labels of this release, or none."
        )
    if missing:
        pids = np.asarray(release.pids)
        camids = np.full(len(pids), -1) if release.camids is None else release.camids
    else:
        pids, camids = np.array([truth[name] for name in release.row_ids], dtype=np.int64).T
    features = unit_rows(torch.from_numpy(np.asarray(release.features))).numpy()
    return LeakageSet(
        features, pids, camids, row_ids=tuple(release.row_ids), background_pids=background_pids,
        protection=release.manifest,
    )  # fmt: skip


def _by_component(rows: LeakageSet, gallery: DPGallery, seed: int) -> LeakageSet:
    drawn = copy.copy(gallery)
    drawn.seed = seed
    drawn.background_pids = tuple(rows.background_pids)  # training people are numbered from 0
    if drawn.unit == "person" and gallery.enroll_cameras is not None:
        mine = np.intersect1d(np.asarray(gallery.enroll_cameras), rows.camids)
        if not len(mine):
            drawn.enroll_cameras = None  # other people, seen by other cameras: the first half of theirs
    features = torch.from_numpy(rows.features)
    noised = drawn.protect_rows(features, rows.pids, rows.camids)
    clean = drawn.clean_rows(features, rows.pids, rows.camids)
    return _units(rows, noised.places, noised.pids, noised.camids, drawn.unit).with_features(
        noised.features.numpy(), protection=gallery, clean=clean.features.float().numpy()
    )


def _by_release(rows: LeakageSet, release: Release, seed: int) -> LeakageSet:
    manifest = release.manifest
    transformed = unit_rows(release.transform().transform(unit_rows(torch.from_numpy(rows.features)))).numpy()
    ids = [f"{index:012d}" for index in range(len(rows))]
    chosen = select_rows(
        GalleryRows(transformed, ids, rows.pids, rows.camids),
        background_pids=rows.background_pids,
        max_rows_per_person=manifest.get("max_rows_per_person") or 0,
    )
    units = group_units(chosen, manifest["unit"], rows.background_pids)
    clean = unit_features(np.asarray(chosen.features), units)
    places = np.array([int(chosen.row_ids[unit.members[0]]) for unit in units])
    noised = _by_levels(clean, release, seed)
    labeled = _units(
        rows, places, np.array([one.pid for one in units]), np.array([one.camid for one in units]), manifest["unit"]
    )
    return labeled.with_features(noised, protection=manifest, clean=clean.astype(np.float32))


def _by_levels(clean: npt.NDArray[np.float64], release: Release, seed: int) -> npt.NDArray[np.float32]:
    """Return the rows noised; where people have budgets of their own, each row at one drawn as often as there."""
    rng = np.random.default_rng(seed)
    mechanisms = release_mechanisms(release)
    levels = release.manifest.get("individual_budgets") or [{"rows": 1}]
    counts = np.array([level["rows"] for level in levels], dtype=np.float64)
    drawn = rng.choice(len(mechanisms), size=len(clean), p=counts / counts.sum())
    result: npt.NDArray[np.float64] | None = None
    for level, mechanism in enumerate(mechanisms):
        here = drawn == level
        if not here.any():
            continue
        rows = mechanism.privatize(clean[here], generator=rng)
        if result is None:
            result = np.empty((len(clean), rows.shape[1]))
        result[here] = rows
    return unit_rows(torch.from_numpy(np.asarray(result))).float().numpy()


def _units(
    rows: LeakageSet,
    places: npt.NDArray[np.int64],
    pids: npt.NDArray[np.int64],
    camids: npt.NDArray[np.int64],
    unit: str,
) -> LeakageSet:
    taken = rows.take(places)
    prototypes = unit == "person" and -1 in camids  # the image of a first row is not theirs
    return dataclasses.replace(taken, pids=pids, camids=camids, images=None if prototypes else taken.images)
