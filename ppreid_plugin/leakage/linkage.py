"""Linkage: whether two releases of the same people can be joined, person by person.

Channel ``linkage``, and a task channel: what ranks also links. Three games with one function, :func:`link`: two
releases in one feature space (two draws, or two halves of a gallery), clean rows against protected ones, and two
feature spaces (two models, or an unknown rotation), which are aligned first.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from typing_extensions import Self

from ..registry import closest
from .attack import Attack, Figure, register_attack
from .data import LeakageSet
from .linkage_alignment import centered, covariance, gram, procrustes
from .linkage_figures import auc, auc_error, d_sys, eer, roc
from .linkage_pairs import PAIRS, draw_pairs
from .linkage_scores import PairScore
from .scores import over_people

METHODS = ("cosine", "learned", "procrustes", "covariance", "gram")
SAME_SPACE = METHODS[:2]


def link(
    first: LeakageSet,
    second: LeakageSet,
    *,
    method: str = "cosine",
    known_pids: Collection[int] = (),
    score: PairScore | None = None,
    across_cameras: bool = False,
    pairs: int = PAIRS,
    seed: int = 0,
) -> Figure:
    """Score pairs of rows of two releases, and return how well same-person pairs stand out.

    The score is the AUC of same-person against different-person pairs: 0.5 unlinkable, 1 fully linkable. Each person in
    both releases counts alike; different-person pairs have the same cameras (:func:`.linkage_pairs.draw_pairs`).
    Others: ``eer``, ``d_sys``, ``people``, ``pairs``. The error is that of drawing people.

    Args:
        first: rows with pids, which only the figure looks at.
        second: likewise.
        method: ``cosine``; ``learned`` (``score`` fitted on other people); for two feature spaces, compared by cosine
            after an alignment: ``procrustes`` by ``known_pids``, ``covariance`` by principal axes and ``gram`` by the
            cosines within each release, both without known pairs.
        known_pids: people known to the attacker, left out of the figure.
        score: for ``learned``.
        across_cameras: whether only rows of different cameras are paired.
        pairs: of each kind, about; memory grows with it.
        seed: of pairs, subsamples and errors.

    Raises:
        ValueError: an unknown method, ``learned`` without a score, columns that differ where they may not, or too few
            people in both releases (or known).

    Example:
        >>> rows = np.eye(4, dtype=np.float32)
        >>> gallery = LeakageSet(rows, np.arange(1, 5), np.zeros(4, dtype=int))
        >>> link(gallery, gallery.with_features(rows + 0.1)).score
        1.0
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; allowed: {', '.join(METHODS)}.{closest(str(method), list(METHODS))}")
    if method == "learned" and score is None:
        raise ValueError("method='learned' needs score=PairScore().fit(train_first, train_second), of other people.")
    columns = first.features.shape[1], second.features.shape[1]
    if method in SAME_SPACE and columns[0] != columns[1]:
        raise ValueError(
            f"the first release has {columns[0]} columns, the second {columns[1]}: method {method!r} compares rows of "
            "one feature space. Use method='procrustes', 'covariance' or 'gram'."
        )
    one, two = first.people, second.people
    if not len(np.setdiff1d(np.intersect1d(one.pids, two.pids), list(known_pids))):
        raise ValueError(
            f"nobody is in both releases but the {len(known_pids)} people of known_pids: nobody is left to link. Give "
            "releases of the same people, and name fewer."
        )
    judged = [side.take(~np.isin(side.pids, np.asarray(list(known_pids), dtype=np.int64))) for side in (one, two)]
    drawn = draw_pairs(judged[0], judged[1], seed=seed, count=pairs, across_cameras=across_cameras)
    if method in SAME_SPACE:
        rows = [side.features for side in judged]
    else:
        aligned = _aligned(one, two, method, known_pids, seed)
        rows = [
            (centered(whole.features) @ matrix)[np.isin(whole.pids, side.pids)]
            for whole, side, matrix in zip((one, two), judged, aligned, strict=True)
        ]
    compare = score if method == "learned" and score is not None else PairScore()
    scores = compare(rows[0], rows[1], drawn)
    error = auc_error(scores, drawn.mated, drawn.first_pids, drawn.second_pids, seed=seed)
    return Figure(
        score=auc(scores, drawn.mated),
        standard_error=over_people(error, len(np.unique(drawn.first_pids))),
        attacker=compare.chosen if method == "learned" else method,
        others={
            "eer": eer(scores, drawn.mated),
            "d_sys": d_sys(scores, drawn.mated),
            "people": float(len(np.unique(drawn.first_pids[drawn.mated]))),
            "pairs": float(len(scores)),
        },
        tpr=roc(scores, drawn.mated),
    )


