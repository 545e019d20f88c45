"""A stored release as the gallery that evaluation matches against: what an operator would really search."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .charges import Charge, compose
from .exact import LatticeGaussian
from .mechanisms import DEFAULT_DELTA
from .protected import ProtectedGallery, ProtectedRows, clean_units, unit_rows
from .stored import load_release
from .truth import labels_of_rows, load_maps_of

_log = logging.getLogger(__name__)


class StoredGallery(ProtectedGallery):
    """Evaluates a stored release; nothing is drawn, and nothing is spent.

    Args:
        path: folder of the release.
        truth: files written beside an anonymous release, and each append to it, that map its rows to labels; an
            enrolled release carries its labels itself.
        model: fingerprint of the weights that make the queries; a release of other weights is warned of.
        enroll_cameras: person unit: camids that the prototypes were made from, whose queries are not counted; none:
            those that the manifest names.
        background_pids: pids that are no person.

    Raises:
        FileNotFoundError, ValueError: no whole release there; labels that are missing, or of another release.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        truth: Sequence[str | Path] = (),
        model: str = "",
        enroll_cameras: Sequence[int] = (),
        background_pids: Sequence[int] = (0,),
    ) -> None:
        self.release = load_release(path)
        manifest = self.release.manifest
        self.unit = manifest["unit"]
        self.background_pids = tuple(background_pids)
        self._enroll_cameras = tuple(enroll_cameras) or tuple(manifest.get("cameras") or ())
        if self.unit == "person" and not self._enroll_cameras:
            _log.warning(
                "release %s does not say which cameras its prototypes are from: queries of the same cameras are "
                "counted, and figures flatter. Name them: privacy.gallery.enroll_cameras",
                manifest["release"],
            )
        self._transform = self.release.transform()
        self._labels = self._read_labels(truth)
        if model and manifest["model"] != model:
            _log.warning(
                "release %s was made with other weights (%s) than the queries (%s): figures will be poor.",
                manifest["release"],
                manifest["model"],
                model,
            )

    @property
    def label(self) -> str:
        """The release's name."""
        return f"release_{self.release.manifest['release']}"

    def transform_query(self, features: Tensor) -> Tensor:
        """Return query rows (n, d) through the release's public transform."""
        return unit_rows(self._transform.transform(unit_rows(features)))

    def protect_rows(self, features: Tensor, pids: np.ndarray, camids: np.ndarray) -> ProtectedRows:
        """Return the released rows; the clean ones are not looked at."""
        released_pids, released_camids = self._labels
        return ProtectedRows(
            features=unit_rows(torch.from_numpy(np.asarray(self.release.features))),
            pids=released_pids,
            camids=released_camids,
            places=np.full(len(released_pids), -1),
        )

    def clean_rows(self, features: Tensor, pids: np.ndarray, camids: np.ndarray) -> ProtectedRows:
        """Return the clean rows of the same units, through the same transform."""
        made, _ = clean_units(
            self.transform_query(features),
            pids,
            camids,
            unit=self.unit,
            cameras=self._enroll_cameras,
            max_rows_per_person=self.release.manifest["max_rows_per_person"],
            background_pids=self.background_pids,
        )
        return made

    def queried(self, camids: np.ndarray) -> np.ndarray:
        """Return which queries are of cameras that the prototypes were not made from."""
        if self.unit == "image":
            return super().queried(camids)
        return ~np.isin(camids, self._enroll_cameras)

    def person_level_epsilon(self, rows: float) -> float:
        """Epsilon of a person with that many rows, at the largest budget of a row."""
        manifest = self.release.manifest
        epsilon = max([manifest["epsilon"], *(one["epsilon"] for one in manifest["individual_budgets"] or ())])
        if self.unit == "person":
            return float(epsilon)
        mu = manifest["mu"]
        if mu is not None and epsilon > manifest["epsilon"]:
            dim = self.release.features.shape[1]
            mu = LatticeGaussian(epsilon, manifest["delta"], dim, manifest["mechanism"]["clip_norm"]).mu
        charge = Charge(epsilon, manifest["delta"], mu=mu, rows=max(1, int(np.ceil(rows))))
        return compose([charge], manifest["delta"] or DEFAULT_DELTA)

    def describe(self) -> dict[str, Any]:
        """What the manifest says of mechanism, unit and noise, JSON-ready."""
        manifest = self.release.manifest
        kept = ("release", "unit", "protocol", "adjacency", "max_rows_per_person", "transform", "prior", "noise")
        return {**manifest["mechanism"], **{key: manifest.get(key) for key in kept}, "query": "clean"}

    def banner(self) -> str:
        """Name and budget of the release."""
        manifest = self.release.manifest
        return (
            f"##### Stored release {manifest['release']}: {manifest['mechanism']['mechanism']}, epsilon "
            f"{manifest['epsilon']:g}, delta {manifest['delta']:g} for one {self.unit} (replace), "
            f"{manifest['protocol']} #####"
        )

    def _read_labels(self, truth: Sequence[str | Path]) -> tuple[np.ndarray, np.ndarray]:
        release, flag = self.release, "privacy.gallery.truth"
        name, parts = release.manifest["release"], release.manifest["parts"]
        maps = load_maps_of(parts, truth, flag=flag)
        if release.pids is not None:
            return release.pids, np.full(len(release.pids), -1) if release.camids is None else release.camids
        if not maps:
            raise ValueError(
                f"release {name!r} is anonymous: its rows carry no pids to evaluate with. Give the map that was "
                f"written with it: {flag} FILE"
            )
        named = labels_of_rows(maps, parts, release.row_ids, f"release {name!r}", flag=flag)
        labels = np.array([named[row] for row in release.row_ids], dtype=np.int64)
        return labels[:, 0], labels[:, 1]
