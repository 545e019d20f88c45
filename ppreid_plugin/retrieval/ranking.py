"""Exact CMC, mAP and mINP of the anonymous protocol: every gallery row is an image of its own.

The figures are those of torchreid's ``evaluate_rank`` (which reports no mINP); the way is another one. The gallery
is not sorted: one matrix product in chunks of queries (:mod:`.scoring`), of a large gallery in parts (:mod:`.parts`),
and one comparison pass a positive (:mod:`.counting`, on a GPU :mod:`.device_ranking`).

Sources: CMC, mAP and the same-camera rule: Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015.
mINP: Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", arXiv 2001.04193.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.number_checks import require_whole
from ppreid_plugin.retrieval.checks import (
    Features,
    IntArray,
    Labels,
    as_feature_pair,
    as_labels,
    as_matrix,
    choice,
    curve_length,
    require_finite,
)
from ppreid_plugin.retrieval.counting import Matches, positive_ranks
from ppreid_plugin.retrieval.device_ranking import Count, DeviceMatches, device_count, device_figures, device_labels
from ppreid_plugin.retrieval.distances import METRICS, FeatureDistances
from ppreid_plugin.retrieval.equal_rows import EqualRows
from ppreid_plugin.retrieval.parts import parts_of, ranks_in_parts
from ppreid_plugin.retrieval.reranking import KReciprocal, re_ranked_chunks
from ppreid_plugin.retrieval.scoring import DeviceScores, Products, checked_norms, queries_per_chunk, score_chunks
from ppreid_plugin.retrieval.single_shot import SingleShot

PROTOCOLS = ("market1501", "cuhk03", "all")

_LABELS = ("query_pids", "gallery_pids", "query_camids", "gallery_camids")


class NoMatchError(ValueError):
    """No query has a match, so there is no figure; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class RankingResult:
    """The figures of one evaluation, as fractions in [0, 1].

    Attributes:
        cmc: (max_rank,), float64: share of the queries with a match among the first k rows, at index k - 1. Beyond the
            number of gallery rows it keeps its last value. Of protocol ``cuhk03``: the expectation of this share.
        mAP: mean over the queries of the mean precision at their positives.
        mINP: mean over the queries of (number of positives) / (rank of the last one).
        num_valid_queries: queries with at least one match; only these are counted.
    """

    cmc: npt.NDArray[np.float64]
    mAP: float  # noqa: N815 (as in the papers)
    mINP: float  # noqa: N815
    num_valid_queries: int

    @property
    def rank1(self) -> float:
        """Share of the queries whose first row is a match."""
        return self.rank(1)

    def rank(self, k: int) -> float:
        """Share of the queries with a match among the first ``k`` rows.

        Raises:
            ValueError: ``k`` is not in 1 ... max_rank.
        """
        if require_whole("k", k) > len(self.cmc):
            raise ValueError(f"k is {k}, must be <= max_rank = {len(self.cmc)}. Evaluate with max_rank={k}.")
        return float(self.cmc[k - 1])


