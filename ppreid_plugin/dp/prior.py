"""The prior of finite mechanisms: codebook and decoder, fitted on training features and published with the release.

There is no argument for gallery features: a codebook fitted on the gallery that is released breaks the proof. And a
published prior speaks about the people that it was fitted on: a cell of one person shows that person's mean feature.
So cells are counted in people, and small ones are refused unless the caller says that the prior is public.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.dp.arrays import directions, to_rows
from ppreid_plugin.dp.codebooks import (
    GAUSSIAN_RANK,
    LEVELS,
    Codebook,
    DenseCodebook,
    FittedCodebook,
    checked_level_sizes,
    gaussian_codebook,
    residual_codebook,
)
from ppreid_plugin.dp.subset import PriorSubset, check_set_size
from ppreid_plugin.number_checks import require_not_negative, require_positive, require_whole

Floats = npt.NDArray[np.float64]
KINDS = ("gaussian", "kmeans", "raw", "residual")
_STRUCTURED: dict[str, Callable[..., FittedCodebook]] = {"gaussian": gaussian_codebook, "residual": residual_codebook}


@dataclass(frozen=True)
class Prior:
    """What :func:`fit_prior` returns. Arrays are read-only; pass :meth:`options` to ``build_mechanism``.

    Attributes:
        codewords: the codebook, M unit codewords.
        means: what stands for each symbol, (M, d): the mean of the training rows whose set holds it; None for
            ``residual`` and ``gaussian``, whose symbols stand for their codewords.
        set_size: K.
        kind: ``gaussian``, ``kmeans``, ``raw`` or ``residual``.
        rows, people: how many training rows and people it was fitted on.
        people_per_cell: mean over the symbols of the number of people whose rows have the symbol in their set.
        smallest_cell: the least such number; 0 where a symbol is in no training row's set and stands for its codeword.
        people_per_codeword: as ``people_per_cell`` for the nearest codeword alone: the people behind a codeword itself.
        people_behind: the smaller of the two: people behind a published vector, on average; what ``min_people`` limits.
        is_public: whether the caller said that the training people may be shown.
    """

    codewords: Codebook
    means: Floats | None
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
        return {"codebook": self.codewords, "set_size": self.set_size, "decoder": self.means}

    @property
    def people_behind(self) -> float:
        """People behind a published vector, on average: behind a mean that symbols stand for, or behind a codeword."""
        return min(self.people_per_cell, self.people_per_codeword)

    @property
    def codebook(self) -> Floats:
        """The codewords as one array, (M, d), read-only."""
        return PriorSubset(epsilon=1.0, codebook=self.codewords).codebook

    @property
    def decoder(self) -> Floats:
        """The rows that stand for the symbols, (M, d), read-only."""
        return self.codebook if self.means is None else self.means

    def with_set_size(self, set_size: int) -> Prior:
        """Return the prior with sets of another size; for codebooks whose symbols stand for their codewords.

        Raises:
            ValueError: a size out of range, or symbols that stand for means, which depend on it.
        """
        if self.means is not None:
            raise ValueError(f"a {self.kind} prior's decoder depends on set_size. Fit it again with fit_prior.")
        checked = PriorSubset(epsilon=1.0, codebook=self.codewords, set_size=set_size).set_size
        return dataclasses.replace(self, set_size=checked)

    def describe(self) -> dict[str, Any]:
        """Return kind and sizes, ready for JSON: no feature values."""
        return {
            "prior": self.kind,
            "codewords": len(self.codewords),
            "columns": self.codewords.columns,
            "set_size": self.set_size,
            "fitted_rows": self.rows,
            "fitted_people": self.people,
            "people_per_cell": self.people_per_cell,
            "smallest_cell": self.smallest_cell,
            "people_per_codeword": self.people_per_codeword,
            "people_behind": self.people_behind,
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
    rank: int = GAUSSIAN_RANK,
    power: float = 1.0,
    levels: int = LEVELS,
    seed: int = 0,
    prior_is_public: bool = False,
) -> Prior:
    """Return codebook and decoder from features of the *training* split, transformed as the gallery will be.

    Args:
        train_features: rows of people outside the gallery, (n, d).
        train_pids: their labels, (n,), whole numbers.
        codewords: M, 2 to n, for ``residual`` and ``gaussian`` any number above 1; at most that many with ``merge``.
        set_size: K, 1 to M - 1.
        kind: ``kmeans``: normalized centers of k-means on the unit rows. ``raw``: M of the unit rows themselves, drawn
            without replacement; it publishes features outright, so it needs ``prior_is_public``. ``residual`` and
            ``gaussian``: many codewords from few published vectors (:mod:`.codebooks`); each symbol stands for its
            codeword, and the cells that count are the people behind the published vectors.
        min_people: behind a published vector, means and codewords alike, at least that many people on average.
        rank: ``gaussian``: principal components that the codewords are drawn in.
        power: ``gaussian``: exponent of the components' variances, 0 (all alike) or more; 1: as those of the rows.
        levels: ``residual``: levels of k-means whose sums the codewords are; ``codewords`` needs that many factors.
        merge: with k-means, take fewer and larger cells until ``min_people`` is met, instead of refusing.
        seed: of k-means (below 2^32) and of the draw.
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
    options = {"codewords": codewords, "set_size": set_size, "kind": kind, "min_people": min_people, "rank": rank}
    options |= {"power": power, "levels": levels, "seed": seed, "prior_is_public": prior_is_public}
    check_prior_options(options, rows=len(unit))
    count = int(codewords)
    if kind in _STRUCTURED:
        name, number = ("rank", rank) if kind == "gaussian" else ("levels", levels)
        extra: dict[str, float] = {name: number}
        if kind == "gaussian":
            extra["power"] = power
        prior = _fit_structured(unit, people, count, set_size, kind, seed, prior_is_public, extra)
        if not prior_is_public and prior.people_behind < min_people:
            smaller = "a smaller rank" if kind == "gaussian" else "fewer codewords, or more levels"
            raise ValueError(
                f"people_behind is {prior.people_behind:.3g} with {count} {kind} codewords, must be at least "
                f"{min_people:g}. Take {smaller}, or say prior_is_public=True."
            )
        return prior
    while True:
        prior = _fit(unit, people, count, set_size, kind, seed, prior_is_public)
        if prior_is_public or prior.people_behind >= min_people:
            return prior
        fewer = min(count - 1, int(count * prior.people_behind / min_people))
        if not merge or fewer <= max(1, set_size):
            raise ValueError(
                f"people_behind is {prior.people_behind:.3g} with {count} codewords and set_size {set_size}, must be "
                f"at least {min_people:g}. Take about {max(2, fewer)} codewords (or merge=True), kind='residual' with "
                "its few published vectors, or say prior_is_public=True if these people are consenting, public or "
                "generated."
            )
        count = fewer