@register_attack("linkage")
class LinkageAttack(Attack):
    """Links two halves of a gallery that share no camera of a person, as two releases of it would.

    Each person's cameras are dealt to two halves. The score of a pair is the best of cosine and learned ones on
    held-out training people (:class:`.linkage_scores.PairScore`); others: those of :func:`link`, and ``cosine_auc``.

    Args:
        seed: of halves, pairs and what is learned.
        pairs: of each kind.
    """

    channel = "linkage"
    task = True

    def __init__(self, *, seed: int = 0, pairs: int = PAIRS) -> None:
        super().__init__(seed=seed)
        self.pairs = pairs
        self._score = PairScore(seed=seed)

    def check(self, train: LeakageSet, test: LeakageSet) -> None:
        """Check that there are people to link.

        Raises:
            ValueError: fewer than two people with two cameras, or none of them share one.
        """
        draw_pairs(*self._halves(test), seed=self.seed, count=self.pairs)

    def fit(self, train: LeakageSet) -> Self:
        """Learn the score on training people."""
        halves = camera_halves(train.people, seed=self.seed)
        self._score = PairScore(seed=self.seed)
        if halves is not None:
            self._score.fit(*halves)
        return self

    def attack(self, test: LeakageSet) -> dict[str, Figure]:
        """Link the halves of the test people.

        Raises:
            ValueError: fewer than two people with two cameras.
        """
        first, second = self._halves(test)
        figure = link(first, second, method="learned", score=self._score, pairs=self.pairs, seed=self.seed)
        plain = link(first, second, pairs=self.pairs, seed=self.seed) if self._score.chosen != "cosine" else figure
        others = {**figure.others, "cosine_auc": plain.score}
        return {"": Figure(figure.score, figure.standard_error, figure.attacker, others, figure.tpr)}

    def floor(self, test: LeakageSet) -> dict[str, float]:
        """Half of the pairs are in the right order by chance."""
        return {"": 0.5}

    def ceiling(self, test: LeakageSet) -> dict[str, float]:
        """All are."""
        return {"": 1.0}

    def _halves(self, test: LeakageSet) -> tuple[LeakageSet, LeakageSet]:
        halves = camera_halves(test.people, seed=self.seed)
        if halves is None:
            raise ValueError(
                "fewer than two people of the test set have rows of two cameras, linkage needs at least 2. Give camids "
                "of at least two cameras, link two releases with ppreid_plugin.leakage.link, or leave linkage out of "
                "--attacks."
            )
        return halves


def camera_halves(rows: LeakageSet, *, seed: int = 0) -> tuple[LeakageSet, LeakageSet] | None:
    """Return two parts of the rows of people with two cameras or more: each one's cameras are dealt out evenly.

    None: there are fewer than two such people.
    """
    rng = np.random.default_rng(seed)
    side = np.full(len(rows), -1)
    order = np.argsort(rows.pids, kind="stable")
    _, starts = np.unique(rows.pids[order], return_index=True)
    for his in np.split(order, starts[1:]):
        his = his[rows.camids[his] >= 0]  # an unknown camera is none
        cameras = rng.permutation(np.unique(rows.camids[his]))
        if len(cameras) > 1:
            flip = int(rng.integers(2))  # an odd camera goes to either half
            side[his] = (np.isin(rows.camids[his], cameras[: len(cameras) // 2]) ^ flip).astype(int)
    if len(np.unique(rows.pids[side >= 0])) < 2:
        return None
    return rows.take(side == 0), rows.take(side == 1)


def _aligned(
    first: LeakageSet, second: LeakageSet, method: str, known_pids: Collection[int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    if method == "procrustes":
        return procrustes(first, second, known_pids)
    return (covariance if method == "covariance" else gram)(first, second, seed=seed)