def evaluate(
    query_features: Features,
    gallery_features: Features,
    query_pids: Labels,
    gallery_pids: Labels,
    query_camids: Labels,
    gallery_camids: Labels,
    *,
    metric: str = "cosine",
    protocol: str = "market1501",
    max_rank: int = 50,
    memory_mb: float | None = None,
    rerank: KReciprocal | None = None,
) -> RankingResult:
    r"""Rank the gallery for every query and return CMC, mAP and mINP.

    With :math:`r_1 < ... < r_P` the ranks of a query's positives,

    .. math:: AP = \frac1P \sum_k \frac{k}{r_k}, \qquad INP = \frac{P}{r_P}, \qquad CMC(k) = [r_1 \le k]

    Ties go by gallery index, as in a stable sort: of two rows at the same distance the one with the lower index comes
    first, be it a match or not.

    Args:
        query_features: numpy array or torch tensor of any float type. The product runs on its device, in float64 if
            either matrix is float64 and in float32 otherwise. The counts run there too if that is a GPU and Triton can
            be imported (but for ``cuhk03`` and ``rerank``), else on the CPU.
        gallery_features: the same for the gallery.
        query_pids: whole numbers, one a query.
        gallery_pids: whole numbers, one a gallery row.
        query_camids: whole numbers, one a query.
        gallery_camids: whole numbers, one a gallery row.
        metric: ``cosine`` (a zero row has similarity 0 to all) or ``euclidean``.
        protocol: ``market1501`` takes gallery rows with the query's pid *and* camid out of its list; ``all`` keeps
            them, for data of one camera. ``cuhk03`` is ``market1501`` with the CMC curve of galleries that show one
            random image a person, as an exact expectation (:mod:`.single_shot`); mAP and mINP are of all images.
        max_rank: length of the CMC curve.
        memory_mb: MiB for the scores that are held (at least one query's, of ``cuhk03`` and re-ranking and a gallery of
            very many rows that repeat others); beside them, a copy of the features is held, of a gallery up to 128 MiB.
            None: 72; for whole rows of scores (``cuhk03``) what 128 queries take, up to 256. Where the counts run on a
            GPU: None is 1,024, and a gallery up to this limit is copied.
        rerank: rank by k-reciprocal re-ranked distances (:func:`.re_rank`), which are not held either.
    Shape:
        features: (num_query, d) and (num_gallery, d). Labels: (num_query,) and (num_gallery,).

    Raises:
        ValueError: wrong shapes, lengths, types or options; NaN or infinity (rows are named).
        NoMatchError: no query with a match.

    Example:
        >>> features = np.eye(3)
        >>> result = evaluate(features[:2], features[[0, 2, 1]], [0, 1], [0, 2, 1], [0, 0], [1, 1, 1], max_rank=5)
        >>> result.rank1, result.mAP, result.num_valid_queries
        (1.0, 1.0, 2)
    """
    choice("metric", metric, METRICS)
    query, gallery = as_feature_pair(query_features, gallery_features, finite=False)
    max_rank = curve_length("max_rank", max_rank)
    labels, shape = (query_pids, gallery_pids, query_camids, gallery_camids), (len(query), len(gallery))
    if rerank is None and (count := _device_count(query, protocol)) is not None:
        scores = DeviceScores(query, gallery, metric, memory_mb)
        with scores.meanwhile():
            scores.check()
            matches_there = _device_matches(labels, shape, protocol, query.device)
        return _summarize_on_device(scores.chunks(), matches_there, len(query), protocol, max_rank, count)
    norms = checked_norms(query, gallery, metric)
    matches = _matches(labels, shape, protocol)
    step = queries_per_chunk(memory_mb, query, len(gallery))  # checks memory_mb
    if rerank is not None:
        if not isinstance(rerank, KReciprocal):
            raise ValueError(f"rerank is {rerank!r}, must be a KReciprocal or None. Pass rerank=KReciprocal().")
        chunks = re_ranked_chunks(FeatureDistances(query, gallery, metric), rerank, memory_mb or 64.0)
        return _rank(((start, np.negative(rows, out=rows)) for start, rows in chunks), matches, protocol, max_rank)
    equal, products = EqualRows(gallery), Products(query, gallery, metric, norms)
    if protocol != "cuhk03" and (parts := parts_of(memory_mb, query, gallery, len(equal.kinds))) is not None:
        return _summarize(ranks_in_parts(products, equal, matches, parts), matches, protocol, max_rank)
    return _rank(score_chunks(products, equal, step), matches, protocol, max_rank)


def evaluate_distances(
    distances: Features,
    query_pids: Labels,
    gallery_pids: Labels,
    query_camids: Labels,
    gallery_camids: Labels,
    *,
    protocol: str = "market1501",
    max_rank: int = 50,
    memory_mb: float | None = None,
) -> RankingResult:
    """Return the figures of :func:`evaluate` for a ready matrix of distances, smaller = closer.

    Args:
        distances: any float type. Infinity is allowed (a row that may never match), NaN is not.
        query_pids: whole numbers, one a row of ``distances``.
        gallery_pids: whole numbers, one a column.
        query_camids: whole numbers, one a row.
        gallery_camids: whole numbers, one a column.
        protocol: as in :func:`evaluate`.
        max_rank: length of the CMC curve.
        memory_mb: MiB for one chunk of rows; None: 72, or what 128 queries take, up to 256 (on a GPU 1,024).
    Shape:
        distances: (num_query, num_gallery).

    Raises:
        ValueError: wrong shapes, lengths, types or options; NaN (rows are named).
        NoMatchError: no query with a match.
    """
    matrix = as_matrix("distances", distances)
    max_rank = curve_length("max_rank", max_rank)
    labels = (query_pids, gallery_pids, query_camids, gallery_camids)
    if (count := _device_count(matrix, protocol)) is not None:
        matches_there = _device_matches(labels, matrix.shape, protocol, matrix.device)
        require_finite("distances", matrix, infinity_allowed=True)
        step = queries_per_chunk(memory_mb, matrix, matrix.shape[1], on_device=True)
        out = torch.empty_like(matrix[:step])
        chunks_there = (
            (i, torch.neg(matrix[i : i + step], out=out[: len(matrix) - i])) for i in range(0, len(matrix), step)
        )
        return _summarize_on_device(chunks_there, matches_there, len(matrix), protocol, max_rank, count)
    matches = _matches(labels, matrix.shape, protocol)
    require_finite("distances", matrix, infinity_allowed=True)
    step = queries_per_chunk(memory_mb, matrix, matrix.shape[1])
    chunks = ((i, torch.neg(matrix[i : i + step]).cpu().numpy()) for i in range(0, len(matrix), step))
    return _rank(chunks, matches, protocol, max_rank)


