"""Pairs of rows of two releases: of one person, and of two, in bounded number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .data import LeakageSet

Ints = npt.NDArray[np.int64]

PAIRS = 50_000  # of each kind
_ATTEMPTS = 20


class NoPairsError(ValueError):
    """Two sets of which no pairs can be drawn."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of a row of the first and a row of the second release.

    Attributes:
        first, second: (n,), positions of the rows.
        mated: (n,), whether both rows are of one person.
        first_pids, second_pids: (n,), pids of the rows.
    """

    first: Ints
    second: Ints
    mated: npt.NDArray[np.bool_]
    first_pids: Ints
    second_pids: Ints


def draw_pairs(
    first: LeakageSet, second: LeakageSet, *, seed: int = 0, count: int = PAIRS, across_cameras: bool = False
) -> Pairs:
    """Draw pairs: each person who is in both sets equally often, his pairs of rows uniformly, with repeats.

    For every same-person pair a different-person pair: its second row is exchanged for one, of another such pair, from
    the same camera. So neither the camera nor how often a person or row occurs tells the two kinds apart.

    Args:
        first: rows of people; background is left out.
        second: likewise.
        seed: of the draw.
        count: of same-person pairs, about; at least one a person.
        across_cameras: whether the rows of a pair are of different cameras only.

    Raises:
        NoPairsError: fewer than two people with a pair, or no two of them share a camera.
    """
    rng = np.random.default_rng(seed)
    sides = [_rows_of_people(release) for release in (first, second)]
    common = sorted(set(sides[0]) & set(sides[1]))
    chosen: list[npt.NDArray[np.int64]] = []
    each = max(1, round(count / max(1, len(common))))
    for pid in common:
        one, two = sides[0][pid], sides[1][pid]
        allowed = np.ones((len(one), len(two)), dtype=bool)
        if across_cameras:
            allowed = first.camids[one][:, None] != second.camids[two]
        places = np.argwhere(allowed)
        if len(places):
            drawn = places[rng.integers(0, len(places), each)]
            chosen.append(np.stack([one[drawn[:, 0]], two[drawn[:, 1]]], axis=1))
    if len(chosen) < 2:
        where = " from different cameras" if across_cameras else ""
        raise NoPairsError(
            f"{len(chosen)} people have a row in both sets{where}, linkage needs at least 2: {len(sides[0])} people in "
            f"the first, {len(sides[1])} in the second, {len(common)} in both. Give releases of the same people."
        )
    mated = np.concatenate(chosen)
    others = _exchanged(mated, first, second, rng)
    if not len(others):
        raise NoPairsError(
            "linkage compares people within a camera, and every camera of the second set (--test, or the release) has "
            "one person only. Give a gallery with more people a camera, or leave linkage out of --attacks."
        )
    both = np.concatenate([mated, others])
    one, two = both[:, 0], both[:, 1]
    kind = np.arange(len(both)) < len(mated)
    return Pairs(one, two, kind, first.pids[one], second.pids[two])


def _rows_of_people(release: LeakageSet) -> dict[int, Ints]:
    order = np.argsort(release.pids, kind="stable")
    pids, starts = np.unique(release.pids[order], return_index=True)
    parts = np.split(order, starts[1:])
    return {int(pid): rows for pid, rows in zip(pids, parts, strict=True) if pid not in release.background_pids}


def _exchanged(mated: Ints, first: LeakageSet, second: LeakageSet, rng: np.random.Generator) -> Ints:
    """Return the pairs with their second rows exchanged within a camera for one of another person."""
    camids, result = second.camids[mated[:, 1]], mated.copy()
    same = np.ones(len(mated), dtype=bool)
    pools = [np.flatnonzero(camids == camid) for camid in np.unique(camids)]
    for _ in range(_ATTEMPTS):
        for pool in pools:
            here = pool[same[pool]]
            result[here, 1] = mated[rng.choice(pool, len(here)), 1]
        same = first.pids[result[:, 0]] == second.pids[result[:, 1]]
    return result[~same]
