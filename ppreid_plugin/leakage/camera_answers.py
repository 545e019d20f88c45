"""What the camera alone says of an attribute: no leakage of the features, so it belongs to the floor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .probes import people_in_folds
from .scores import SMALLEST_RANGE, Labels, balanced_accuracy, balanced_accuracy_error

_FOLDS = 5  # of people, who are answered by what others say


@dataclass(frozen=True, eq=False)
class CameraAnswers:
    """For each camera the class that it is likeliest to show, classes taken as equally frequent.

    Attributes:
        cameras: (c,), camids in order.
        answers: (c,), class of each.
        otherwise: class of a camera that is not among them.

    Example:
        >>> learned = CameraAnswers.learn(np.array([0, 0, 1, 1]), np.array([5, 5, 5, 9]))
        >>> learned(np.array([5, 9, 7])).tolist()
        [0, 1, 0]
    """

    cameras: Labels
    answers: Labels
    otherwise: int

    @classmethod
    def learn(cls, labels: Labels, camids: Labels) -> CameraAnswers:
        """Learn the answers from labels (n,), all known, and camids (n,)."""
        classes, kind = np.unique(labels, return_inverse=True)
        cameras, camera = np.unique(camids, return_inverse=True)
        counts = np.zeros((len(cameras), len(classes)))
        np.add.at(counts, (camera, kind), 1.0)
        return cls(cameras, classes[(counts / counts.sum(axis=0)).argmax(axis=1)], int(classes[0]))

    def __call__(self, camids: Labels) -> Labels:
        """Return the answer for each camid, (n,)."""
        place = np.minimum(np.searchsorted(self.cameras, camids), len(self.cameras) - 1)
        return np.where(self.cameras[place] == camids, self.answers[place], self.otherwise)


def camera_answers(labels: Labels, camids: Labels, pids: Labels, *, seed: int = 0) -> CameraAnswers | None:
    """Learn what cameras say of a label; None where that is no more than chance.

    More than chance: balanced accuracy three standard errors above 1 / classes, on people whom the answers were not
    learned from. Less would be taken off the floor by chance, and make leakage look smaller than it is.

    Args:
        labels: (n,), -1 where not known.
        camids: (n,).
        pids: (n,), person of each row.
        seed: of the division of the people.
    """
    known = labels >= 0
    labels, camids, pids = labels[known], camids[known], pids[known]
    if len(np.unique(pids)) < _FOLDS:
        return None
    fold = people_in_folds(pids, _FOLDS, seed)
    said = np.empty_like(labels)
    for number in range(_FOLDS):
        held = fold == number
        said[held] = CameraAnswers.learn(labels[~held], camids[~held])(camids[held])
    above = balanced_accuracy(labels, said) - 1 / len(np.unique(labels))
    if above < SMALLEST_RANGE * balanced_accuracy_error(labels, said, pids, seed=seed):
        return None
    return CameraAnswers.learn(labels, camids)
