"""Recovery of numbers about an image from its feature, and how much of their variance is explained.

The answer without features is the mean of the training people's numbers, or of those that the row's camera saw: what is
nearer on held-out training people. Regressions learn what is left, and the best of them on these people is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .data import LeakageSet
from .inversion import redrawn, split_people
from .patch_models import Matrix, Predict, regressions

DRAWS = 4  # of the noise, where training rows can be noised again

View = Callable[[Matrix], Matrix]


@dataclass(frozen=True, eq=False)
class Constant:
    """The answer of somebody who does not look at the features.

    Attributes:
        mean: (k,), for rows of cameras that are not among the others.
        cameras: (k,) by camid.
    """

    mean: Matrix
    cameras: Mapping[int, Matrix]

    def __call__(self, camids: npt.NDArray[np.int64]) -> Matrix:
        """Return the answer of each row, (n, k)."""
        return np.stack([self.cameras.get(camera, self.mean) for camera in camids.tolist()])


@dataclass(frozen=True, eq=False)
class Recovery:
    """A fitted recovery.

    Attributes:
        name: the regression that reached the most on held-out people, with the rows that it learned from where there
            were several kinds; ``constant``: none explained anything.
        held_out: variance that it explained there.
        constant: the answer without features.
        camids: cameras of the training people.
    """

    name: str
    held_out: float
    constant: Constant
    camids: npt.NDArray[np.int64]
    _added: Predict | None

    def __call__(self, rows: LeakageSet) -> Matrix:
        """Return the numbers of each row, (n, k)."""
        without = self.constant(rows.camids)
        if self._added is None:
            return without
        return without + self._added(_columns(rows.features, rows.camids, self.camids))


def fit_recovery(
    train: LeakageSet, wanted_of: Callable[[LeakageSet], Matrix], views: Mapping[str, View], *, seed: int = 0
) -> dict[str, Recovery]:
    """Return the best recovery for each view, a function of the numbers by which it is judged.

    Args:
        train: rows of two people or more; a sixth of the people is held out.
        wanted_of: returns the numbers of rows, (n, k).
        views: by name, from (n, k) to (n, any).
        seed: of the choice of people, the models and the noise that they draw.

    Raises:
        ValueError: rows of one person.
    """
    learned, held = split_people(train, seed)
    wanted, asked = wanted_of(learned), wanted_of(held)
    constant = min(_constants(wanted, learned.camids), key=lambda one: _distance(one(held.camids), asked, held.pids))
    answer = constant(held.camids)
    camids = np.unique(learned.camids)
    best = {view: Recovery("constant", 0.0, constant, camids, None) for view in views}
    residual = wanted - constant(learned.camids)
    asking = _columns(held.features, held.camids, camids)
    for source, features in _sources(learned, seed).items():
        draws = len(features) // len(learned)
        columns = _columns(features, np.tile(learned.camids, draws), camids)
        for family, added in regressions(columns, np.tile(residual, (draws, 1)), seed=seed):
            made = answer + added(asking)
            for view, of in views.items():
                reached = explained(of(made), of(asked), of(answer), held.pids)[0]
                if reached > best[view].held_out:
                    best[view] = Recovery(family + source, reached, constant, camids, added)
    return best


def explained(made: Matrix, wanted: Matrix, constant: Matrix, pids: npt.NDArray[np.int64]) -> tuple[float, float]:
    r"""Return the explained variance, people alike, and its standard error over people (that of a ratio of means).

    .. math:: 1 - \frac{\sum_i w_i \lVert y_i - \hat y_i \rVert^2}{\sum_i w_i \lVert y_i - c_i \rVert^2}, \qquad
        w_i = 1 / \text{rows of the person of } i

    Below 0: worse than the constant. 0 where nothing varies: there is nothing to explain.

    Shape:
        made, wanted, constant: (n, k). pids: (n,).

    Example:
        >>> ones, zeros = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
        >>> explained(ones, ones, zeros, np.array([1, 2])), explained(zeros, ones, zeros, np.array([1, 2]))
        ((1.0, 0.0), (0.0, 0.0))
    """
    left, whole = _by_person(made, wanted, pids), _by_person(constant, wanted, pids)
    if not whole.any():
        return 0.0, 0.0
    share = float(left.mean() / whole.mean())
    spread = float((left - share * whole).std(ddof=1)) if len(whole) > 1 else 0.0
    return 1 - share, spread / float(whole.mean()) / math.sqrt(len(whole))


def _by_person(made: Matrix, wanted: Matrix, pids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return each person's mean squared distance, (people,)."""
    _, person = np.unique(pids, return_inverse=True)
    errors = ((made.astype(np.float64) - wanted) ** 2).sum(axis=1)
    return np.asarray(np.bincount(person, errors) / np.bincount(person))


def _distance(made: Matrix, wanted: Matrix, pids: npt.NDArray[np.int64]) -> float:
    return float(_by_person(made, wanted, pids).mean())


def _constants(wanted: Matrix, camids: npt.NDArray[np.int64]) -> list[Constant]:
    mean = wanted.mean(axis=0)
    cameras = {int(camera): wanted[camids == camera].mean(axis=0) for camera in np.unique(camids)}
    return [Constant(mean, {}), Constant(mean, cameras)]


def _columns(features: Matrix, camids: npt.NDArray[np.int64], known: npt.NDArray[np.int64]) -> Matrix:
    """Return the features with a column a camera."""
    return np.concatenate([features, camids[:, None] == known], axis=1, dtype=np.float32)


def _sources(rows: LeakageSet, seed: int) -> dict[str, Matrix]:
    """Return the features to learn from, by what is said of them: whole repetitions of the rows."""
    draws = 1 if rows.redraw is None else DRAWS
    noised = redrawn(rows, seed)
    sources = {"": np.concatenate([noised(number) for number in range(draws)])}
    if rows.clean is not None and rows.clean.shape == rows.features.shape:
        sources[", clean rows"] = rows.clean
    return sources
