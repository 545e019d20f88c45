"""Matching of the features given to a report: figures with intervals over people, and the first rows of a query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..retrieval.counting import Matches, positive_ranks
from .blocks import Provenance, Table
from .feature_inputs import FeatureInputs, Space
from .tables import percent

DRAWS = 1000  # of people
_CHUNK = 256


@dataclass(frozen=True, eq=False)
class QueryFigures:
    """Of each query with a match: whether its first row is one, and its average precision.

    Attributes:
        queries: (m,), positions of these queries.
        first: (m,), 1.0 or 0.0.
        precision: (m,), fractions.
    """

    queries: np.ndarray
    first: np.ndarray
    precision: np.ndarray


def query_figures(inputs: FeatureInputs, space: Space) -> QueryFigures:
    """Return the figures of each query in the anonymous protocol: rows of its own person and camera do not count.

    Raises:
        ValueError: no queries, or none with a match.
    """
    matches = _matches(inputs, space)
    every = np.flatnonzero(matches.of(0, len(space.query)).counts)
    queries = np.intersect1d(np.flatnonzero(space.counted), every).tolist()
    if not queries:
        raise ValueError(
            f"no query has a match in the gallery '{space.title}'. Check that --query and --gallery agree."
        )
    kept = np.array(queries)

    def chunks() -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, len(space.query), _CHUNK):
            yield start, space.query[start : start + _CHUNK] @ space.gallery.T

    found, counts = (np.concatenate(parts) for parts in zip(*positive_ranks(chunks(), matches), strict=True))
    ranks = dict(zip(every.tolist(), np.split(found, np.cumsum(counts[every])[:-1]), strict=True))
    first, precision = [], []
    for query in queries:
        mine = np.sort(ranks[query])
        first.append(float(mine[0] == 1))
        precision.append(float((np.arange(1, len(mine) + 1) / mine).mean()))
    return QueryFigures(kept, np.array(first), np.array(precision))


def person_interval(values: np.ndarray, people: np.ndarray, *, seed: int = 1) -> tuple[float, float, float]:
    """Return mean and 95 % interval of figures of queries, by a bootstrap that draws people.

    Example:
        >>> person_interval(np.ones(4), np.array([1, 1, 2, 2]))
        (1.0, 1.0, 1.0)
    """
    _, place = np.unique(people, return_inverse=True)
    sums, counts = np.bincount(place, values), np.bincount(place)
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=DRAWS)
    means = (drawn @ sums) / (drawn @ counts)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def matching_table(inputs: FeatureInputs, sources: Sequence[Provenance], *, seed: int = 1) -> Table:
    """Return rank-1 and mAP of the clean and the protected gallery, with intervals over people."""
    if inputs.query is None:
        raise ValueError("there are no queries. Name their features: --query FILE.")
    rows = []
    for space in (inputs.clean, inputs.protected):
        if space is None:
            continue
        found = query_figures(inputs, space)
        people = inputs.query.pids[found.queries]
        shown = [
            f"{percent(mean)} ({percent(low)} to {percent(high)})"
            for mean, low, high in (
                person_interval(values, people, seed=seed) for values in (found.first, found.precision)
            )
        ]
        rows.append([space.title, str(len(found.queries)), str(len(np.unique(people))), *shown])
    note = "Anonymous protocol, cosine. Intervals are 95 %, by a bootstrap that draws people."
    protected = inputs.protected
    if protected is not None and protected.prototypes:
        note += " Protected rows are prototypes, one a person; the clean row is of single images."
    if protected is not None and protected.cameras:
        note += (
            " Queries of cameras that people were enrolled from do not count for the protected row and do for the "
            "clean one: the two are not to be compared one to one."
        )
    elif protected is not None and protected.prototypes:
        note += (
            " It is not known which cameras they were enrolled from: all queries count, also those of the same "
            "cameras, which flatters the protected row."
        )
    headers = ["gallery", "queries", "people", "rank-1", "mAP"]
    return Table("Utility on the features given to this report", headers, rows, note, tuple(sources))


def first_rows(inputs: FeatureInputs, space: Space, query: int, count: int) -> np.ndarray:
    """Return the positions of the best ``count`` rows of a query, without its own person in its own camera."""
    scores = space.query[query] @ space.gallery.T
    scores[_matches(inputs, space).of(query, 1).ignored] = -np.inf
    order = np.argsort(-scores, kind="stable")
    return order[np.isfinite(scores[order])][:count]


def _matches(inputs: FeatureInputs, space: Space) -> Matches:
    if inputs.query is None:
        raise ValueError("there are no queries. Name their features: --query FILE.")
    return Matches(inputs.query.pids, space.pids, inputs.query.camids, space.camids, exclude_same_camera=True)
