"""What a search returns, and the one order that all backends put it in: highest score first, ties by row order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Hits:
    """The best rows (or people) of one query.

    Attributes:
        row_ids: names of the rows; empty where people were asked for.
        pids, camids: (k,), or None where the release carries none.
        scores: (k,), float64, falling: cosines, 1 = same direction.
        numbers: (k,), places in the index, by which ties are ordered.
    """

    row_ids: tuple[str, ...]
    pids: IntArray | None
    scores: Scores
    numbers: IntArray
    camids: IntArray | None = None

    def __len__(self) -> int:
        return len(self.scores)


def best(scores: Scores, numbers: IntArray, top: int) -> tuple[Scores, IntArray]:
    """Return the ``top`` best of scores (m,) with their row numbers (m,): falling score, equal ones by rising number.

    Example:
        >>> best(np.array([0.5, 0.9, 0.5]), np.array([7, 8, 3]), 2)[1].tolist()
        [8, 3]
    """
    order = np.lexsort((numbers, -scores))[:top]
    return scores[order], numbers[order]


def decode_names(names: npt.NDArray[np.bytes_]) -> tuple[str, ...]:
    """Return row ids, stored as UTF-8 padded with zero bytes, as text."""
    return tuple(name.decode("utf-8") for name in names.tolist())


def encode_names(names: Sequence[str]) -> npt.NDArray[np.bytes_]:
    """Return row ids as UTF-8 padded with zero bytes, (n,)."""
    return np.array([name.encode("utf-8") for name in names], dtype=np.bytes_)


def merged(parts: Iterable[Hits], top: int, *, by_person: bool = False) -> Hits:
    """Return the best of one query's hits in several indexes (shards); ties go by the order of the indexes, then rows.

    Scores of releases under different transforms or budgets are cosines too, but of differently noisy rows: merge
    shards of one mechanism and budget.

    Args:
        parts: one an index.
        top: how many.
        by_person: keep only the first hit of each pid.
    """
    found = list(parts)
    shard = np.repeat(np.arange(len(found)), [len(part) for part in found])
    scores = np.concatenate([part.scores for part in found])
    numbers = np.concatenate([part.numbers for part in found])
    order = np.lexsort((numbers, shard, -scores))
    pids = _joined([part.pids for part in found], order)
    if by_person and pids is not None:
        order = order[np.sort(np.unique(pids, return_index=True)[1])]
    order = order[:top]
    names = [name for part in found for name in part.row_ids]
    return Hits(
        row_ids=tuple(names[place] for place in order) if names else (),
        pids=_joined([part.pids for part in found], order),
        scores=scores[order],
        numbers=numbers[order],
        camids=_joined([part.camids for part in found], order),
    )


def _joined(labels: Sequence[IntArray | None], order: IntArray) -> IntArray | None:
    known = [one for one in labels if one is not None]
    return np.concatenate(known)[order] if len(known) == len(labels) else None
