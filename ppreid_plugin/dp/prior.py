"""The prior of finite mechanisms: codebook and decoder, fitted on training features and published with the release.

There is no argument for gallery features: a codebook fitted on the gallery that is released breaks the proof. And a
published prior speaks about the people that it was fitted on: a cell of one person shows that person's mean feature.
So cells are counted in people, and small ones are refused unless the caller says that the prior is public.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.dp.arrays import directions, to_rows
from ppreid_plugin.dp.codebooks import gaussian_codebook, residual_codebook
from ppreid_plugin.dp.numerics import require_positive
from ppreid_plugin.dp.subset import PriorSubset

Floats = npt.NDArray[np.float64]
KINDS = ("gaussian", "kmeans", "raw", "residual")
_STRUCTURED = {"gaussian": gaussian_codebook, "residual": residual_codebook}


@dataclass(frozen=True)
class Prior:
    """What :func:`fit_prior` returns. Arrays are read-only; pass :meth:`options` to ``build_mechanism``.

    Attributes:
        codebook: unit codewords, (M, d).
        decoder: what stands for each symbol, (M, d): the mean of the training rows whose set holds it, or the codeword
            itself for ``residual`` and ``gaussian``.
        set_size: K.
        kind: ``gaussian``, ``kmeans``, ``raw`` or ``residual``.
        rows, people: how many training rows and people it was fitted on.
        people_per_cell: mean over the symbols of the number of people whose rows have the symbol in their set.
        smallest_cell: the least such number; 0 where a symbol is in no training row's set and stands for its codeword.
        people_per_codeword: as ``people_per_cell`` for the nearest codeword alone: the people behind a codeword itself.
        is_public: whether the caller said that the training people may be shown.
    """

    codebook: Floats
    decoder: Floats
    set_size: int
    kind: str
    rows: int
    people: int
    people_per_cell: float
    smallest_cell: int
    people_per_codeword: float
    is_public: bool

    def options(self) -> dict[str, Any]:
        """Return the further arguments of ``build_mechanism("prior_subset", ...)``."""
        return {"codebook": self.codebook, "set_size": self.set_size, "decoder": self.decoder}

    def describe(self) -> dict[str, Any]:
        """Return kind and sizes, ready for JSON: no feature values."""
        return {
            "prior": self.kind,
            "codewords": len(self.codebook),
            "columns": self.codebook.shape[1],
            "set_size": self.set_size,
            "fitted_rows": self.rows,
            "fitted_people": self.people,
            "people_per_cell": self.people_per_cell,
            "smallest_cell": self.smallest_cell,
            "people_per_codeword": self.people_per_codeword,
            "is_public": self.is_public,
        }


def fit_prior(
    train_features: np.ndarray | torch.Tensor,
    train_pids: npt.ArrayLike | torch.Tensor,
    *,
    codewords: int,
    set_size: int = 1,
    kind: str = "kmeans",
    min_people: float = 10,
    merge: bool = False,
    seed: int = 0,
    prior_is_public: bool = False,
) -> Prior:
    """Return codebook and decoder from features of the *training* split, transformed as the gallery will be.

    Args:
        train_features: rows of people outside the gallery, (n, d).
        train_pids: their labels, (n,), whole numbers.
        codewords: M, 2 to n; at most that many with ``merge``.
        set_size: K, 1 to M - 1.
        kind: ``kmeans``: normalized centers of k-means on the unit rows. ``raw``: M of the unit rows themselves, drawn
            without replacement; it publishes features outright, so it needs ``prior_is_public``. ``residual`` and
            ``gaussian``: many codewords from few published vectors (:mod:`.codebooks`); each symbol stands for its
            codeword, and the cells that count are the people behind the published vectors.
        min_people: a cell has to hold rows of at least that many people on average.
        merge: with k-means, take fewer and larger cells until ``min_people`` is met, instead of refusing.
        seed: of k-means and of the draw.
        prior_is_public: the training people are consenting, public or generated: no limit.

    Raises:
        ValueError: shapes, types, a number out of range, or cells with too few people.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(60, 4))
        >>> prior = fit_prior(rows, np.arange(60) % 20, codewords=4, set_size=2)
        >>> prior.codebook.shape, prior.people_per_cell >= 10
        ((4, 4), True)
    """
    unit, people = _checked(train_features, train_pids)
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; allowed: {', '.join(KINDS)}.")
    if kind == "raw" and not prior_is_public:
        raise ValueError(
            "kind is 'raw', which publishes training features as they are. Use kind='kmeans', or say "
            "prior_is_public=True if these people are consenting, public or generated."
        )
    if isinstance(codewords, bool) or not isinstance(codewords, (int, np.integer)) or not 2 <= codewords <= len(unit):
        raise ValueError(f"codewords is {codewords!r}, must be 2 to {len(unit)}, the number of training rows.")
    min_people, count = require_positive("min_people", min_people), int(codewords)
    if kind in _STRUCTURED:
        prior = _fit_structured(unit, people, count, set_size, kind, seed, prior_is_public)
        if not prior_is_public and prior.people_per_cell < min_people:
            raise ValueError(
                f"people_per_cell is {prior.people_per_cell:.3g} with {count} {kind} codewords, must be at least "
                f"{min_people:g}. Take fewer codewords, or say prior_is_public=True."
            )
        return prior
    while True:
        prior = _fit(unit, people, count, set_size, kind, seed, prior_is_public)
        if prior_is_public or prior.people_per_cell >= min_people:
            return prior
        fewer = min(count - 1, int(count * prior.people_per_cell / min_people))
        if not merge or fewer <= max(1, set_size):
            raise ValueError(
                f"people_per_cell is {prior.people_per_cell:.3g} with {count} codewords and set_size {set_size}, must "
                f"be at least {min_people:g}. Take about {max(2, fewer)} codewords (or merge=True), a larger set_size, "
                "or say prior_is_public=True if these people are consenting, public or generated."
            )
        count = fewer


def _fit(
    unit: Floats, people: npt.NDArray[np.int64], count: int, set_size: int, kind: str, seed: int, public: bool
) -> Prior:
    codebook = _codebook(unit, count, kind, seed)
    sets = PriorSubset(epsilon=1.0, codebook=codebook, set_size=set_size)
    nearest = PriorSubset(epsilon=1.0, codebook=codebook, set_size=1)
    sums, rows = np.zeros_like(codebook), np.zeros(len(codebook))
    seen = np.zeros((len(codebook), people.max() + 1), dtype=bool)
    owned = np.zeros_like(seen)
    step = max(1, 2**22 // len(codebook))
    for start in range(0, len(unit), step):
        part = torch.from_numpy(unit[start : start + step])
        members = sets.sets(part).numpy()
        sums += members.T.astype(np.float64) @ unit[start : start + step]
        rows += members.sum(axis=0)
        for where, mark in ((members, seen), (nearest.sets(part).numpy(), owned)):
            row, symbol = np.nonzero(where)
            mark[symbol, people[start + row]] = True
    decoder = np.where(rows[:, None] > 0, sums / np.maximum(rows, 1)[:, None], codebook)
    cells = seen.sum(axis=1)
    for array in (codebook, decoder):
        array.flags.writeable = False
    return Prior(
        codebook=codebook,
        decoder=decoder,
        set_size=sets.set_size,
        kind=kind,
        rows=len(unit),
        people=int(people.max()) + 1,
        people_per_cell=float(cells.mean()),
        smallest_cell=int(cells.min()),
        people_per_codeword=float(owned.sum(axis=1).mean()),
        is_public=public,
    )


def _fit_structured(
    unit: Floats, people: npt.NDArray[np.int64], count: int, set_size: int, kind: str, seed: int, public: bool
) -> Prior:
    codebook, behind = _STRUCTURED[kind](unit, people, count, seed)
    codebook.flags.writeable = False
    return Prior(
        codebook=codebook,
        decoder=codebook,
        set_size=PriorSubset(epsilon=1.0, codebook=codebook, set_size=set_size).set_size,
        kind=kind,
        rows=len(unit),
        people=int(people.max()) + 1,
        people_per_cell=float(behind.mean()),
        smallest_cell=int(behind.min()),
        people_per_codeword=float(behind.mean()),
        is_public=public,
    )


def _codebook(unit: Floats, count: int, kind: str, seed: int) -> Floats:
    if kind == "raw":
        return unit[np.sort(np.random.default_rng(seed).choice(len(unit), count, replace=False))]
    from sklearn.cluster import KMeans

    centers = KMeans(count, n_init=1, max_iter=50, random_state=seed).fit(unit).cluster_centers_
    lengths = np.linalg.norm(centers, axis=1)
    return np.ascontiguousarray(centers[lengths > 1e-9] / lengths[lengths > 1e-9, None])


def _checked(
    features: np.ndarray | torch.Tensor, pids: npt.ArrayLike | torch.Tensor
) -> tuple[Floats, npt.NDArray[np.int64]]:
    rows, _ = to_rows(features)
    unit = directions(rows.double())[0].cpu().numpy()
    labels = pids.detach().cpu().numpy() if isinstance(pids, torch.Tensor) else np.asarray(pids)
    if labels.shape != (len(unit),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"train_pids has shape {labels.shape} of {labels.dtype}, must be ({len(unit)},), whole numbers."
        )
    if not unit.any(axis=1).all():
        raise ValueError(f"train_features row {int(np.flatnonzero(~unit.any(axis=1))[0])} is zero. Drop it.")
    return unit, np.unique(labels, return_inverse=True)[1].astype(np.int64)
