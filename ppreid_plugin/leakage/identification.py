"""Identification: who of the gallery's people a row is of, learned from other rows of theirs.

The game is closed-set and camera-disjoint: of each person's cameras about half are given with names, and rows of the
others are named. The whitened nearest mean (of linear discriminant analysis) is an addition of ours to the usual
logistic regression, MLP and k-NN: it learns from people outside the gallery how rows of one person differ, noise
included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from ..dp.bounds import bound_row_to_person
from .attack import Attack, Figure, register_attack
from .data import LeakageSet
from .probe_models import Columns, Labels, Matrix, Targets, fit_logistic, fit_mlp
from .scores import macro_top1

NEIGHBORS = (1, 5)
SHRINKAGES = (0.1, 0.5)  # share of the mean variance in the within-person covariance
TUNING_PEOPLE = 300  # more make the choice slow, not better
_FEWEST_PEOPLE = 4  # to choose on
_CHUNK = 2048

_Answer = Callable[[Matrix, Labels, Matrix, int], Labels]  # rows with names, names, rows to name, seed


@register_attack("identification")
class IdentificationAttack(Attack):
    """Names rows of the gallery after learning from the gallery's other half: what a search engine does.

    ``fit`` uses people outside the gallery to choose among logistic regression, MLP, k-NN and whitened nearest mean (in
    the same game, played with them), and for the whitening; the chosen model learns the gallery's people in
    :meth:`attack` from the gallery's own half, which an attacker could name by seeing these people elsewhere.

    The figure is top-1, averaged over people with two cameras or more; its floor is 1 / N. Where the protection states
    a pure budget in the person unit, ``bound_row_to_person`` stands beside it (``bound``).

    Args:
        seed: of the halves and of the models.
    """

    channel = "identification"
    task = True

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.chosen = ""
        self._answer: _Answer | None = None

    def check(self, train: LeakageSet, test: LeakageSet) -> None:
        """Check that there are people to learn from and to name.

        Raises:
            ValueError: fewer than four training people, or two test people, were seen by two cameras.
        """
        _taught(train)
        self._people(test)

    def fit(self, train: LeakageSet) -> Self:
        """Choose the model on training people.

        Raises:
            ValueError: fewer than four of them were seen by two cameras.
        """
        people = _taught(train)
        pids = np.random.default_rng(self.seed).permutation(np.unique(people.pids))
        half = len(pids) // 2
        learned = people.take(np.isin(people.pids, pids[:half]))
        played = people.take(np.isin(people.pids, pids[half : half + TUNING_PEOPLE]))
        known = halves(played, self.seed)
        reached = {}
        for name, answer in _models(learned).items():
            said = answer(played.features[known], played.pids[known], played.features[~known], self.seed)
            reached[name] = macro_top1(played.pids[~known], said)[0]
        self.chosen = max(reached, key=lambda name: reached[name])
        self._answer = _models(people)[self.chosen]
        return self

    def attack(self, test: LeakageSet) -> dict[str, Figure]:
        """Learn half of the gallery's rows and name the other half.

        Raises:
            RuntimeError: not fitted.
            ValueError: fewer than two people with two cameras.
        """
        if self._answer is None:
            raise RuntimeError("the attack on identification is not fitted; call fit(train) first.")
        people = self._people(test)
        known = halves(people, self.seed)
        said = self._answer(people.features[known], people.pids[known], people.features[~known], self.seed)
        score, error = macro_top1(people.pids[~known], said)
        others = {"people": float(len(np.unique(people.pids))), "rows": float(np.count_nonzero(~known))}
        bound = _bound(test.protection, int(others["people"]))
        return {"": Figure(score, error, self.chosen, others | ({} if bound is None else {"bound": bound}))}

    def floor(self, test: LeakageSet) -> dict[str, float]:
        """Return 1 / N."""
        return {"": 1 / len(np.unique(self._people(test).pids))}

    def ceiling(self, test: LeakageSet) -> dict[str, float]:
        """Return 1."""
        return {"": 1.0}

    @staticmethod
    def _people(test: LeakageSet) -> LeakageSet:
        people = _seen_twice(test, "rows to attack")
        if len(np.unique(people.pids)) < 2:
            raise ValueError(
                "the rows to attack hold fewer than two people with two cameras or more (one row a person cannot be "
                "named from another of his). Leave identification out of --attacks."
            )
        return people


def _taught(train: LeakageSet) -> LeakageSet:
    people = _seen_twice(train, "training rows")
    if (number := len(np.unique(people.pids))) < _FEWEST_PEOPLE:
        raise ValueError(
            f"{number} training people were seen by two cameras, fewer than the {_FEWEST_PEOPLE} that a choice of "
            "models needs. Give rows of more people, or leave identification out of --attacks."
        )
    return people


def halves(people: LeakageSet, seed: int) -> npt.NDArray[np.bool_]:
    """Return which rows are given with names, (n,): about half of each person's rows, of cameras of their own.

    Args:
        people: rows of people with two cameras or more.
        seed: of the order of the cameras.
    """
    rng = np.random.default_rng(seed)
    known = np.zeros(len(people), dtype=bool)
    order = np.argsort(people.pids, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(people.pids[order])) + 1):
        cameras, counts = np.unique(people.camids[rows], return_counts=True)
        shuffled = rng.permutation(len(cameras))
        share = np.cumsum(counts[shuffled]) / len(rows)
        given = 1 + int(np.argmin(np.abs(share[:-1] - 0.5)))
        known[rows] = np.isin(people.camids[rows], cameras[shuffled[:given]])
    return known


def nearest(names: Labels, rows: Matrix, asked: Matrix, neighbors: int) -> Labels:
    """Return the name that most of the nearest rows by cosine have; the nearer one where names tie."""
    neighbors = min(neighbors, len(rows))
    rows, asked = _unit(rows), _unit(asked)
    found = np.empty(len(asked), dtype=np.int64)
    for start in range(0, len(asked), _CHUNK):
        near = asked[start : start + _CHUNK] @ rows.T
        best = np.argpartition(-near, neighbors - 1, axis=1)[:, :neighbors]
        order = np.take_along_axis(best, np.argsort(-np.take_along_axis(near, best, 1), axis=1, kind="stable"), 1)
        voted = names[order]
        votes = (voted[:, :, None] == voted[:, None, :]).sum(axis=2)
        found[start : start + _CHUNK] = voted[np.arange(len(voted)), votes.argmax(axis=1)]
    return found


def _models(learned: LeakageSet) -> dict[str, _Answer]:
    models: dict[str, _Answer] = {}
    for neighbors in NEIGHBORS:
        models[f"k-NN, k = {neighbors}"] = _nearest(neighbors)
    for shrinkage in SHRINKAGES:
        models[f"whitened mean, {shrinkage:g}"] = _whitened(learned, shrinkage)
    return models | {"logistic": _logistic, "mlp": _mlp}


def _nearest(neighbors: int) -> _Answer:
    return lambda rows, names, asked, seed: nearest(names, rows, asked, neighbors)


def _whitened(learned: LeakageSet, shrinkage: float) -> _Answer:
    _, person, counts = np.unique(learned.pids, return_inverse=True, return_counts=True)
    middle = learned.features.mean(axis=0)
    means = _means(learned.features, person, counts)
    within = (learned.features - means[person]).astype(np.float64)
    covariance = within.T @ within / max(1, len(within) - len(counts))
    dimension = len(covariance)
    covariance = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / dimension * np.eye(dimension)
    values, vectors = np.linalg.eigh(covariance + 1e-12 * np.eye(dimension))
    whitening = (vectors / np.sqrt(np.maximum(values, 1e-12))).astype(np.float32)

    def answer(rows: Matrix, names: Labels, asked: Matrix, seed: int) -> Labels:
        people, place, rows_each = np.unique(names, return_inverse=True, return_counts=True)
        centers = _means((rows - middle) @ whitening, place, rows_each)
        return nearest(people, centers, (asked - middle) @ whitening, 1)

    return answer


def _logistic(rows: Matrix, names: Labels, asked: Matrix, seed: int) -> Labels:
    people, columns, targets = _named(rows, names)
    path = fit_logistic(columns(rows, None), targets, steps=3)
    return people[path.answer(columns(asked, None), 2, 0).argmax(axis=1)]


def _mlp(rows: Matrix, names: Labels, asked: Matrix, seed: int) -> Labels:
    people, columns, targets = _named(rows, names)
    inside = columns(rows, None)
    held = (
        np.random.default_rng(seed).random(len(rows)) < 1 / 6
    )  # rows of these people: there are no others to hold out
    held[:1] = False
    held_out = (inside[held], targets.take(held)) if held.any() else (inside, targets)
    path = fit_mlp(inside[~held], targets.take(~held), held_out=held_out, seed=seed)
    return people[path.answer(columns(asked, None), path.steps, 0).argmax(axis=1)]


def _named(rows: Matrix, names: Labels) -> tuple[Labels, Columns, Targets]:
    people, place = np.unique(names, return_inverse=True)
    return people, Columns.fit(rows, None), Targets((place.astype(np.int64),), (len(people),))


def _means(rows: Matrix, place: npt.NDArray[np.intp], counts: npt.NDArray[np.intp]) -> Matrix:
    order = np.argsort(place, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return (np.add.reduceat(rows[order], starts, axis=0) / counts[:, None]).astype(np.float32)


def _unit(rows: Matrix) -> Matrix:
    norms = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    return (rows / norms).astype(np.float32, copy=False)


def _seen_twice(rows: LeakageSet, what: str) -> LeakageSet:
    people = rows.people
    people = people.take(people.camids >= 0) if (people.camids >= 0).any() else people
    if len(np.unique(people.camids)) < 2:
        raise ValueError(
            f"the {what} are of one camera: nobody can be named in another one. Give camids of two cameras or more, or "
            "leave identification out of --attacks."
        )
    pairs = np.unique(np.stack([people.pids, people.camids], axis=1), axis=0)
    pids, cameras = np.unique(pairs[:, 0], return_counts=True)
    return people.take(np.isin(people.pids, pids[cameras > 1]))


def _bound(protection: Any, people: int) -> float | None:
    """Return the bound on the figure that the protection implies, if it is a pure budget of all rows of a person."""
    stated = protection.describe() if hasattr(protection, "describe") else protection
    if not isinstance(stated, dict) or stated.get("unit") != "person":
        return None
    mechanism = stated["mechanism"] if isinstance(stated.get("mechanism"), dict) else stated
    if not mechanism.get("pure"):
        return None
    return bound_row_to_person(float(stated["epsilon"]), people)
