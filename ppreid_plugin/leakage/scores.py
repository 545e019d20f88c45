r"""Scores of attackers, their errors over people, and what is made of them: leakage, and the two maxima.

People are what a figure would be measured on again, so errors are those of drawing people, never rows: the rows of one
person are alike. Definitions of combination, leakage and maxima are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from scipy.stats import t as student

CONFIDENCE = 0.95
DRAWS = 500  # of the bootstrap: its error of a standard error is then about 3 %
_STREAM = 1  # beside the seed: whoever drew the data with that seed drew other numbers
SMALLEST_RANGE = 3.0  # standard errors between floor and clean figure, below which a share of it says nothing

Labels = npt.NDArray[np.int64]


def over_people(error: float, people: int) -> float:
    """Return a standard error over people, at least what one more person might move a mean of answers by.

    A few who happen to agree leave nothing to vary, and would seem to be certain.

    Example:
        >>> over_people(0.0, 4), over_people(0.3, 4)
        (0.2, 0.3)
    """
    return max(error, 1 / (people + 1))


def balanced_accuracy(labels: Labels, answers: Labels) -> float:
    """Return the mean over the classes that occur of the share of their rows that is answered rightly.

    Example:
        >>> balanced_accuracy(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
        0.8333333333333333
    """
    classes, place = np.unique(labels, return_inverse=True)
    rows = np.bincount(place, minlength=len(classes))
    return float((np.bincount(place, labels == answers, len(classes)) / rows).mean())


def balanced_accuracy_error(labels: Labels, answers: Labels, pids: Labels, *, seed: int = 0) -> float:
    """Return the standard error of the balanced accuracy over people: bootstrap, whole people drawn again.

    A class that a draw holds nobody of is left out of that draw.

    Args:
        labels: (n,), true classes.
        answers: (n,), the attacker's.
        pids: (n,), person of each row.
        seed: of the draws.
    """
    classes, place = np.unique(labels, return_inverse=True)
    people, person = np.unique(pids, return_inverse=True)
    shape = (len(people), len(classes))
    cell = person * len(classes) + place
    rows = np.bincount(cell, minlength=math.prod(shape)).reshape(shape)
    right = np.bincount(cell, labels == answers, math.prod(shape)).reshape(shape)
    rng = np.random.default_rng([seed, _STREAM])
    drawn = rng.multinomial(len(people), np.full(len(people), 1 / len(people)), size=DRAWS)
    there = drawn @ rows
    recall = np.where(there > 0, (drawn @ right) / np.maximum(there, 1), 0.0)
    return over_people(float((recall.sum(axis=1) / (there > 0).sum(axis=1)).std(ddof=1)), len(people))


def macro_top1(labels: Labels, answers: Labels) -> tuple[float, float]:
    """Return top-1 averaged over the people whom the labels name, each counted alike, and its standard error."""
    _, person = np.unique(labels, return_inverse=True)
    each = np.bincount(person, labels == answers) / np.bincount(person)
    error = float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else 0.0
    return float(each.mean()), over_people(error, len(each))


@dataclass(frozen=True)
class Combined:
    """A figure over seeds.

    Attributes:
        value: mean.
        standard_error: of it, from people and seeds.
        low, high: 95 % interval.
    """

    value: float
    standard_error: float
    low: float
    high: float


def combine(scores: Sequence[float], errors: Sequence[float]) -> Combined:
    r"""Combine a figure over S seeds: people are the same for all of them, seeds are not.

    .. math:: SE^2 = \frac1S \sum_s SE_s^2 + \frac{v}{S}, \qquad \text{mean} \pm t\,SE

    with v the variance over the seeds, and t at the degrees of freedom of Welch and Satterthwaite, those of the people
    taken as infinite. One seed tells nothing of v, which is taken as 0.

    Args:
        scores: figure of each seed.
        errors: its standard error over people.

    Example:
        >>> round(combine([0.5, 0.5, 0.5], [0.1, 0.1, 0.1]).high, 3)
        0.696
    """
    value, seeds = float(np.mean(scores)), len(scores)
    people = float(np.mean(np.square(errors)))
    drawn = float(np.var(scores, ddof=1)) / seeds if seeds > 1 else 0.0
    error = math.sqrt(people + drawn)
    freedom = (people + drawn) ** 2 / (drawn**2 / (seeds - 1)) if drawn > 1e-12 * people else math.inf
    level = (1 + CONFIDENCE) / 2
    t = float(norm.ppf(level) if math.isinf(freedom) else student.ppf(level, freedom))
    return Combined(value, error, value - t * error, value + t * error)


def figure_record(
    score: Combined, floor: float, clean: Combined | None, *, attacker: str, clean_floor: float | None = None
) -> dict[str, Any]:
    r"""Return one figure of a report, with its leakage.

    .. math:: L = \frac{\text{score} - \text{floor}}{\text{clean} - \text{clean floor}}

    Never clipped. It is not available (None, and ``reason`` says why) where clean features stand less than three
    standard errors above their floor, or where none were given. Its error takes the two figures as independent: people
    in both make it smaller than stated.

    Args:
        score: on the protected features.
        floor: of an attacker that does not look at them.
        clean: on clean features, or None.
        attacker: which model it was.
        clean_floor: floor on clean features, if it is another.
    """
    record: dict[str, Any] = {
        "score": score.value,
        "low": score.low,
        "high": score.high,
        "floor": floor,
        "clean": None if clean is None else clean.value,
        "leakage": None,
        "attacker": attacker,
        "standard_error": score.standard_error,
        "leakage_low": None,
        "leakage_high": None,
        "reason": None,
    }
    if clean is None:
        return record | {"reason": "no clean features were given"}
    span = clean.value - (floor if clean_floor is None else clean_floor)
    if span < SMALLEST_RANGE * clean.standard_error or span <= 0:
        return record | {
            "reason": f"clean features reach {clean.value:.3f}, {span:+.3f} over the floor: less than "
            f"{SMALLEST_RANGE:g} standard errors ({clean.standard_error:.4f})"
        }
    leakage = (score.value - floor) / span
    width = (score.high - score.low) / 2
    clean_width = (clean.high - clean.low) / 2
    half = math.hypot(width, leakage * clean_width) / span
    return record | {"leakage": leakage, "leakage_low": leakage - half, "leakage_high": leakage + half}


def maximum(figures: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any] | None:
    """Return the largest leakage of named figures; its interval holds if all of theirs do. None: none is available."""
    known = [(name, figure) for name, figure in figures if figure["leakage"] is not None]
    if not known:
        return None
    name, largest = max(known, key=lambda one: one[1]["leakage"])
    return {
        "channel": name,
        "leakage": largest["leakage"],
        "low": max(figure["leakage_low"] for _, figure in known),
        "high": max(figure["leakage_high"] for _, figure in known),
    }
