"""Evaluation inside the engine: extracted sets, and the figures of a protected gallery."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from .dp.protected import ProtectedGallery, ProtectedRows
from .retrieval import (
    EnrolledResult,
    OpenSetResult,
    RankingResult,
    evaluate_enrolled,
    evaluate_open_set,
)

FPIRS = (0.01, 0.1)  # false positive identification rates of the open-set figures
_LEAST_PEOPLE = 8  # a quarter of them calibrates the threshold


@dataclass(frozen=True)
class Extracted:
    """Features of one set with their labels: features (n, d) on the CPU, pids (n,), camids (n,).

    ``places`` (n,) are the positions of the rows in the data set; None: all of it, in order.
    """

    features: Tensor
    pids: np.ndarray
    camids: np.ndarray
    places: np.ndarray | None = None

    def with_features(self, features: Tensor) -> Extracted:
        """Return the same rows with other features."""
        return dataclasses.replace(self, features=features)

    def joined(self, more: Extracted) -> Extracted:
        """Return these rows and then those of ``more``; places in a data set are left out."""
        return Extracted(
            torch.cat([self.features, more.features]),
            np.concatenate([self.pids, more.pids]),
            np.concatenate([self.camids, more.camids]),
        )

    def take(self, chosen: np.ndarray) -> Extracted:
        """Return the rows that ``chosen`` (n,), bool, marks."""
        places = np.arange(len(self.pids)) if self.places is None else self.places
        return Extracted(
            self.features[torch.from_numpy(chosen)], self.pids[chosen], self.camids[chosen], places[chosen]
        )


@dataclass
class ProtectedResult:
    """Figures of one protected gallery, in both protocols, and of the same rows unprotected.

    Attributes:
        anonymous: every row an unlabeled image (torchreid's protocol).
        enrolled: rows carry a pid, one template a person; None where no query has a template.
        open_set: the enrolled protocol with people who are not listed; None as ``enrolled``.
        clean_anonymous: of the clean rows of the same units, in the person unit and with a limit of rows; None where
            these are the whole gallery.
        clean_enrolled, clean_open_set: the same of the unprotected gallery.
        person_epsilon: person-level epsilon at the median and at the largest number of rows a person.
        description: mechanism and parameters (`ProtectedGallery.describe`).
    """

    anonymous: RankingResult
    enrolled: EnrolledResult | None
    open_set: OpenSetResult | None
    clean_anonymous: RankingResult | None
    clean_enrolled: EnrolledResult | None
    clean_open_set: OpenSetResult | None
    person_epsilon: tuple[float, float]
    description: dict[str, Any]

    def table(self, name: str, clean: RankingResult) -> str:
        """A table in percent: clean and protected, both protocols, epsilon beside each protected row.

        Args:
            name: of the target.
            clean: figures of the whole clean gallery.
        """
        epsilon, unit = self.description["epsilon"], self.description["unit"]
        cost = (
            "none: not protected" if epsilon is None else f"{epsilon:g} {'an image' if unit == 'image' else 'a person'}"
        )
        clean = self.clean_anonymous or clean
        rows = [
            ["anonymous", "clean", clean.rank1, clean.mAP, clean.mINP, None, None, "-"],
            ["anonymous", "protected", self.anonymous.rank1, self.anonymous.mAP, self.anonymous.mINP, None, None, cost],
        ]
        if self.enrolled is not None and self.clean_enrolled is not None:
            median, largest = self.enrolled.rows_median, self.enrolled.rows_largest
            person = cost
            if unit == "image":
                person = (
                    f"{cost}; a person: {self.person_epsilon[0]:.3g} at {math.ceil(median)} rows (median), "
                    f"{self.person_epsilon[1]:.3g} at {largest} (largest)"
                )
            for kind, enrolled, open_set, shown in (
                ("clean", self.clean_enrolled, self.clean_open_set, "-"),
                ("protected", self.enrolled, self.open_set, person),
            ):
                rates = [None] * len(FPIRS) if open_set is None else [point.tpir for point in open_set.points]
                rows.append(["enrolled", kind, enrolled.rank1, enrolled.mrr, None, *rates, shown])
        percent = [[p, g, *(None if f is None else f"{f:.1%}" for f in figures), e] for p, g, *figures, e in rows]
        headers = ["protocol", "gallery", "rank-1", "mAP", "mINP", *(f"TPIR@{rate:.0%}" for rate in FPIRS), "epsilon"]
        return f"{name}:\n" + tabulate(percent, headers=headers, missingval="-", disable_numparse=True)


@dataclass
class TargetResult:
    """Figures of one target: the clean gallery, and the protected one of each `ProtectedGallery`, in order."""

    clean: RankingResult
    protected: list[ProtectedResult] = field(default_factory=list)


def light_loader(extracted: Extracted) -> dict[str, Tensor]:
    """Return one batch, as torchreid's loaders give them, whose "images" are features."""
    return {
        "img": extracted.features,
        "pid": torch.as_tensor(extracted.pids),
        "camid": torch.as_tensor(extracted.camids),
    }


def protected_sets(
    gallery: ProtectedGallery, clean: dict[str, Extracted]
) -> tuple[dict[str, Extracted], dict[str, Extracted]]:
    """Return query and gallery as they are matched under ``gallery``, and the clean ones to compare them with.

    The clean ones are the sets as they are where the protected rows are the whole gallery; else the clean rows of the
    same units, which went through the public transform, with the queries as they are matched.

    Raises:
        ValueError: what is put before the noise was fitted on this gallery.
    """
    query, rows = clean["query"], clean["gallery"]
    gallery.require_other_people(rows.features)
    released = gallery.protect_rows(rows.features, rows.pids, rows.camids)
    counted = gallery.queried(query.camids)
    matched = query.take(counted)
    matched = matched.with_features(gallery.transform_query(matched.features).float())
    protected = {"query": matched, "gallery": _as_extracted(released)}
    if gallery.is_whole_gallery:
        return protected, clean
    return protected, {
        "query": matched,
        "gallery": _as_extracted(gallery.clean_rows(rows.features, rows.pids, rows.camids)),
    }


def protected_result(
    gallery: ProtectedGallery,
    clean: dict[str, Extracted],
    protected: dict[str, Extracted],
    baseline: dict[str, Extracted],
    anonymous: RankingResult,
    *,
    exclude_same_camera: bool,
    clean_anonymous: RankingResult | None = None,
) -> ProtectedResult:
    """Compute the enrolled protocol, closed and open, for the clean and the protected gallery and gather all figures.

    Args:
        gallery: the component.
        clean: query and gallery as extracted.
        protected: query and gallery as they are matched, from `protected_sets`.
        baseline: the clean ones they are compared with, from there too.
        anonymous: figures of the protected gallery in torchreid's protocol.
        exclude_same_camera: as in the evaluation.
        clean_anonymous: figures of the clean ones in that protocol, where the protected rows are not the whole gallery.
    """
    arguments = (gallery.background_pids, exclude_same_camera)
    enrolled = _enrolled(protected, *arguments)
    background = _background(gallery, clean["gallery"], transformed=not gallery.is_whole_gallery)
    clean_enrolled = _enrolled(baseline, *arguments)
    rows = (enrolled.rows_median, enrolled.rows_largest) if enrolled is not None else (1, 1)
    return ProtectedResult(
        anonymous=anonymous,
        enrolled=enrolled,
        open_set=open_set_figures(gallery, clean["gallery"], protected, exclude_same_camera=exclude_same_camera),
        clean_anonymous=clean_anonymous,
        clean_enrolled=clean_enrolled,
        clean_open_set=None if clean_enrolled is None else _open_set(baseline, background, *arguments),
        person_epsilon=(gallery.person_level_epsilon(rows[0]), gallery.person_level_epsilon(rows[1])),
        description=gallery.describe(),
    )


def _as_extracted(rows: ProtectedRows) -> Extracted:
    return Extracted(rows.features.float(), rows.pids, rows.camids, rows.places)


def open_set_figures(
    gallery: ProtectedGallery,
    clean: Extracted,
    protected: dict[str, Extracted],
    *,
    exclude_same_camera: bool = True,
) -> OpenSetResult | None:
    """Return the open-set figures of a protected gallery; background rows of the clean one are strangers to the list.

    Args:
        gallery: the component.
        clean: gallery as extracted.
        protected: from `protected_sets`.
        exclude_same_camera: as in the evaluation.

    Returns:
        None with fewer than eight people, or where no query has a template.
    """
    if not _known(protected, gallery.background_pids):
        return None
    background = _background(gallery, clean, transformed=True)
    return _open_set(protected, background, gallery.background_pids, exclude_same_camera)


def _known(sets: dict[str, Extracted], background_pids: Sequence[int]) -> set[int]:
    """Return the people of the gallery whom queries show."""
    known = set(sets["gallery"].pids.tolist()) - set(background_pids)
    return known & set(sets["query"].pids.tolist())


def _background(gallery: ProtectedGallery, clean: Extracted, *, transformed: bool) -> Extracted:
    background = clean.take(np.isin(clean.pids, list(gallery.background_pids)))
    if not transformed:
        return background
    return background.with_features(gallery.transform_query(background.features).float())


def _enrolled(
    sets: dict[str, Extracted], background_pids: Sequence[int], exclude_same_camera: bool
) -> EnrolledResult | None:
    if not _known(sets, background_pids):
        return None
    return evaluate_enrolled(*_rows(sets), background_pids=background_pids, exclude_same_camera=exclude_same_camera)


def _open_set(
    sets: dict[str, Extracted], background: Extracted, background_pids: Sequence[int], exclude_same_camera: bool
) -> OpenSetResult | None:
    if len(set(sets["gallery"].pids.tolist()) - set(background_pids)) < _LEAST_PEOPLE:
        return None
    return evaluate_open_set(
        *_rows(sets),
        background_features=background.features if len(background.pids) else None,
        background_camids=background.camids if len(background.pids) else None,
        background_pids=background_pids,
        exclude_same_camera=exclude_same_camera,
        fpirs=FPIRS,
    )


def _rows(sets: dict[str, Extracted]) -> tuple[Any, ...]:
    query, gallery = sets["query"], sets["gallery"]
    return query.features, gallery.features, query.pids, gallery.pids, query.camids, gallery.camids
