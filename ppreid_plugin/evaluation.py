"""Evaluation inside the engine: extraction once, exact ranking, and the figures of a protected gallery."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from .dp.gallery import DPGallery
from .progress import track
from .retrieval import EnrolledResult, RankingResult, evaluate_distances, evaluate_enrolled
from .toolbox import metrics


class FeatureError(ValueError):
    """Extracted features that cannot be used; the message names the images."""


@dataclass(frozen=True)
class Extracted:
    """Features of one set with their labels: features (n, d) on the CPU, pids (n,), camids (n,)."""

    features: Tensor
    pids: np.ndarray
    camids: np.ndarray

    def with_features(self, features: Tensor) -> Extracted:
        """Return the same rows with other features."""
        return dataclasses.replace(self, features=features)


@dataclass
class ProtectedResult:
    """Figures of one protected gallery, in both protocols.

    Attributes:
        anonymous: every row an unlabeled image (torchreid's protocol).
        enrolled: rows carry a pid, one template a person; None where no query has a template.
        clean_enrolled: the same of the unprotected gallery.
        person_epsilon: person-level epsilon at the median and at the largest number of rows a person.
        description: mechanism and parameters (`DPGallery.describe`).
    """

    anonymous: RankingResult
    enrolled: EnrolledResult | None
    clean_enrolled: EnrolledResult | None
    person_epsilon: tuple[float, float]
    description: dict[str, Any]

    def table(self, name: str, clean: RankingResult) -> str:
        """A table in percent: clean and protected, both protocols, epsilon beside each protected row."""
        epsilon = self.description["epsilon"]
        image = "none: not protected" if epsilon is None else f"{epsilon:g} an image"
        rows = [
            ["anonymous", "clean", clean.rank1, clean.mAP, clean.mINP, "-"],
            ["anonymous", "protected", self.anonymous.rank1, self.anonymous.mAP, self.anonymous.mINP, image],
        ]
        if self.enrolled is not None and self.clean_enrolled is not None:
            median, largest = self.enrolled.rows_median, self.enrolled.rows_largest
            person = (
                f"{image}; a person: {self.person_epsilon[0]:.3g} at {median:g} rows (median), "
                f"{self.person_epsilon[1]:.3g} at {largest} (largest)"
            )
            rows += [
                ["enrolled", "clean", self.clean_enrolled.rank1, self.clean_enrolled.mrr, None, "-"],
                ["enrolled", "protected", self.enrolled.rank1, self.enrolled.mrr, None, person],
            ]
        shown = [[p, g, *(None if f is None else f"{f:.1%}" for f in figures), e] for p, g, *figures, e in rows]
        headers = ["protocol", "gallery", "rank-1", "mAP", "mINP", "epsilon"]
        return f"{name}:\n" + tabulate(shown, headers=headers, missingval="-", disable_numparse=True)


@dataclass
class TargetResult:
    """Figures of one target: the clean gallery, and the protected one of each `DPGallery`, in order."""

    clean: RankingResult
    protected: list[ProtectedResult] = field(default_factory=list)


@torch.no_grad()
def extract(engine: Any, loader: Any, description: str, items: Sequence[Any] = ()) -> Extracted:
    """Extract a set with the engine's own ``parse_data_for_eval`` and ``extract_features``.

    Args:
        engine: a torchreid engine in evaluation mode.
        loader: torchreid data loader.
        description: what it is, for progress and errors.
        items: tuples (path(s), ...) in the loader's order, to name images in errors.

    Raises:
        FeatureError: a feature holds NaN or infinity; the images are named.
    """
    features, pids, camids = [], [], []
    start = time.perf_counter()
    size = getattr(loader, "batch_size", 1) or 1
    for data in track(loader, f"Extracting {description}", per_item=size, unit="images"):
        images, batch_pids, batch_camids = engine.parse_data_for_eval(data)
        if engine.use_gpu:
            images = images.cuda()
        features.append(engine.extract_features(images).float().cpu())
        pids.extend(batch_pids.tolist())
        camids.extend(batch_camids.tolist())
    extracted = Extracted(torch.cat(features), np.asarray(pids), np.asarray(camids))
    seconds = time.perf_counter() - start
    count, dim = extracted.features.shape
    print(f"Extracted {description}: {count} x {dim} in {seconds:.1f} s ({count / max(seconds, 1e-9):.0f} a second)")
    _check_finite(extracted.features, description, items)
    return extracted


def _check_finite(features: Tensor, description: str, items: Sequence[Any]) -> None:
    bad = (~torch.isfinite(features).all(1)).nonzero().flatten().tolist()
    if not bad:
        return
    named = [str(items[row][0]) if len(items) == len(features) else f"row {row}" for row in bad[:3]]
    raise FeatureError(
        f"features of {description}: {len(bad)} of {len(features)} rows hold NaN or infinity, such as those of "
        f"{', '.join(named)}. Check the weights (did training diverge?) and these images."
    )


def light_loader(extracted: Extracted) -> dict[str, Tensor]:
    """Return one batch, as torchreid's loaders give them, whose "images" are features."""
    return {
        "img": extracted.features,
        "pid": torch.as_tensor(extracted.pids),
        "camid": torch.as_tensor(extracted.camids),
    }


@contextmanager
def exact_ranking(*, exclude_same_camera: bool = True, max_rank: int = 50) -> Iterator[list[RankingResult]]:
    """Put our exact ranking in place of torchreid's ``evaluate_rank`` inside the block.

    Same figures; it needs no full sort, accepts galleries smaller than ``max_rank`` and also gives mINP. CUHK03's
    single-shot metric stays torchreid's own, beside which the full figures are computed.

    Yields:
        The list that each evaluation's result is appended to.
    """
    results: list[RankingResult] = []
    original = metrics.evaluate_rank

    def evaluate_rank(
        distmat: np.ndarray,
        q_pids: np.ndarray,
        g_pids: np.ndarray,
        q_camids: np.ndarray,
        g_camids: np.ndarray,
        max_rank: int = max_rank,
        use_metric_cuhk03: bool = False,
        use_cython: bool = True,
    ) -> tuple[np.ndarray, float]:
        protocol = "market1501" if exclude_same_camera else "all"
        result = evaluate_distances(distmat, q_pids, g_pids, q_camids, g_camids, protocol=protocol, max_rank=max_rank)
        results.append(result)
        if use_metric_cuhk03:
            return original(distmat, q_pids, g_pids, q_camids, g_camids, use_metric_cuhk03=True)
        return result.cmc, result.mAP

    metrics.evaluate_rank = evaluate_rank
    try:
        yield results
    finally:
        metrics.evaluate_rank = original


def protected_result(
    gallery: DPGallery,
    clean: dict[str, Extracted],
    protected: dict[str, Extracted],
    anonymous: RankingResult,
    *,
    exclude_same_camera: bool,
) -> ProtectedResult:
    """Compute the enrolled protocol for the clean and the protected gallery and gather both protocols' figures."""
    enrolled = _enrolled(protected, gallery.background_pids, exclude_same_camera)
    rows = (enrolled.rows_median, enrolled.rows_largest) if enrolled is not None else (1, 1)
    return ProtectedResult(
        anonymous=anonymous,
        enrolled=enrolled,
        clean_enrolled=_enrolled(clean, gallery.background_pids, exclude_same_camera),
        person_epsilon=(gallery.person_level_epsilon(rows[0]), gallery.person_level_epsilon(rows[1])),
        description=gallery.describe(),
    )


def _enrolled(
    sets: dict[str, Extracted], background_pids: Sequence[int], exclude_same_camera: bool
) -> EnrolledResult | None:
    query, gallery = sets["query"], sets["gallery"]
    known = set(gallery.pids.tolist()) - set(background_pids)
    if not known & set(query.pids.tolist()):
        return None
    return evaluate_enrolled(
        query.features,
        gallery.features,
        query.pids,
        gallery.pids,
        query.camids,
        gallery.camids,
        background_pids=background_pids,
        exclude_same_camera=exclude_same_camera,
    )
