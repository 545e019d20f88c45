"""The enrolled protocol: gallery rows carry a pid, as a watch list does, and each person has one template.

Our definition. For query camera c a person's template is the normalized mean of his unit-length rows from cameras
other than c, for all people alike: whose rows are left out depends on the query's camera and not on who it shows.
The score is the cosine. Averaging released rows is post-processing and costs no privacy of its own, but it uses all k
rows of one person: print the person-level epsilon at ``rows_median`` and ``rows_largest`` beside every figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.retrieval.checks import Features, IntArray, Labels, as_feature_pair, as_labels, as_pids, curve_length
from ppreid_plugin.retrieval.distances import normalize_rows
from ppreid_plugin.retrieval.equal_rows import EqualRows
from ppreid_plugin.retrieval.ranking import NoMatchError, no_match_message

_QUERIES_PER_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class EnrolledResult:
    """The figures of one evaluation against the list of enrolled people; shares are fractions in [0, 1].

    Attributes:
        cmc: (max_rank,), float64: share of the queries whose person is among the first k of the list, at index k - 1.
            Beyond the length of the list it keeps its last value.
        mrr: mean reciprocal rank; one template is right, so this is also the mean average precision.
        num_valid_queries: queries whose person is in the list of their camera; only these are counted.
        num_people: people in the gallery, without background.
        rows_median, rows_largest: gallery rows a person, over these people.
    """

    cmc: npt.NDArray[np.float64]
    mrr: float
    num_valid_queries: int
    num_people: int
    rows_median: float
    rows_largest: int

    @property
    def rank1(self) -> float:
        """Share of the queries whose own person heads the list."""
        return float(self.cmc[0])


def evaluate_enrolled(
    query_features: Features,
    gallery_features: Features,
    query_pids: Labels,
    gallery_pids: Labels,
    query_camids: Labels,
    gallery_camids: Labels,
    *,
    background_pids: Sequence[int] = (0,),
    exclude_same_camera: bool = True,
    max_rank: int = 50,
) -> EnrolledResult:
    """Match every query against one template a person.

    Ties go by pid: of two people with the same score the one with the lower pid comes first.

    Args:
        query_features: numpy array or torch tensor of any float type, normalized here.
        gallery_features: the same for the gallery. Templates are averaged in float64. A zero row adds nothing to a
            mean but counts as a row.
        query_pids: whole numbers, one a query.
        gallery_pids: whole numbers, one a gallery row.
        query_camids: whole numbers, one a query.
        gallery_camids: whole numbers, one a gallery row.
        background_pids: pids that are nobody: they get no template, and queries of them are dropped. Pid 0 is
            background in Market-1501; pass ``()`` where it is a person.
        exclude_same_camera: leave rows of the query's camera out of all templates. False: one list for all queries.
        max_rank: length of the CMC curve.
    Shape:
        features: (num_query, d) and (num_gallery, d). Labels: (num_query,) and (num_gallery,).

    Raises:
        ValueError: wrong shapes, lengths or types; NaN or infinity (rows are named).
        NoMatchError: no query with a template.

    Example:
        >>> gallery = np.array([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0]])
        >>> result = evaluate_enrolled(gallery[:1], gallery, [7], [7, 7, 8], [0], [0, 1, 1])
        >>> result.rank1, result.num_people, result.rows_largest
        (1.0, 2, 2)
    """
    max_rank = curve_length("max_rank", max_rank)
    query, gallery = as_feature_pair(query_features, gallery_features)
    q_pids = as_labels("query_pids", query_pids, len(query))
    g_pids = as_labels("gallery_pids", gallery_pids, len(gallery))
    q_camids = as_labels("query_camids", query_camids, len(query))
    g_camids = as_labels("gallery_camids", gallery_camids, len(gallery))

    enrolled = ~np.isin(g_pids, as_pids("background_pids", background_pids))
    people, person, rows = np.unique(g_pids[enrolled], return_inverse=True, return_counts=True)
    unit_rows = normalize_rows(gallery[torch.from_numpy(enrolled).to(gallery.device)])
    kept_queries = np.flatnonzero(np.isin(q_pids, people))
    ranks: list[npt.NDArray[np.int64]] = []
    for queries, used in by_camera(kept_queries, q_camids, g_camids[enrolled], exclude_same_camera):
        listed, templates = templates_of(unit_rows[torch.from_numpy(used).to(gallery.device)], person[used])
        queries = queries[np.isin(q_pids[queries], people[listed])]
        own = np.searchsorted(people[listed], q_pids[queries])
        ranks += _ranks(query, queries, templates, own)
    if not sum(map(len, ranks)):
        used_words = f"exclude_same_camera={exclude_same_camera}"
        raise NoMatchError(no_match_message(len(kept_queries) > 0, used_words, "exclude_same_camera=False"))
    all_ranks = np.concatenate(ranks)
    cmc = np.cumsum(np.bincount(all_ranks[all_ranks <= max_rank] - 1, minlength=max_rank)) / len(all_ranks)
    cmc.flags.writeable = False
    return EnrolledResult(
        cmc=cmc,
        mrr=float(np.mean(1.0 / all_ranks)),
        num_valid_queries=len(all_ranks),
        num_people=len(people),
        rows_median=float(np.median(rows)),
        rows_largest=int(rows.max()),
    )


def by_camera(
    queries: IntArray, q_camids: IntArray, g_camids: IntArray, exclude_same_camera: bool
) -> Iterator[tuple[IntArray, npt.NDArray[np.bool_]]]:
    """Yield queries that share one list, and which gallery rows that list is made of."""
    if not exclude_same_camera:
        yield queries, np.ones(len(g_camids), dtype=bool)
        return
    for camid in np.unique(q_camids[queries]):
        yield queries[q_camids[queries] == camid], g_camids != camid


def templates_of(unit_rows: torch.Tensor, person: IntArray) -> tuple[IntArray, torch.Tensor]:
    """Return the people that have a row, ascending, and their templates, (people, d)."""
    listed, position = np.unique(person, return_inverse=True)
    sums = torch.zeros(len(listed), unit_rows.shape[1], dtype=torch.float64, device=unit_rows.device)
    sums.index_add_(0, torch.from_numpy(position).to(unit_rows.device), unit_rows.double())
    return listed, normalize_rows(sums).to(unit_rows.dtype)


def template_scores(
    features: torch.Tensor, rows: IntArray, templates: torch.Tensor
) -> Iterator[tuple[slice, npt.NDArray[np.floating]]]:
    """Yield the cosines of a chunk of ``rows`` of ``features`` with all templates, and where in ``rows`` it stands.

    Equal templates have equal cosines.
    """
    equal = EqualRows(templates)
    for start in range(0, len(rows), _QUERIES_PER_CHUNK):
        span = slice(start, start + _QUERIES_PER_CHUNK)
        unit_rows = normalize_rows(features[torch.from_numpy(rows[span]).to(features.device)])
        yield span, equal.tie(torch.mm(unit_rows.to(templates), templates.T).cpu().numpy())


def _ranks(
    query: torch.Tensor, queries: IntArray, templates: torch.Tensor, own: IntArray
) -> list[npt.NDArray[np.int64]]:
    """Return the rank, from 1, of template ``own[i]`` for row ``queries[i]`` of ``query``, in chunks."""
    ranks = []
    columns = np.arange(len(templates))
    for span, scores in template_scores(query, queries, templates):
        right = own[span, None]
        score = np.take_along_axis(scores, right, axis=1)
        ranks.append(1 + np.count_nonzero((scores > score) | ((scores == score) & (columns < right)), axis=1))
    return ranks
