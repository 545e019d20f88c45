r"""Bringing two feature spaces together: two models, or one model and an unknown rotation.

Each function takes two releases and returns two matrices A (d1, k) and B (d2, k): after its mean is taken off, a unit
row x of the first lies at :math:`x A`, a row y of the second at :math:`y B`, comparable by cosine. No function looks at
pids, save those that are known to the attacker; camids are public.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata

from .data import LeakageSet

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Alignment = tuple[Floats, Floats]
_Key = TypeVar("_Key")

_ROWS = 2000  # rows of a release that are matched without known pairs
_AXES = 256  # principal axes compared without known pairs
_STEPS = 30  # of refining a match
_QUANTILES = np.linspace(0.01, 0.99, 49)
_NO_OVERLAP = 1e-9  # singular values below this fraction of the largest are rounding error


def centered(rows: npt.NDArray[np.floating]) -> Floats:
    """Return the rows with length 1, less their mean, and with length 1 again: (n, d) -> (n, d), float64."""
    offset = _unit(np.asarray(rows, dtype=np.float64))
    return _unit(offset - offset.mean(axis=0))


def procrustes(first: LeakageSet, second: LeakageSet, known_pids: Collection[int]) -> Alignment:
    r"""Align by known people: the orthogonal map that brings their mean rows together best.

    .. math:: X^T Y = U S V^T \quad\Rightarrow\quad A = U, B = V

    with a row of X and Y for each known person in each camera that both releases have of him, or for each person where
    there is no such camera; directions that they do not determine are left out.

    Source:
        Schönemann, Psychometrika 1966.
    """
    (first_shots, first_people), (second_shots, second_people) = (_means(each, known_pids) for each in (first, second))
    people = sorted(set(first_people) & set(second_people))
    if len(people) < 2:
        raise ValueError(
            f"known_pids names {len(people)} people who are in both releases, procrustes needs at least 2, and does "
            "well from about half as many as columns on. Name more, or use method='covariance' or 'gram'."
        )
    if shots := sorted(set(first_shots) & set(second_shots)):
        return _orthogonal(_stacked(first_shots, shots), _stacked(second_shots, shots))
    return _orthogonal(_stacked(first_people, people), _stacked(second_people, people))


def covariance(first: LeakageSet, second: LeakageSet, *, seed: int = 0) -> Alignment:
    """Align by principal axes, without known pairs.

    Axes of largest variance are compared by their variance and by the quantiles of the rows along them, with either
    sign; the assignment of least total difference settles order and signs. Then nearest rows and the orthogonal map are
    found in turn (:func:`refined`).
    """
    rows = centered(first.features), centered(second.features)
    count = min(_AXES, *(side.shape[1] for side in rows))
    axes = [_axes(side, count) for side in rows]
    profile = [np.quantile(side @ part, _QUANTILES, axis=0).T for side, part in zip(rows, axes, strict=True)]
    straight, flipped = (_distances(profile[0], other) for other in (profile[1], -profile[1][:, ::-1]))
    one, two = linear_sum_assignment(np.minimum(straight, flipped))
    signs = np.where(straight[one, two] <= flipped[one, two], 1.0, -1.0)
    start = axes[0][:, one], axes[1][:, two] * signs
    return refined(_some(rows[0], seed), _some(rows[1], seed), start)


def gram(first: LeakageSet, second: LeakageSet, *, seed: int = 0) -> Alignment:
    """Align by the cosines within each release, which no rotation changes, without known pairs.

    A row's signature is how its cosines to all others are distributed (the local invariant behind lower bounds of the
    Gromov-Wasserstein distance). Rows of like signature are matched one to one; then rows are matched again by their
    cosines to the matched ones, which reads the Gram matrices themselves, and the orthogonal map is refined.

    Source:
        Mémoli, Foundations of Computational Mathematics 2011 (the bound); the rest is our combination.
    """
    rows = [_some(centered(release.features), seed) for release in (first, second)]
    cosines = [side @ side.T for side in rows]
    signature = [np.quantile(matrix, _QUANTILES, axis=1).T for matrix in cosines]
    one, two = linear_sum_assignment(_distances(*signature))
    for _ in range(_STEPS):
        like = _like(cosines[0][:, one], cosines[1][:, two])
        again = _mutual(like)
        if np.array_equal(again[0], one) and np.array_equal(again[1], two):
            break
        one, two = again
    return refined(rows[0], rows[1], _orthogonal(rows[0][one], rows[1][two]))


def refined(first: Floats, second: Floats, alignment: Alignment) -> Alignment:
    """Improve an alignment: match rows that are nearest to each other, take their orthogonal map, and so on.

    A step that brings the matched rows no closer is the last.
    """
    best, closest = alignment, -np.inf
    for _ in range(_STEPS):
        like = _unit(first @ alignment[0]) @ _unit(second @ alignment[1]).T
        one, two = _mutual(like)
        close = float((like.max(axis=1).mean() + like.max(axis=0).mean()) / 2)
        if close <= closest + 1e-6 or len(one) < 2:
            break
        best, closest = alignment, close
        alignment = _orthogonal(first[one], second[two])
    return best


def _orthogonal(first: Floats, second: Floats) -> Alignment:
    left, values, right = np.linalg.svd(first.T @ second, full_matrices=False)
    kept = values > _NO_OVERLAP * values[0]
    return left[:, kept], right[kept].T


def _stacked(means: Mapping[_Key, Floats], keys: Sequence[_Key]) -> Floats:
    return np.stack([means[key] for key in keys])


def _means(release: LeakageSet, pids: Collection[int]) -> tuple[dict[tuple[int, int], Floats], dict[int, Floats]]:
    """Return the mean row of each known person in each camera, and in all."""
    rows, known = centered(release.features), np.isin(release.pids, np.asarray(list(pids), dtype=np.int64))
    by_camera, by_person = {}, {}
    for pid in np.unique(release.pids[known]).tolist():
        his = release.pids == pid
        by_person[pid] = rows[his].mean(axis=0)
        for camid in np.unique(release.camids[his]).tolist():
            by_camera[(pid, camid)] = rows[his & (release.camids == camid)].mean(axis=0)
    return by_camera, by_person


def _axes(rows: Floats, count: int) -> Floats:
    _, vectors = np.linalg.eigh(rows.T @ rows)
    return vectors[:, ::-1][:, :count]


def _some(rows: Floats, seed: int) -> Floats:
    """Return at most as many rows as are matched, drawn with the seed."""
    if len(rows) <= _ROWS:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), _ROWS, replace=False))]


def _mutual(like: Floats) -> tuple[Ints, Ints]:
    """Return the positions of rows and columns that are each other's largest."""
    best, back = like.argmax(axis=1), like.argmax(axis=0)
    one = np.flatnonzero(back[best] == np.arange(len(like)))
    return one, best[one]


def _like(first: Floats, second: Floats) -> Floats:
    """Return the correlation of each row of the first with each row of the second, by ranks."""
    ranks = [rankdata(side, axis=1) for side in (first, second)]
    one, two = (_unit(side - side.mean(axis=1, keepdims=True)) for side in ranks)
    return one @ two.T


def _distances(first: Floats, second: Floats) -> Floats:
    """Return the squared Euclidean distances of all rows: (n, k), (m, k) -> (n, m)."""
    square = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2 * first @ second.T
    return np.maximum(square, 0.0)


def _unit(rows: Floats) -> Floats:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