def _matches(labels: tuple[Labels, ...], shape: tuple[int, ...], protocol: str) -> Matches:
    query_pids, gallery_pids, query_camids, gallery_camids = map(as_labels, _LABELS, labels, (*shape, *shape))
    exclude = choice("protocol", protocol, PROTOCOLS) != "all"
    return Matches(query_pids, gallery_pids, query_camids, gallery_camids, exclude_same_camera=exclude)


def _device_count(scores: torch.Tensor, protocol: str) -> Count | None:
    """Return what counts on the device of scores like these; None: they are counted on the CPU."""
    return None if protocol == "cuhk03" else device_count(scores.device, scores.dtype)


def _device_matches(
    labels: tuple[Labels, ...], shape: tuple[int, ...], protocol: str, device: torch.device
) -> DeviceMatches:
    there = device_labels(_LABELS, labels, (*shape, *shape), device)
    return DeviceMatches(there, exclude_same_camera=choice("protocol", protocol, PROTOCOLS) != "all")


def _summarize_on_device(
    chunks: Iterator[tuple[int, torch.Tensor]],
    matches: DeviceMatches,
    num_query: int,
    protocol: str,
    max_rank: int,
    count: Count,
) -> RankingResult:
    sums = device_figures(chunks, matches, num_query, max_rank, count)
    if not sums.valid:
        raise _no_match(matches.any_shared_pid, protocol)
    cmc = sums.hits / sums.valid
    cmc.flags.writeable = False
    return RankingResult(cmc, sums.precision / sums.valid, sums.inverse_penalty / sums.valid, sums.valid)


def _no_match(any_shared_pid: bool, protocol: str) -> NoMatchError:
    return NoMatchError(no_match_message(any_shared_pid, f"protocol={protocol!r}", "protocol='all'"))


def _rank(
    chunks: Iterator[tuple[int, npt.NDArray[np.floating]]], matches: Matches, protocol: str, max_rank: int
) -> RankingResult:
    single_shot = SingleShot(matches.gallery_pids, max_rank) if protocol == "cuhk03" else None
    found = positive_ranks(chunks, matches, also=None if single_shot is None else single_shot.add)
    return _summarize(found, matches, protocol, max_rank, single_shot)


def _summarize(
    found: Iterator[tuple[IntArray, IntArray]],
    matches: Matches,
    protocol: str,
    max_rank: int,
    single_shot: SingleShot | None = None,
) -> RankingResult:
    ranks, counts = (np.concatenate(parts) for parts in zip(*found, strict=True))
    counts = counts[counts > 0]
    if not len(counts):
        raise _no_match(matches.any_shared_pid, protocol)
    ends = np.cumsum(counts)
    starts = ends - counts
    offsets = np.repeat(np.arange(len(counts)), counts) * (int(ranks.max()) + 1)
    ranks = np.sort(ranks + offsets) - offsets  # each query's in order
    precision = (np.arange(len(ranks)) - np.repeat(starts, counts) + 1) / ranks
    first = ranks[starts]
    hits = np.cumsum(np.bincount(first[first <= max_rank] - 1, minlength=max_rank))
    cmc = (hits if single_shot is None else single_shot.total) / len(counts)
    cmc.flags.writeable = False
    return RankingResult(
        cmc=cmc,
        mAP=float(np.mean(np.add.reduceat(precision, starts) / counts)),
        mINP=float(np.mean(counts / ranks[ends - 1])),
        num_valid_queries=len(counts),
    )


def no_match_message(any_shared_pid: bool, used: str, instead: str) -> str:
    """Return why no query has a match, and what to do."""
    if any_shared_pid:
        return (
            f"no query has a match under {used}: every match shares the query's camera. "
            f"If the data has one camera, say {instead} (config: test.exclude_same_camera False)."
        )
    return (
        "no query has a match: the pids of query and gallery do not overlap. "
        "Check that both come from one data set and carry the same numbering of people."
    )
