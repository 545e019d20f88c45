"""Attackers who know some of the gallery's people: they learn from half of them, and are scored on the other half.

An encoder knows its training people better than any others, so what holds of their features need not hold of the
gallery's: suppression that only training people show would look like suppression. Attackers who learn from the
gallery's own people are not fooled by it, but have fewer people to learn from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .data import LeakageSet

LEARN_FROM = ("train", "gallery")  # people outside the gallery, or half of its own
_STREAM = 7  # beside the seed: whoever drew the data with that seed drew other numbers

Pids = npt.NDArray[np.int64]


def known_half(rows: LeakageSet, seed: int) -> Pids:
    """Return the pids of half of the people (rounded down), drawn by ``seed``: those whom the attacker knows.

    Raises:
        ValueError: fewer than two people.
    """
    people = np.unique(rows.people_of("rows of the gallery").pids)
    if len(people) < 2:
        raise ValueError(
            f"the gallery holds {len(people)} person, so there are no two halves to learn from and to attack. Let "
            "attackers learn from the training rows: learn_from train."
        )
    chosen = np.random.default_rng([seed, _STREAM]).permutation(people)[: len(people) // 2]
    return np.sort(chosen)


def split_known(rows: LeakageSet, known: Pids) -> tuple[LeakageSet, LeakageSet]:
    """Return the rows of the people who are known, and those of the others; rows of background are left out."""
    people = rows.people
    learned = np.isin(people.pids, known)
    return people.take(learned), people.take(~learned)


def stronger(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figure of the attacker who found more, by whom he learned from; the other is its ``weaker``.

    The larger leakage counts, of those that are available; where none is, the larger distance from the floor.

    Args:
        figures: records of `figure_record` by whom the attackers learned from, one or two.

    Example:
        >>> low, high = {"score": 0.6, "floor": 0.5, "leakage": 0.2}, {"score": 0.7, "floor": 0.5, "leakage": 0.4}
        >>> found = stronger({"train": low, "gallery": high})
        >>> found["learn_from"], found["leakage"], found["weaker"]["leakage"]
        ('gallery', 0.4, 0.2)
    """
    strength = {
        name: (one["leakage"] is not None, one["score"] - one["floor"] if one["leakage"] is None else one["leakage"])
        for name, one in figures.items()
    }
    ordered = sorted(figures, key=lambda name: strength[name], reverse=True)
    found = {**figures[ordered[0]], "learn_from": ordered[0]}
    return found if len(ordered) == 1 else {**found, "weaker": {**figures[ordered[1]], "learn_from": ordered[1]}}
