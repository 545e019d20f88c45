"""What evaluation asks of a protected gallery, whether its noise is research noise or that of a stored release."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..components import Component
from .units import GalleryRows, Unit, group_units, select_rows, unit_features

_SQUARES = (1e-150, 1e150)  # lengths whose squares float64 holds


@dataclass(frozen=True)
class ProtectedRows:
    """Rows of a protected gallery.

    Attributes:
        features: (n, d), unit length.
        pids, camids: (n,); camid -1 for a prototype.
        places: (n,), position in the clean gallery of the row, or of a prototype's first row; -1 where unknown.
    """

    features: Tensor
    pids: np.ndarray
    camids: np.ndarray
    places: np.ndarray


class ProtectedGallery(Component):
    """A component that evaluation matches queries against, beside the clean gallery.

    Attributes:
        unit: unit of privacy, ``image`` or ``person``.
        background_pids: pids that are no person.
        needs_training_features: whether `fit` needs the training split.
        fit_images, fit_views, seed: how many training images it wants (0: all), how many augmented views of each beside
            them, and the seed of both.
    """

    name = "dp_gallery"
    in_training = False
    unit: str
    background_pids: Sequence[int]
    fit_images: int = 0
    fit_views: int = 0
    seed: int = 1

    @property
    def is_whole_gallery(self) -> bool:
        """Whether its rows are those of the clean gallery, one for one and in their order."""
        return False

    @property
    @abstractmethod
    def label(self) -> str:
        """One word for folders and tags."""

    @property
    def needs_training_features(self) -> bool:
        """Whether anything has to be fitted."""
        return False

    def fit(self, train_features: Tensor | None, train_pids: np.ndarray | None = None) -> ProtectedGallery:
        """Fit what is fitted on the training split."""
        return self

    def require_other_people(self, features: Tensor) -> None:
        """Raise ValueError if what stands before the noise was fitted on rows of this gallery, as far as is known."""
        return

    @abstractmethod
    def transform_query(self, features: Tensor) -> Tensor:
        """Return query rows (n, d) as they are matched, unit length."""

    @abstractmethod
    def protect_rows(self, features: Tensor, pids: np.ndarray, camids: np.ndarray) -> ProtectedRows:
        """Return the protected gallery of clean rows (n, d) with labels (n,)."""

    @abstractmethod
    def clean_rows(self, features: Tensor, pids: np.ndarray, camids: np.ndarray) -> ProtectedRows:
        """Return the unprotected rows of the same units."""

    def queried(self, camids: np.ndarray) -> np.ndarray:
        """Return which queries are counted: in the person unit those of cameras that nobody was enrolled from."""
        return np.ones(len(camids), dtype=bool)

    @abstractmethod
    def person_level_epsilon(self, rows: float) -> float:
        """Epsilon of a person with that many rows."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Mechanism, transform, unit and noise source, JSON-ready."""

    @abstractmethod
    def banner(self) -> str:
        """What a reader has to know before the protected figures."""


def clean_units(
    features: Tensor,
    pids: np.ndarray,
    camids: np.ndarray,
    *,
    unit: str,
    cameras: Collection[int],
    max_rows_per_person: int,
    background_pids: Sequence[int],
) -> tuple[ProtectedRows, list[Unit]]:
    """Return the rows that go into a mechanism, in the gallery's order, and the units that they are of.

    Args:
        features: (n, d), after the public transform.
        pids: (n,).
        camids: (n,).
        unit: ``image``: the rows; ``person``: one mean a person, background rows as they are.
        cameras: camids whose rows go in; none: all.
        max_rows_per_person: as in :func:`.units.select_rows`.
        background_pids: pids that are no person.
    """
    ids = [f"{index:012d}" for index in range(len(pids))]
    rows = select_rows(
        GalleryRows(features, ids, pids, camids),
        background_pids=background_pids,
        max_rows_per_person=max_rows_per_person,
        cameras=cameras,
    )
    units = sorted(group_units(rows, unit, background_pids), key=lambda one: one.members)
    made = ProtectedRows(
        features=torch.from_numpy(unit_features(np.asarray(rows.features), units)),
        pids=np.array([one.pid for one in units]),
        camids=np.array([one.camid for one in units]),
        places=np.array([int(rows.row_ids[one.members[0]]) for one in units]),
    )
    return made, units


def unit_rows(features: Tensor) -> Tensor:
    """Scale rows (n, d) to length 1, in float64; zero rows stay zero. No row depends on the others."""
    rows = torch.as_tensor(features, dtype=torch.float64)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    odd = (norms < _SQUARES[0]) | (norms > _SQUARES[1])
    if bool(odd.any()):  # by a power of two, which changes no digit
        digits, powers = torch.frexp(rows)
        powers = powers.masked_fill(digits == 0, -5000)  # below all: zero is no size
        scaled = digits * torch.exp2((powers - powers.amax(dim=1, keepdim=True)).double())
        rows = torch.where(odd & torch.isfinite(rows), scaled, rows)
    return F.normalize(rows, dim=1, eps=1e-300)
