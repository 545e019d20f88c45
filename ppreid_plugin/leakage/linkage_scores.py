"""How alike two rows are: cosine, cosines after projections, and a logistic score, all learned on other people."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ..dp.transforms import build_transform
from .data import LeakageSet
from .linkage_figures import auc
from .linkage_pairs import NoPairsError, Pairs, draw_pairs

Rows = npt.NDArray[np.floating]
Floats = npt.NDArray[np.float64]
Projection = Callable[[Rows], Rows]

_COMPONENTS = (32, 128)  # of LDA
_SHRINKAGES = (0.1, 0.001)  # of its within-person variances; the small one for people in columns of little variance
_LEARNING_PAIRS = 20_000
_FEWEST_PEOPLE = 12  # to learn from; below, the plain cosine
_CHUNK = 4096


class PairScore:
    """The best of some scores of a pair of rows, chosen on training people that none of them learned from.

    The scores: cosine; cosine after the training mean is taken off; cosine after LDA; logistic regression on absolute
    difference, product and cosine after LDA. LDA learns from three fifths of the people, logistic regression from one
    fifth, and the last fifth chooses. Fewer than 12 training people teach nothing, nor do fifths of which no pairs can
    be drawn, since few people share a camera, nor rows that do not differ: then it is the cosine.

    Args:
        seed: of the choice of people and pairs.

    Attributes:
        chosen: name of the score: ``cosine``, ``center``, ``lda32_0.1`` (columns, shrinkage), ``logistic``, ...;
            ``cosine`` before a fit.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self.chosen = "cosine"
        self._projection: Projection = np.asarray
        self._model: tuple[StandardScaler, LogisticRegression] | None = None

    def fit(self, first: LeakageSet, second: LeakageSet, *, across_cameras: bool = False) -> PairScore:
        """Learn from training people: rows as they are in the first, and as they are in the second release.

        Both are of one feature space and may hold the same rows.
        """
        self.chosen, self._projection, self._model = "cosine", np.asarray, None
        first, second = first.people, second.people
        people = np.intersect1d(first.pids, second.pids)
        if len(people) < _FEWEST_PEOPLE:
            return self
        np.random.default_rng(self.seed).shuffle(people)
        learn, fit, choose = np.split(people, [3 * len(people) // 5, 4 * len(people) // 5])
        try:
            taught, held_out = (self._pairs(first, second, some, across_cameras) for some in (fit, choose))
        except NoPairsError:
            return self
        projections: dict[str, Projection] = {"cosine": np.asarray}
        rows = np.concatenate([side.features[np.isin(side.pids, learn)] for side in (first, second)])
        pids = np.concatenate([side.pids[np.isin(side.pids, learn)] for side in (first, second)])
        projections["center"] = build_transform("center").fit(rows).transform
        try:
            projections |= _lda_projections(rows, pids)
        except (ValueError, torch.linalg.LinAlgError):  # rows that are all the same span no axes
            return self
        reached = {name: self._reached(projection, *held_out) for name, projection in projections.items()}
        best = max(reached, key=lambda name: reached[name])
        narrow = max((name for name in reached if name.startswith("lda")), key=lambda name: reached[name])
        self.chosen, self._projection = "logistic", projections[narrow]
        self._learn_logistic(taught)
        if self._reached(self._projection, *held_out) <= reached[best]:
            self.chosen, self._projection, self._model = best, projections[best], None
        return self

    def __call__(self, first: Rows, second: Rows, pairs: Pairs) -> Floats:
        """Return the score of each pair of a row of ``first`` and a row of ``second``, (pairs,)."""
        one, two = (_unit(self._projection(rows)) for rows in (first, second))
        result = np.empty(len(pairs.first))
        for start in range(0, len(result), _CHUNK):
            span = slice(start, start + _CHUNK)
            a, b = one[pairs.first[span]], two[pairs.second[span]]
            cosines = (a * b).sum(axis=1)
            result[span] = cosines
            if self._model is not None:
                scaler, model = self._model
                result[span] = model.decision_function(scaler.transform(_of_pair(a, b, cosines)))
        return result

    def _pairs(
        self, first: LeakageSet, second: LeakageSet, people: npt.NDArray[np.int64], across_cameras: bool
    ) -> tuple[LeakageSet, LeakageSet, Pairs]:
        one, two = (side.take(np.isin(side.pids, people)) for side in (first, second))
        return one, two, draw_pairs(one, two, seed=self.seed, count=_LEARNING_PAIRS, across_cameras=across_cameras)

    def _reached(self, projection: Projection, first: LeakageSet, second: LeakageSet, pairs: Pairs) -> float:
        kept, self._projection = self._projection, projection
        scores = self(first.features, second.features, pairs)
        self._projection = kept
        return auc(scores, pairs.mated)

    def _learn_logistic(self, learning: tuple[LeakageSet, LeakageSet, Pairs]) -> None:
        first, second, pairs = learning
        one, two = (_unit(self._projection(side.features)) for side in (first, second))
        a, b = one[pairs.first], two[pairs.second]
        inputs = _of_pair(a, b, (a * b).sum(axis=1))
        scaler = StandardScaler().fit(inputs)
        model = LogisticRegression(C=1e-3, max_iter=200).fit(scaler.transform(inputs), pairs.mated)
        self._model = scaler, model


def _lda_projections(rows: Rows, pids: npt.NDArray[np.int64]) -> dict[str, Projection]:
    """Return LDA of each number of columns and shrinkage, by name.

    Raises:
        ValueError, LinAlgError: people do not differ, or the rows do not.
    """
    projections: dict[str, Projection] = {}
    for shrinkage in _SHRINKAGES:
        whole = build_transform("lda", shrinkage=shrinkage).fit(rows, pids)
        axes = whole.describe()["components"]  # rows of a small codebook span few
        for components in sorted({min(components, axes) for components in _COMPONENTS}):
            fewer = build_transform("lda", components=components, shrinkage=shrinkage)
            lda = whole if components == axes else fewer.fit(rows, pids)
            projections[f"lda{components}_{shrinkage:g}"] = lda.transform
    return projections


def _of_pair(a: Rows, b: Rows, cosines: Rows) -> Rows:
    return np.concatenate([np.abs(a - b), a * b, cosines[:, None]], axis=1)


def _unit(rows: Rows) -> Rows:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