def check_prior_options(options: Mapping[str, Any], *, rows: float = math.inf) -> None:
    """Check what can be checked before there are features to fit on.

    Args:
        options: arguments of :func:`fit_prior`; ``codewords`` is among them.
        rows: number of training rows; infinite: not known yet.

    Raises:
        ValueError: a number out of range or an unknown kind.

    Example:
        >>> check_prior_options({"codewords": 1})
        Traceback (most recent call last):
        ValueError: codewords is 1, must be a whole number >= 2.
    """
    defaults = {name: one.default for name, one in inspect.signature(fit_prior).parameters.items()}
    given = {**defaults, **options}
    kind, codewords = given["kind"], given["codewords"]
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; allowed: {', '.join(KINDS)}.")
    if kind == "raw" and not given["prior_is_public"]:
        raise ValueError(
            "kind is 'raw', which publishes training features as they are. Use kind='kmeans', or say "
            "prior_is_public=True if these people are consenting, public or generated."
        )
    most = math.inf if kind in _STRUCTURED else rows
    if isinstance(codewords, bool) or not isinstance(codewords, (int, np.integer)) or not 2 <= codewords <= most:
        told = "a whole number >= 2" if math.isinf(most) else f"2 to {rows}, the number of training rows"
        raise ValueError(f"codewords is {codewords!r}, must be {told}.")
    check_set_size(given["set_size"], int(codewords))
    # scikit-learn takes 32 bits
    require_whole("seed", given["seed"], least=0, most=None if kind in ("gaussian", "raw") else 2**32 - 1)
    require_positive("min_people", given["min_people"])
    if kind == "gaussian":
        require_whole("rank", given["rank"])
        require_not_negative("power", given["power"], hint="1 draws codewords as the rows lie")
    if kind == "residual":
        checked_level_sizes(int(codewords), require_whole("levels", given["levels"]), rows)


def _fit(
    unit: Floats, people: npt.NDArray[np.int64], count: int, set_size: int, kind: str, seed: int, public: bool
) -> Prior:
    codebook = DenseCodebook(_codebook(unit, count, kind, seed))
    size = len(codebook)
    sets = PriorSubset(epsilon=1.0, codebook=codebook, set_size=set_size)
    nearest = PriorSubset(epsilon=1.0, codebook=codebook, set_size=1)
    sums, rows = np.zeros((size, codebook.columns)), np.zeros(size)
    seen = np.zeros((size, people.max() + 1), dtype=bool)
    owned = np.zeros_like(seen)
    step = max(1, 2**22 // size)
    for start in range(0, len(unit), step):
        part = torch.from_numpy(unit[start : start + step])
        members = sets.sets(part).numpy()
        sums += members.T.astype(np.float64) @ unit[start : start + step]
        rows += members.sum(axis=0)
        for where, mark in ((members, seen), (nearest.sets(part).numpy(), owned)):
            row, symbol = np.nonzero(where)
            mark[symbol, people[start + row]] = True
    decoder = np.where(rows[:, None] > 0, sums / np.maximum(rows, 1)[:, None], codebook.codewords)
    cells = seen.sum(axis=1)
    decoder.flags.writeable = False
    return Prior(
        codewords=codebook,
        means=decoder,
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
    unit: Floats,
    people: npt.NDArray[np.int64],
    count: int,
    set_size: int,
    kind: str,
    seed: int,
    public: bool,
    extra: dict[str, float],
) -> Prior:
    codebook, behind = _STRUCTURED[kind](unit, people, count, seed, **extra)
    return Prior(
        codewords=codebook,
        means=None,
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
